//! Decides which parameter of the function receives which fixture.

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::ext::IdentExt as _;
use syn::{Attribute, FnArg, Ident, Pat, PatType, Type};

use crate::args::{Args, Target};
use crate::errors::Errors;
use crate::item::Function;
use crate::names::{self, Needs};
use crate::uses::{self, is_same};

/// Which parameter each fixture is bound to, in the order of the attributes.
pub(crate) struct Bindings {
    parameters: Vec<Option<usize>>,
    /// Whether a name could not be resolved. The error has already been reported, and a parameter
    /// may lack its fixture.
    pub(crate) incomplete: bool,
    /// The name under which the recipes below can use each fixture: its parameter's name, or the
    /// name in its attribute.
    names: Vec<Option<Ident>>,
    needs: Needs,
}

/// Binds fixtures to parameters. Fixtures that name their parameter come first. Every other fixture
/// gets the first free parameter.
pub(crate) fn parameters(item: &Function, fixtures: &[Args], errors: &mut Errors) -> Bindings {
    let mut bindings = Bindings {
        parameters: vec![None; fixtures.len()],
        incomplete: false,
        names: vec![None; fixtures.len()],
        needs: vec![Vec::new(); fixtures.len()],
    };
    if item.body.is_none() {
        return bindings;
    }
    for (index, fixture) in fixtures.iter().enumerate() {
        if let Target::Named(name) = fixture.target() {
            let uses = |fixture: &Args| names::uses_name(fixture, name);
            if names_of(item).all(|(_, known)| !is_same(known, name)) && fixtures.iter().any(uses) {
                // The fixture has no parameter, so only fixtures below it can use it. If only
                // fixtures above it do, the attributes are in the wrong order.
                bindings.incomplete |= !fixtures[index + 1..].iter().any(uses);
                let has_it = |other: &Args| matches!(other.target(), Target::Named(it) if is_same(it, name));
                if fixtures[..index].iter().any(has_it) {
                    errors.at(
                        name.span(),
                        format!("a fixture above is already called `{name}`: choose another name"),
                    );
                }
                continue;
            }
            match named(item, name, &bindings) {
                Ok(parameter) => bindings.parameters[index] = Some(parameter),
                Err(message) => {
                    errors.at(name.span(), message);
                    bindings.incomplete = true;
                }
            }
        }
    }
    for (index, fixture) in fixtures.iter().enumerate() {
        if let Target::Free = fixture.target() {
            bindings.parameters[index] = (0..item.sig.inputs.len()).find(|&parameter| {
                let free = !bindings.parameters.contains(&Some(parameter));
                free && item
                    .parameter(parameter)
                    .is_some_and(|it| !has_attribute_of_its_own(it) && !is_context(item, it))
            });
        }
    }
    for (index, fixture) in fixtures.iter().enumerate() {
        bindings.names[index] = match fixture.target() {
            Target::Named(name) => Some(name.clone()),
            _ => bindings
                .of(index)
                .and_then(|index| parameter_name(item.parameter(index)?))
                .cloned(),
        };
    }
    names_stand_once(item, &mut bindings, errors);
    let mut others = Vec::new();
    for (index, input) in item.sig.inputs.iter().enumerate() {
        if !bindings.is_bound(index) {
            others.append(&mut declared_by(input));
        }
    }
    let fixtures: Vec<&Args> = fixtures.iter().collect();
    bindings.needs = names::needs(&fixtures, &bindings.names, &others, errors);
    bindings
}

/// Reports parameters with the same name. rustc would not report them, because they become
/// variables, and a variable may hide an earlier one. Skips parameters with a `cfg`, because rustc
/// may keep only one of them.
fn names_stand_once(item: &Function, bindings: &mut Bindings, errors: &mut Errors) {
    let conditional = |attr: &Attribute| attr.path().is_ident("cfg") || attr.path().is_ident("cfg_attr");
    let always = |&(index, _): &(usize, &Ident)| {
        let parameter = item.parameter(index);
        parameter.is_some_and(|parameter| !parameter.attrs.iter().any(conditional))
    };
    let names: Vec<(usize, &Ident)> = names_of(item).filter(always).collect();
    for (at, (index, name)) in names.iter().enumerate() {
        let same = names[..at].iter().find(|(_, other)| is_same(other, name));
        if same.is_some_and(|(other, _)| bindings.is_bound(*other) || bindings.is_bound(*index)) {
            errors.at(
                name.span(),
                format!("another parameter is already called `{}`", name.unraw()),
            );
            bindings.incomplete = true;
        }
    }
}

/// The variables that a parameter declares.
fn declared_by(input: &FnArg) -> Vec<Ident> {
    match input {
        FnArg::Receiver(receiver) => vec![receiver.self_token.into()],
        FnArg::Typed(parameter) => uses::declared_by(&parameter.pat),
    }
}

/// The index and the name of each parameter that has a name.
fn names_of(item: &Function) -> impl Iterator<Item = (usize, &Ident)> {
    let all = 0..item.sig.inputs.len();
    all.filter_map(|index| Some((index, parameter_name(item.parameter(index)?)?)))
}

fn named(item: &Function, name: &Ident, bindings: &Bindings) -> Result<usize, String> {
    let Some((found, _)) = names_of(item).find(|(_, known)| is_same(known, name)) else {
        let mut names = Vec::new();
        for (_, name) in names_of(item) {
            names.push(format!("`{name}`"));
        }
        let there_are = match names.len() {
            0 => "the function has none; a name for the service is a string, `name = \"..\"`".to_owned(),
            _ => format!("there is {}", names.join(", ")),
        };
        return Err(format!("no parameter is called `{name}`: {there_are}"));
    };
    if bindings.parameters.contains(&Some(found)) {
        return Err(format!(
            "another fixture is already given to `{name}`: name another parameter"
        ));
    }
    if item.parameter(found).is_some_and(has_attribute_of_its_own) {
        return Err(format!(
            "the parameter `{name}` has an attribute of its own, which gives it a value: remove that \
                attribute, or name another parameter"
        ));
    }
    Ok(found)
}

impl Bindings {
    pub(crate) fn of(&self, fixture: usize) -> Option<usize> {
        self.parameters.get(fixture).copied().flatten()
    }

    /// The fixtures that this one needs, each with its name in this one's expressions.
    pub(crate) fn needs(&self, fixture: usize) -> impl Iterator<Item = (usize, &Ident)> {
        let needs = self.needs.get(fixture).into_iter().flatten();
        needs.filter_map(|&other| Some((other, self.names[other].as_ref()?)))
    }

    pub(crate) fn is_bound(&self, parameter: usize) -> bool {
        self.parameters.contains(&Some(parameter))
    }
}

impl Function {
    pub(crate) fn parameter(&self, index: usize) -> Option<&PatType> {
        match self.sig.inputs.get(index)? {
            FnArg::Typed(parameter) => Some(parameter),
            FnArg::Receiver(_) => None,
        }
    }
}

/// Whether a parameter is the test's context, because its type is the one in
/// `#[test_context(Type)]`.
fn is_context(item: &Function, parameter: &PatType) -> bool {
    let ty = match &*parameter.ty {
        Type::Reference(reference) => &*reference.elem,
        ty => ty,
    };
    let ty = ty.to_token_stream().to_string();
    item.attrs.iter().any(|attr| {
        let is_it = attr
            .path()
            .segments
            .last()
            .is_some_and(|last| last.ident == "test_context");
        let arguments = attr.meta.require_list().ok().filter(|_| is_it);
        arguments.is_some_and(|list| {
            let mut before_comma = TokenStream::new();
            for token in list.tokens.clone() {
                if matches!(&token, TokenTree::Punct(punct) if punct.as_char() == ',') {
                    break;
                }
                before_comma.extend([token]);
            }
            before_comma.to_string() == ty
        })
    })
}

/// The name of a parameter, if its pattern is a name (`redis`, `mut redis`).
pub(crate) fn parameter_name(parameter: &PatType) -> Option<&Ident> {
    match &*parameter.pat {
        Pat::Ident(ident) => Some(&ident.ident),
        _ => None,
    }
}

/// Whether an attribute may set the parameter's value, as rstest's attributes do. Lints and `cfg`
/// do not.
pub(crate) fn has_attribute_of_its_own(parameter: &PatType) -> bool {
    let about_the_value = |attr: &Attribute| {
        let path = attr.path();
        !["allow", "expect", "warn", "deny", "forbid", "cfg", "cfg_attr"]
            .iter()
            .any(|word| path.is_ident(word))
    };
    parameter.attrs.iter().any(about_the_value)
}

#[cfg(test)]
mod tests {
    use quote::quote;

    use super::*;
    use crate::args;
    use crate::item::{self, Item};

    fn bind(attributes: &[TokenStream], function: TokenStream) -> (Vec<Option<usize>>, Vec<String>) {
        let mut errors = Errors::default();
        let Ok(Item::Fn(mut item)) = item::parse(quote!(#(#[mirakuru::fixture(#attributes)])* #function))
        else {
            panic!("no function");
        };
        let mut fixtures = args::stacked(quote!(), &mut item.attrs, &mut errors);
        fixtures.remove(0);
        let bindings = parameters(&item, &fixtures, &mut errors);
        (bindings.parameters, errors.messages())
    }

    #[test]
    fn in_order() {
        let (bindings, errors) = bind(
            &[quote!(a()), quote!(b())],
            quote!(
                fn f(#[case] n: u8, a: A, mut b: B, c: C) {}
            ),
        );
        assert_eq!(bindings, [Some(1), Some(2)]);
        assert!(errors.is_empty());
    }

    #[test]
    fn the_context_of_a_test_is_no_fixtures() {
        let bind = |attr: TokenStream| {
            let attributes = [quote!(a()), quote!(b())];
            let function = quote!(
                #attr
                fn f(ctx: &mut my::Context, a: A) {}
            );
            bind(&attributes, function).0
        };
        assert_eq!(bind(quote!(#[test_context(my::Context)])), [Some(1), None]);
        assert_eq!(
            bind(quote!(#[test_context::test_context(my::Context, skip_teardown)])),
            [Some(1), None]
        );
        assert_eq!(bind(quote!(#[other(my::Context)])), [Some(0), Some(1)]);
    }

    #[test]
    fn more_fixtures_than_parameters() {
        let (bindings, errors) = bind(
            &[quote!(a()), quote!(b())],
            quote!(
                fn f(a: A) {}
            ),
        );
        assert_eq!(bindings, [Some(0), None]);
        assert!(errors.is_empty());
    }

    #[test]
    fn names_come_first() {
        let attributes = [
            quote!(a()),
            quote!(b(), name = a),
            quote!(c(), name = _),
            quote!(d()),
        ];
        let (bindings, errors) = bind(
            &attributes,
            quote!(
                fn f(a: A, #[allow(unused)] b: B, c: C) {}
            ),
        );
        assert_eq!(bindings, [Some(1), Some(0), None, Some(2)]);
        assert!(errors.is_empty());
    }

    #[test]
    fn names_for_those_below() {
        let (bindings, errors) = bind(
            &[quote!(a(), name = x), quote!(b(x))],
            quote!(
                fn f(b: B) {}
            ),
        );
        assert_eq!(bindings, [None, Some(0)]);
        assert!(errors.is_empty());
        let (_, errors) = bind(
            &[quote!(a(), name = x), quote!(b(), name = x), quote!(c(x))],
            quote!(
                fn f(c: C) {}
            ),
        );
        assert_eq!(
            errors,
            ["a fixture above is already called `x`: choose another name"]
        );
        let (_, errors) = bind(
            &[quote!(x(), name = x), quote!(x())],
            quote!(
                fn f(b: B) {}
            ),
        );
        assert_eq!(errors, ["no parameter is called `x`: there is `b`"]);
        let (_, errors) = bind(
            &[quote!(a(x.url())), quote!(b(), name = x)],
            quote!(
                fn f(a: A) {}
            ),
        );
        assert_eq!(
            errors,
            ["`x` is declared below: move it above the service that needs it"]
        );
    }

    #[test]
    fn the_variables_of_other_parameters_are_in_scope() {
        let (_, errors) = bind(
            &[quote!(a()), quote!(b(cases.len(), cace.len(), self.x))],
            quote!(
                fn f(&self, case: A, other: B, #[case] (cases, Case { cace, .. }): C) {}
            ),
        );
        assert!(errors.is_empty(), "{errors:?}");
    }

    #[test]
    fn parameters_with_one_name() {
        let one_name = ["another parameter is already called `a`"];
        let (_, errors) = bind(
            &[quote!(a()), quote!(b())],
            quote!(
                fn f(a: A, r#a: B) {}
            ),
        );
        assert_eq!(errors, one_name);
        let (_, errors) = bind(
            &[quote!(a())],
            quote!(
                fn f(#[case] a: A, a: B) {}
            ),
        );
        assert_eq!(errors, one_name);
    }

    #[test]
    fn names_that_cannot_be() {
        let (_, errors) = bind(
            &[quote!(a(), name = x)],
            quote!(
                fn f(a: A, b: B) {}
            ),
        );
        assert_eq!(errors, ["no parameter is called `x`: there is `a`, `b`"]);
        let (_, errors) = bind(
            &[quote!(a(), name = a), quote!(b(), name = a)],
            quote!(
                fn f(a: A) {}
            ),
        );
        assert!(errors[0].starts_with("another fixture"));
        let (_, errors) = bind(
            &[quote!(a(), name = a)],
            quote!(
                fn f(#[case] a: A) {}
            ),
        );
        assert!(errors[0].contains("an attribute of its own"));
    }
}
