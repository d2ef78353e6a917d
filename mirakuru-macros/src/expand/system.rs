//! Generates a struct whose fields are services, and its recipe.

use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ext::IdentExt as _;
use syn::{Attribute, Fields, Generics, ItemStruct, Visibility};

use super::{Member, add, at, located, system_variable, taken_value};
use crate::args;
use crate::errors::Errors;
use crate::fields::{self, System};
use crate::item::{self, Item, Static};

/// Generates the struct. Its fields are reversed, so that they are dropped in the right order.
pub(crate) fn item_struct(mut item: ItemStruct) -> TokenStream {
    fields::reverse(&mut item);
    for field in &mut item.fields {
        // A field that no test reads is not dead code, because other services may need it.
        field.attrs.push(syn::parse_quote!(#[allow(dead_code)]));
    }
    item.into_token_stream()
}

/// Generates a struct with `cfg` conditions. rustc evaluates the conditions before it calls the
/// derive macro, which generates the recipe.
pub(crate) fn conditional_struct(mut item: ItemStruct) -> TokenStream {
    fields::rename_attributes(&mut item);
    let item = item_struct(item);
    quote!(#[derive(::mirakuru::__System)] #item)
}

/// Generates an item after a mistake, without the mirakuru attributes of its parts. A type also
/// gets a recipe that panics, so that code that uses the recipe compiles.
pub(crate) fn broken(tokens: TokenStream, errors: &Errors) -> TokenStream {
    let strip = |attrs: &mut Vec<Attribute>| drop(args::on_system(attrs, &mut Errors::default()));
    let strip_fields = |fields: &mut Fields| fields.iter_mut().for_each(|field| strip(&mut field.attrs));
    let (recipe, item) = match syn::parse2(tokens.clone()) {
        Ok(syn::Item::Struct(mut item)) => {
            strip_fields(&mut item.fields);
            (recipe(Head::of(&item), &unreachable_plan()), with_free_name(item))
        }
        Ok(syn::Item::Enum(mut item)) => {
            for variant in &mut item.variants {
                strip(&mut variant.attrs);
                strip_fields(&mut variant.fields);
            }
            let head = Head::new(&item.attrs, &item.vis, &item.ident, &item.generics);
            (recipe(head, &unreachable_plan()), quote!(#item))
        }
        Ok(syn::Item::Union(mut item)) => {
            item.fields
                .named
                .iter_mut()
                .for_each(|field| strip(&mut field.attrs));
            let head = Head::new(&item.attrs, &item.vis, &item.ident, &item.generics);
            (recipe(head, &unreachable_plan()), quote!(#item))
        }
        _ => return as_static(&tokens).map_or(tokens, |item| super::on_static(&item, &[], errors)),
    };
    quote!(#[allow(dead_code, non_camel_case_types)] #item #recipe)
}

/// Renames a struct without named fields, because its constructor would have the same name as the
/// recipe. A type alias provides the old name.
fn with_free_name(mut item: ItemStruct) -> TokenStream {
    if let Fields::Named(_) = item.fields {
        return quote!(#item);
    }
    let name = item.ident.clone();
    item.ident = format_ident!("__{name}");
    let ItemStruct {
        vis, ident, generics, ..
    } = &item;
    let (_, arguments, _) = generics.split_for_impl();
    quote!(#item #[allow(type_alias_bounds)] #vis type #name #generics = #ident #arguments;)
}

/// Parses `const NAME: T;` as a static.
fn as_static(item: &TokenStream) -> Option<Static> {
    let tokens = item.clone().into_iter().map(|token| match token {
        TokenTree::Ident(word) if word == "const" => Ident::new("static", word.span()).into(),
        token => token,
    });
    match item::parse(tokens.collect()) {
        Ok(Item::Static(item)) if item.value.is_none() => Some(item),
        _ => None,
    }
}

/// Generates the recipe of a struct.
pub(crate) fn recipe_of_struct(system: &System, errors: &Errors) -> TokenStream {
    let item = &system.item;
    let plan = if errors.any() {
        unreachable_plan()
    } else {
        plan(system)
    };
    let recipe = recipe(Head::of(item), &plan);
    let of_fields = item.fields.iter().flat_map(|field| &field.attrs);
    let mut attrs = item.attrs.iter().chain(of_fields);
    let is_deprecated = attrs.any(|attr| attr.path().is_ident("deprecated"));
    let allow = is_deprecated.then(|| quote!(#[allow(deprecated)]));
    quote!(#allow #recipe)
}

fn unreachable_plan() -> TokenStream {
    quote!(::mirakuru::__private::Plan::new(|_| ::core::unreachable!()))
}

/// The parts of a struct, an enum or a union that its recipe needs.
struct Head<'a> {
    attrs: &'a [Attribute],
    vis: &'a Visibility,
    ident: &'a Ident,
    generics: &'a Generics,
}

impl<'a> Head<'a> {
    fn new(
        attrs: &'a [Attribute],
        vis: &'a Visibility,
        ident: &'a Ident,
        generics: &'a Generics,
    ) -> Head<'a> {
        Head {
            attrs,
            vis,
            ident,
            generics,
        }
    }

    fn of(item: &'a ItemStruct) -> Head<'a> {
        Head::new(&item.attrs, &item.vis, &item.ident, &item.generics)
    }
}

/// Generates the recipe: a constant or a function with the same name as the type.
fn recipe(head: Head<'_>, plan: &TokenStream) -> TokenStream {
    let Head {
        attrs,
        vis,
        ident,
        generics,
    } = head;
    let (_, arguments, _) = generics.split_for_impl();
    let handle = quote!(#ident #arguments);
    let doc = format!("The recipe of [`{ident}`](struct@{ident}).");
    // The recipe gets the same conditions and lints as the type.
    let is_copied = |attr: &&Attribute| {
        let mut words = ["cfg", "allow", "warn", "deny", "forbid"].iter();
        words.any(|word| attr.path().is_ident(word))
    };
    let attrs = attrs.iter().filter(is_copied);
    // Rust has no generic constants, so a function returns the recipe of a generic struct.
    let recipe = if generics.params.is_empty() {
        quote! {
            #[allow(non_upper_case_globals)]
            #vis const #ident: ::mirakuru::__private::Plan<#handle> = #plan;
        }
    } else {
        let mut bounded = generics.clone();
        let types = generics.type_params().map(|it| it.ident.to_token_stream());
        let lifetimes = generics.lifetimes().map(|it| it.lifetime.to_token_stream());
        let bounds = &mut bounded.make_where_clause().predicates;
        for it in types.chain(lifetimes) {
            bounds.push(syn::parse_quote!(#it: 'static));
        }
        let (parameters, _, bounds) = bounded.split_for_impl();
        quote! {
            #[allow(non_snake_case, clippy::multiple_bound_locations)]
            #vis fn #ident #parameters () -> ::mirakuru::__private::Plan<#handle> #bounds { #plan }
        }
    };
    quote! {
        #(#attrs)*
        #[doc = #doc]
        #recipe
    }
}

fn plan(system: &System) -> TokenStream {
    let slot = |name: &Ident| at(name, Span::mixed_site());
    let mut members = Vec::new();
    for (index, service) in system.services.iter().enumerate() {
        let Some(fixture) = service.fixtures.first() else {
            continue;
        };
        let mut needs = Vec::new();
        for other in system.needs(index) {
            needs.push((slot(&other.name), &other.name));
        }
        members.push(Member {
            fixture,
            name: service.name.unraw().to_string(),
            slot: slot(&service.name),
            needs,
        });
    }
    let add = add(&members);
    let ident = &system.item.ident;
    let (_, arguments, _) = system.item.generics.split_for_impl();
    let arguments = arguments.as_turbofish();
    let values = system.item.fields.iter().rev().filter_map(|field| {
        let name = field.ident.as_ref()?;
        let Some(service) = system.service(field) else {
            return Some(quote!(#name: ::core::marker::PhantomData));
        };
        let slot = located(&slot(name), &field.ty);
        let handle = quote_spanned!(slot.span()=> #slot.take());
        let value = taken_value(service.fixtures.first()?, slot.span(), &handle, &field.ty);
        Some(quote!(#name: #value))
    });
    let system = system_variable();
    quote! {
        ::mirakuru::__private::Plan::new(|#system| {
            #add
            #system.join(|| #ident #arguments { #(#values),* })
        })
    }
}
