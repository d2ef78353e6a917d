//! Parses the item under the attribute: a function with or without a body, a `static` without a
//! value, or an item that the attribute does not support.
//!
//! In Rust itself, a function has a body and a `static` has a value, so these items are parsed by
//! hand. A function's body is not parsed.

use proc_macro2::{Delimiter, Group, Ident, Span, TokenStream, TokenTree};
use syn::ext::IdentExt;
use syn::parse::{ParseStream, Parser};
use syn::{Attribute, Expr, FnArg, ItemStruct, ReturnType, Signature, Token, Type, Visibility};

use crate::args::is_rstest_fixture;

pub(crate) enum Item {
    Fn(Function),
    Static(Static),
    Struct(ItemStruct),
    Other(Other),
}

/// `fn name(..) -> T { .. }` or `fn name(..) -> T;`.
pub(crate) struct Function {
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) sig: Signature,
    pub(crate) body: Option<Group>,
}

/// `static NAME: T;`.
pub(crate) struct Static {
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) static_token: Token![static],
    pub(crate) mutability: Option<Token![mut]>,
    pub(crate) ident: Ident,
    pub(crate) ty: Type,
    pub(crate) value: Option<Expr>,
}

/// An item that the attribute does not support: an enum, a module, an `impl`, ...
pub(crate) struct Other {
    keyword: Ident,
    pub(crate) tokens: TokenStream,
}

/// The kind of item that the attribute generates from a function.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Form {
    /// A test. The services live as long as it runs.
    Test,
    /// An rstest fixture.
    Fixture,
}

/// The return type of a function.
pub(crate) enum Gives<'a> {
    Nothing,
    /// A type that can be written in a `let`.
    Type(&'a Type),
    /// `!`, or a type that contains `impl`, which is allowed only in a signature.
    Unnameable,
}

pub(crate) fn parse(tokens: TokenStream) -> syn::Result<Item> {
    parse_item.parse2(tokens)
}

fn parse_item(input: ParseStream<'_>) -> syn::Result<Item> {
    let all: TokenStream = input.fork().parse()?;
    let attrs = input.call(Attribute::parse_outer)?;
    let vis: Visibility = input.parse()?;
    if input.peek(Token![static]) {
        return parse_static(attrs, vis, input).map(Item::Static);
    }
    if input.peek(Token![struct]) {
        input.parse::<TokenStream>()?;
        return syn::parse2(all).map(Item::Struct);
    }
    if input.fork().parse::<Signature>().is_ok() {
        return parse_function(attrs, vis, input).map(Item::Fn);
    }
    let keyword = input.call(Ident::parse_any)?;
    input.parse::<TokenStream>()?;
    Ok(Item::Other(Other { keyword, tokens: all }))
}

fn parse_static(attrs: Vec<Attribute>, vis: Visibility, input: ParseStream<'_>) -> syn::Result<Static> {
    let static_token = input.parse()?;
    let mutability = input.parse()?;
    let ident = input.parse()?;
    input.parse::<Token![:]>()?;
    let ty = input.parse()?;
    let value = if input.parse::<Option<Token![=]>>()?.is_some() {
        Some(input.parse()?)
    } else {
        None
    };
    input.parse::<Token![;]>()?;
    Ok(Static {
        attrs,
        vis,
        static_token,
        mutability,
        ident,
        ty,
        value,
    })
}

fn parse_function(
    mut attrs: Vec<Attribute>,
    vis: Visibility,
    input: ParseStream<'_>,
) -> syn::Result<Function> {
    let mut sig: Signature = input.parse()?;
    sig.inputs.iter_mut().for_each(|input| {
        if let FnArg::Typed(parameter) = input {
            ungroup(&mut parameter.ty);
        }
    });
    if let ReturnType::Type(_, ty) = &mut sig.output {
        ungroup(ty);
    }
    let body = if input.peek(Token![;]) {
        input.parse::<Token![;]>()?;
        None
    } else {
        let group = body_of_function(input)?;
        let (inner, statements) = split_inner_attributes.parse2(group.stream())?;
        attrs.extend(inner);
        let mut body = Group::new(group.delimiter(), statements);
        body.set_span(group.span());
        Some(body)
    };
    Ok(Function {
        attrs,
        vis,
        sig,
        body,
    })
}

/// Parses the function's body, which may be inside the invisible parentheses that a macro's
/// `$name:block` adds.
fn body_of_function(input: ParseStream<'_>) -> syn::Result<Group> {
    match input.parse()? {
        TokenTree::Group(group) if group.delimiter() == Delimiter::None => {
            body_of_function.parse2(group.stream())
        }
        TokenTree::Group(group) => Ok(group),
        other => Err(syn::Error::new(other.span(), "expected the function's body")),
    }
}

/// Removes the invisible parentheses that a macro's `$name:ty` adds.
fn ungroup(ty: &mut Type) {
    while let Type::Group(group) = ty {
        *ty = std::mem::replace(&mut *group.elem, Type::Verbatim(TokenStream::new()));
    }
}

/// Turns `#![..]` at the beginning of a body into `#[..]` on the function, because the body is
/// moved to a place where `#![..]` is not allowed.
fn split_inner_attributes(input: ParseStream<'_>) -> syn::Result<(Vec<Attribute>, TokenStream)> {
    let mut inner = input.call(Attribute::parse_inner)?;
    for attr in &mut inner {
        attr.style = syn::AttrStyle::Outer;
    }
    Ok((inner, input.parse()?))
}

impl Function {
    /// Whether the function is a test or a fixture. A test has a test attribute below this one, or
    /// looks like a test and has no parameters. (A `#[test]` above is not visible here, but it
    /// allows no parameters.)
    pub(crate) fn form(&self) -> Form {
        let parameters_none = self.sig.inputs.is_empty();
        let like_a_test = self.test_attrs().next().is_some() || (parameters_none && self.gives_like_a_test());
        let rstest_fixture = self.attrs.iter().any(is_rstest_fixture);
        if self.body.is_some() && like_a_test && !rstest_fixture {
            Form::Test
        } else {
            Form::Fixture
        }
    }

    /// Whether the function has a test attribute, but a semicolon in place of a body.
    pub(crate) fn is_test_without_a_body(&self) -> bool {
        self.body.is_none() && self.test_attrs().next().is_some()
    }

    pub(crate) fn gives(&self) -> Gives<'_> {
        match &self.sig.output {
            ReturnType::Default => Gives::Nothing,
            ReturnType::Type(_, ty) => match &**ty {
                Type::Tuple(tuple) if tuple.elems.is_empty() => Gives::Nothing,
                Type::Never(_) => Gives::Unnameable,
                ty if mentions_impl(quote::quote!(#ty)) => Gives::Unnameable,
                ty => Gives::Type(ty),
            },
        }
    }

    /// Whether the return type is one that tests may have: nothing, a `Result` under any name, or
    /// an `ExitCode`.
    pub(crate) fn gives_like_a_test(&self) -> bool {
        match self.gives() {
            Gives::Nothing | Gives::Unnameable => true,
            Gives::Type(Type::Path(path)) => path.path.segments.last().is_some_and(|last| {
                let name = last.ident.to_string();
                name.ends_with("Result") || name == "ExitCode"
            }),
            Gives::Type(_) => false,
        }
    }

    /// The attributes that make a function a test.
    pub(crate) fn test_attrs(&self) -> impl Iterator<Item = &Attribute> {
        self.attrs.iter().filter(|attr| {
            let last = attr.path().segments.last().map(|last| last.ident.to_string());
            last.is_some_and(|last| {
                last.starts_with("test")
                    || last.ends_with("test")
                    || ["apply", "bench", "quickcheck"].contains(&&*last)
            })
        })
    }

    /// The string in `#[should_panic(expected = "..")]`. Empty if there is none.
    pub(crate) fn expected_panic(&self) -> String {
        let attr = self
            .attrs
            .iter()
            .find(|attr| attr.path().is_ident("should_panic"));
        let mut text = String::new();
        let _ = attr.map(|attr| {
            attr.parse_nested_meta(|meta| {
                text = meta.value()?.parse::<syn::LitStr>()?.value();
                Ok(())
            })
        });
        text
    }

    pub(crate) fn has_attr(&self, name: &str) -> bool {
        self.attrs.iter().any(|attr| attr.path().is_ident(name))
    }
}

/// Whether an attribute is Rust's own `#[test]`, written with any of its paths.
pub(crate) fn is_plain_test(attr: &Attribute) -> bool {
    let path = path_of(attr);
    path == "test"
        || (path.starts_with("core::prelude::") || path.starts_with("std::prelude::"))
            && path.ends_with("::test")
}

/// Whether a test attribute passes no arguments to the function. Other ones (`rstest`,
/// `sqlx::test`, ...) may pass some.
pub(crate) fn takes_no_parameters(attr: &Attribute) -> bool {
    is_plain_test(attr)
        || [
            "actix_rt::test",
            "actix_web::test",
            "async_std::test",
            "compio::test",
            "futures_test::test",
            "ntex::test",
            "smol_potat::test",
            "test_log::test",
            "tokio::test",
        ]
        .contains(&&*path_of(attr))
}

/// Whether an attribute is built into Rust, and is allowed on a test.
pub(crate) fn is_built_in(attr: &Attribute) -> bool {
    let path = path_of(attr);
    let words = [
        "allow",
        "cfg",
        "cold",
        "deny",
        "deprecated",
        "doc",
        "expect",
        "forbid",
        "ignore",
        "inline",
        "must_use",
        "should_panic",
        "track_caller",
        "warn",
    ];
    words.contains(&&*path) || path.starts_with("clippy::") || path.starts_with("rustfmt::")
}

fn path_of(attr: &Attribute) -> String {
    let segments = &attr.path().segments;
    let words: Vec<String> = segments.iter().map(|segment| segment.ident.to_string()).collect();
    words.join("::")
}

fn mentions_impl(tokens: TokenStream) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(word) => word == "impl",
        TokenTree::Group(group) => mentions_impl(group.stream()),
        _ => false,
    })
}

/// The `T` of `&'static T`.
pub(crate) fn behind_static(ty: &Type) -> Option<&Type> {
    match ty {
        Type::Reference(reference) => {
            let is_static = reference
                .lifetime
                .as_ref()
                .is_some_and(|lifetime| lifetime.ident == "static");
            (is_static && reference.mutability.is_none()).then_some(&*reference.elem)
        }
        Type::Group(group) => behind_static(&group.elem),
        Type::Paren(paren) => behind_static(&paren.elem),
        _ => None,
    }
}

impl Other {
    pub(crate) fn unsupported(&self) -> syn::Error {
        let keyword = self.keyword.to_string();
        let what = match &*keyword {
            "union" | "trait" | "use" | "mod" | "static" | "type" => format!("a `{keyword}`"),
            "enum" | "impl" | "extern" => format!("an `{keyword}`"),
            "const" => "a `const`, which cannot hold a value that starts later; a `static` can".to_owned(),
            _ => "this".to_owned(),
        };
        syn::Error::new(
            self.span(),
            format!(
                "`#[mirakuru::fixture]` belongs on a test function, on `static NAME: T;`, on a fixture \
                 function or on a struct, not on {what}"
            ),
        )
    }

    fn span(&self) -> Span {
        self.keyword.span()
    }
}

#[cfg(test)]
mod tests {
    use quote::quote;

    use super::*;

    fn function(tokens: TokenStream) -> Function {
        match parse(tokens) {
            Ok(Item::Fn(function)) => function,
            _ => panic!("no function"),
        }
    }

    #[test]
    fn a_static_without_a_value() {
        let tokens = quote!(
            #[doc = "x"]
            pub(crate) static REDIS: TcpExecutor;
        );
        let Ok(Item::Static(item)) = parse(tokens) else {
            panic!("no static");
        };
        assert_eq!(item.ident, "REDIS");
        assert_eq!(item.attrs.len(), 1);
        assert!(item.value.is_none() && item.mutability.is_none());
    }

    #[test]
    fn a_function_without_a_body() {
        let item = function(quote!(
            pub fn redis() -> TcpExecutor;
        ));
        assert!(item.body.is_none());
        assert_eq!(item.form(), Form::Fixture);
    }

    #[test]
    fn tests_are_known_by_their_attributes() {
        for attr in [
            quote!(test),
            quote!(::core::prelude::v1::test),
            quote!(tokio::test(flavor = "current_thread")),
            quote!(rstest),
            quote!(test_case(1)),
            quote!(wasm_bindgen_test),
            quote!(apply(template)),
            quote!(bench),
        ] {
            assert_eq!(
                function(quote!(#[#attr] fn f(a: A) {})).form(),
                Form::Test,
                "{attr}"
            );
        }
    }

    #[test]
    fn below_a_test_attribute_there_is_only_a_function_without_parameters() {
        assert_eq!(
            function(quote!(
                fn f() {}
            ))
            .form(),
            Form::Test
        );
        assert_eq!(
            function(quote!(
                fn f() -> anyhow::Result<()> {}
            ))
            .form(),
            Form::Test
        );
        assert_eq!(
            function(quote!(
                fn f() -> TestResult {}
            ))
            .form(),
            Form::Test
        );
        assert_eq!(
            function(quote!(
                fn f() -> Client {}
            ))
            .form(),
            Form::Fixture
        );
        assert_eq!(
            function(quote!(
                fn f(a: A) {}
            ))
            .form(),
            Form::Fixture
        );
    }

    #[test]
    fn inner_attributes_move_to_the_function() {
        let item = function(quote!(
            fn f() {
                #![allow(unused)]
                let x = 1;
            }
        ));
        assert_eq!(item.attrs.len(), 1);
        assert_eq!(
            item.body.unwrap().stream().to_string(),
            quote!(let x = 1;).to_string()
        );
    }

    #[test]
    fn other_items() {
        for (tokens, what) in [
            (
                quote!(
                    enum E {}
                ),
                "an `enum`",
            ),
            (
                quote!(
                    pub mod m {}
                ),
                "a `mod`",
            ),
            (quote!(impl S {}), "an `impl`"),
            (
                quote!(
                    const X: u8 = 1;
                ),
                "a `const`",
            ),
        ] {
            let Ok(Item::Other(other)) = parse(tokens) else {
                panic!("should be unsupported");
            };
            assert!(other.unsupported().to_string().contains(what));
        }
    }

    #[test]
    fn return_types() {
        assert!(matches!(
            function(quote!(
                fn f() -> () {}
            ))
            .gives(),
            Gives::Nothing
        ));
        assert!(matches!(
            function(quote!(
                fn f() -> ! {}
            ))
            .gives(),
            Gives::Unnameable
        ));
        assert!(matches!(
            function(quote!(
                fn f() -> Result<impl A, ()> {}
            ))
            .gives(),
            Gives::Unnameable
        ));
        assert!(matches!(
            function(quote!(
                fn f() -> u8 {}
            ))
            .gives(),
            Gives::Type(_)
        ));
        let shared: Type = syn::parse_quote!(&'static T);
        assert!(behind_static(&shared).is_some());
        for other in [quote!(&T), quote!(&'a T), quote!(&'static mut T), quote!(T)] {
            assert!(behind_static(&syn::parse2(other).unwrap()).is_none());
        }
    }
}
