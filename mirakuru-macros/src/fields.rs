//! Parses a struct whose fields are services.

use proc_macro2::{Delimiter, Group, Ident, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::ext::IdentExt as _;
use syn::{Field, Fields, ItemStruct, Type};

use crate::args::{self, Args};
use crate::errors::Errors;
use crate::names::{self, Needs};

/// The name that `#[fixture(..)]` gets on the fields of a struct with `cfg` conditions.
pub(crate) const RENAMED: &str = "__mirakuru_fixture";

/// A struct and the fixtures of its fields.
pub(crate) struct System {
    /// The struct without our attributes.
    pub(crate) item: ItemStruct,
    /// The fields that are services, in the order in which they are declared.
    pub(crate) services: Vec<Service>,
    /// The indices of the services that each service needs.
    pub(crate) needs: Needs,
}

/// A field that is a service.
pub(crate) struct Service {
    pub(crate) name: Ident,
    /// The field's mirakuru attributes: exactly one, unless the user has made a mistake.
    pub(crate) fixtures: Vec<Args>,
}

pub(crate) fn parse(mut item: ItemStruct, errors: &mut Errors) -> System {
    let mut services = Vec::new();
    if let Fields::Named(fields) = &mut item.fields {
        for field in &mut fields.named {
            let fixtures = args::on_system(&mut field.attrs, errors);
            let Some(name) = field.ident.clone() else { continue };
            if !fixtures.is_empty() || !is_marker(&field.ty) {
                services.push(Service { name, fixtures });
            }
        }
    }
    let (mut first, mut names, mut constants) = (Vec::new(), Vec::new(), Vec::new());
    for service in &services {
        first.extend(service.fixtures.first());
        names.push(Some(service.name.clone()));
    }
    // `check` reports a field without an attribute.
    let needs = if first.len() == services.len() {
        for constant in item.generics.const_params() {
            constants.push(constant.ident.clone());
        }
        names::needs(&first, &names, &constants, errors)
    } else {
        Needs::new()
    };
    System {
        item,
        services,
        needs,
    }
}

/// Whether a type is `PhantomData`. Such a field is not a service, and needs no attribute.
fn is_marker(ty: &Type) -> bool {
    matches!(ty, Type::Path(path) if path.path.segments.last().is_some_and(|it| it.ident == "PhantomData"))
}

impl System {
    /// The services that this one needs.
    pub(crate) fn needs(&self, service: usize) -> impl Iterator<Item = &Service> {
        let needs = self.needs.get(service).into_iter().flatten();
        needs.map(|&other| &self.services[other])
    }

    pub(crate) fn service(&self, field: &Field) -> Option<&Service> {
        let mut services = self.services.iter();
        services.find(|service| Some(&service.name) == field.ident.as_ref())
    }
}

/// Reports and removes each field whose name is already used above, or whose type is the struct
/// itself.
pub(crate) fn take_out_mistakes(item: &mut ItemStruct, errors: &mut Errors) {
    let Fields::Named(fields) = &mut item.fields else {
        return;
    };
    let mut known = Vec::new();
    for field in std::mem::take(&mut fields.named) {
        let Some(name) = &field.ident else { continue };
        if matches!(&field.ty, Type::Path(path) if path.path.is_ident(&item.ident)) {
            errors.on(&field.ty, "a system cannot be a part of itself");
        } else if known.contains(&name.unraw()) {
            errors.at(name.span(), format!("a field above is already called `{name}`"));
        } else {
            known.push(name.unraw());
            fields.named.push(field);
        }
    }
}

/// Reverses the fields. Rust drops fields in the order of their declaration, but a service must end
/// before the services that it needs, which are declared above it.
pub(crate) fn reverse(item: &mut ItemStruct) {
    if let Fields::Named(fields) = &mut item.fields {
        fields.named = fields.named.iter().rev().cloned().collect();
    }
}

/// Whether the struct or a part of it has a `cfg`, which only rustc can evaluate.
pub(crate) fn is_conditional(tokens: TokenStream) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket => {
            let first = group.stream().into_iter().next();
            matches!(first, Some(TokenTree::Ident(word)) if word == "cfg" || word == "cfg_attr")
        }
        TokenTree::Group(group) => is_conditional(group.stream()),
        _ => false,
    })
}

/// Renames the mirakuru attributes of the fields, including those in a `cfg_attr`. Named `fixture`,
/// they would be ambiguous if the user has imported the macro of that name.
pub(crate) fn rename_attributes(item: &mut ItemStruct) {
    for attr in item.fields.iter_mut().flat_map(|field| &mut field.attrs) {
        if let Ok(meta) = syn::parse2(renamed(attr.meta.to_token_stream())) {
            attr.meta = meta;
        }
    }
}

/// Renames the attributes in a comma-separated list.
fn renamed(attributes: TokenStream) -> TokenStream {
    let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(it) if it.as_char() == ',');
    let tokens: Vec<TokenTree> = attributes.into_iter().collect();
    let mut all = TokenStream::new();
    for attribute in tokens.split_inclusive(is_comma) {
        let (attribute, comma) = match attribute {
            [attribute @ .., comma] if is_comma(comma) => (attribute, Some(comma)),
            attribute => (attribute, None),
        };
        let new = |name: &Ident| Ident::new(RENAMED, name.span());
        all.extend(match attribute {
            [.., TokenTree::Ident(name)] if name == "fixture" => new(name).into_token_stream(),
            [.., TokenTree::Ident(name), arguments] if name == "fixture" => {
                let name = new(name);
                quote!(#name #arguments)
            }
            [name @ TokenTree::Ident(word), TokenTree::Group(inner)] if word == "cfg_attr" => {
                let inner = Group::new(inner.delimiter(), renamed(inner.stream()));
                quote!(#name #inner)
            }
            other => quote!(#(#other)*),
        });
        comma.to_tokens(&mut all);
    }
    all
}
