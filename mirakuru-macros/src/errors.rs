//! Collects the mistakes in one use of the attribute, so that all of them are reported.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, TokenStreamExt};

use crate::args::Args;

/// The mistakes found so far.
#[derive(Default)]
pub(crate) struct Errors(Vec<syn::Error>);

impl Errors {
    pub(crate) fn push(&mut self, error: syn::Error) {
        self.0.push(error);
    }

    /// Adds a mistake at a single span, for example that of an identifier or of the whole
    /// attribute.
    pub(crate) fn at(&mut self, span: Span, message: impl std::fmt::Display) {
        self.0.push(syn::Error::new(span, message));
    }

    /// Adds a mistake in several tokens, for example in an expression.
    pub(crate) fn on(&mut self, tokens: impl ToTokens, message: impl std::fmt::Display) {
        self.0.push(syn::Error::new_spanned(tokens, message));
    }

    /// Adds a mistake that concerns a mirakuru attribute as a whole.
    pub(crate) fn on_attribute(&mut self, args: &Args, message: impl std::fmt::Display) {
        match &args.path {
            Some(path) => self.on(path, message),
            None => self.at(Span::call_site(), message),
        }
    }

    pub(crate) fn any(&self) -> bool {
        !self.0.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn messages(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }
}

impl ToTokens for Errors {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        tokens.append_all(self.0.iter().map(syn::Error::to_compile_error));
    }
}
