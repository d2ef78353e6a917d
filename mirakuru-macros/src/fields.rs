//! A struct whose fields are services: a system with a name.

use proc_macro2::TokenStream;
use syn::{Field, Fields, Ident, ItemStruct};

use crate::args::{self, Args};
use crate::errors::Errors;
use crate::names::{self, Needs};

/// A struct, and the fixtures of its fields.
pub(crate) struct System {
    /// The struct without our attributes.
    pub(crate) item: ItemStruct,
    /// Tokens in the struct's own attribute.
    pub(crate) arguments: TokenStream,
    /// The mirakuru attributes of each named field.
    pub(crate) fixtures: Vec<Vec<Args>>,
    pub(crate) needs: Needs,
}

pub(crate) fn parse(arguments: TokenStream, mut item: ItemStruct, errors: &mut Errors) -> System {
    let mut fixtures = Vec::new();
    let mut names = Vec::new();
    if let Fields::Named(fields) = &mut item.fields {
        for field in &mut fields.named {
            fixtures.push(args::on_field(&mut field.attrs, errors));
            names.push(field.ident.clone());
        }
    }
    let first: Vec<&Args> = fixtures.iter().filter_map(|fixtures| fixtures.first()).collect();
    // A field without an attribute is a separate mistake.
    let needs = if first.len() == fixtures.len() {
        let constants = item.generics.const_params();
        let constants: Vec<&Ident> = constants.map(|constant| &constant.ident).collect();
        names::needs(&first, &names, &constants, errors)
    } else {
        Needs::new()
    };
    System {
        item,
        arguments,
        fixtures,
        needs,
    }
}

impl System {
    pub(crate) fn fields(&self) -> impl DoubleEndedIterator<Item = &Field> + ExactSizeIterator {
        self.item.fields.iter()
    }

    /// The name of a field. Only the fields of a tuple have none.
    pub(crate) fn name(&self, field: usize) -> Option<&Ident> {
        self.fields().nth(field)?.ident.as_ref()
    }
}
