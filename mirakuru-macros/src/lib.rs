//! The attribute macro of [mirakuru](https://docs.rs/mirakuru), which re-exports and documents it.
//!
//! The modules are used in this order:
//! - `args` and `item` parse the attribute and its item,
//! - `bind` assigns parameters to fixtures,
//! - `check` finds mistakes,
//! - `expand` generates the code.
//!
//! The generated code contains one builder chain for each fixture, and calls `mirakuru-fixtures`,
//! which implements all behaviour. After a mistake, `expand` still generates an item with the right
//! types, so that rustc does not report follow-up errors.

mod args;
mod bind;
mod check;
mod errors;
mod expand;
mod fields;
mod item;
mod names;
mod nearest;
mod placeholder;
mod uses;

use proc_macro2::TokenStream;
use quote::quote;
use syn::ItemStruct;

use crate::errors::Errors;
use crate::item::{Form, Item};

#[allow(missing_docs)] // Documented at its re-export: `mirakuru::fixture`.
#[proc_macro_attribute]
pub fn fixture(args: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    dispatch(args.into(), item.into()).into()
}

/// Generates the recipe of a struct. rustc evaluates `#[cfg(..)]` on fields before it calls a
/// derive macro, but not before it calls an attribute macro. So [`macro@fixture`] adds this derive
/// to a struct with conditions.
#[doc(hidden)]
#[proc_macro_derive(__System, attributes(__mirakuru_fixture))]
pub fn system_of_struct(item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let mut errors = Errors::default();
    match syn::parse::<ItemStruct>(item) {
        Ok(mut item) => {
            fields::reverse(&mut item);
            let (_, recipe) = system(item, &mut errors);
            quote!(#errors #recipe).into()
        }
        Err(error) => error.to_compile_error().into(),
    }
}

/// Returns the struct without the attributes of its fields, and its recipe.
fn system(item: ItemStruct, errors: &mut Errors) -> (TokenStream, TokenStream) {
    let system = fields::parse(item, errors);
    check::on_fields(&system, errors);
    (
        expand::system::item_struct(system.item.clone()),
        expand::system::recipe_of_struct(&system, errors),
    )
}

/// Expands the attribute. Its meaning depends on the kind of item under it.
fn dispatch(args: TokenStream, tokens: TokenStream) -> TokenStream {
    let mut errors = Errors::default();
    let item = match item::parse(tokens.clone()) {
        Ok(item) => item,
        Err(error) => {
            errors.push(error);
            return quote!(#errors #tokens);
        }
    };
    let code = match item {
        Item::Static(mut item) => {
            let fixtures = args::stacked(args, &mut item.attrs, &mut errors);
            check::args(&fixtures, &mut errors);
            check::on_static(&item, &fixtures, &mut errors);
            expand::on_static(&item, &fixtures, &errors)
        }
        Item::Fn(mut item) => {
            let fixtures = args::stacked(args, &mut item.attrs, &mut errors);
            check::args(&fixtures, &mut errors);
            let bindings = bind::parameters(&item, &fixtures, &mut errors);
            match item.form() {
                Form::Test => {
                    check::on_test(&item, &fixtures, &bindings, &mut errors);
                    expand::on_test(&item, &fixtures, &bindings, &errors)
                }
                Form::Fixture => {
                    check::on_fixture(&item, &fixtures, &bindings, &mut errors);
                    expand::on_fixture(&item, &fixtures, &bindings, &errors)
                }
            }
        }
        Item::Struct(mut item) => {
            let others = args::on_system(&mut item.attrs, &mut errors);
            check::on_struct(&item, &args, &others, &mut errors);
            if errors.any() {
                expand::system::broken(quote!(#item), &errors)
            } else if fields::is_conditional(quote!(#item)) {
                expand::system::conditional_struct(item)
            } else {
                fields::take_out_mistakes(&mut item, &mut errors);
                let (item, recipe) = system(item, &mut errors);
                quote!(#item #recipe)
            }
        }
        Item::Other(other) => {
            errors.push(other.unsupported());
            expand::system::broken(other.tokens, &errors)
        }
    };
    quote!(#errors #code)
}
