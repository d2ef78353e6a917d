//! Generates the code: a builder chain for each fixture, one call into the runtime for each
//! function, and variables before the user's own body. The user's tokens keep their spans, so that
//! rustc's errors point at them.
//!
//! After a mistake, the generated code contains `unreachable!()` in place of the wrong parts. So
//! the item still exists with its types, and rustc reports nothing more.

pub(crate) mod system;

use proc_macro2::{Delimiter, Group, Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ext::IdentExt as _;
use syn::punctuated::Punctuated;
use syn::{Expr, ExprTuple, PatType, ReturnType, Signature, Type};

use crate::args::{self, Args, BUILD, Entry, Name, is_rstest_fixture, literal};
use crate::bind::{Bindings, has_attribute_of_its_own, parameter_name};
use crate::errors::Errors;
use crate::item::{Form, Function, Gives, Static, behind_static};

/// Turns `static NAME: T;` into a static of type `Shared<T>`. Generates no second item, because its
/// name could hide a crate.
pub(crate) fn on_static(item: &Static, fixtures: &[Args], errors: &Errors) -> TokenStream {
    let Static {
        attrs,
        vis,
        static_token,
        ident,
        ty,
        ..
    } = item;
    let name = ident.to_string();
    let init = if errors.any() {
        quote!(::core::unreachable!())
    } else {
        shared_value(&fixtures[0], ty, &name)
    };
    quote! {
        #(#attrs)*
        #vis #static_token #ident: ::mirakuru::Shared<#ty> = ::mirakuru::Shared::named(#name, || #init);
    }
}

/// Generates a test. Its services start before its body runs, and are stopped after it, the last
/// one first.
pub(crate) fn on_test(
    item: &Function,
    fixtures: &[Args],
    bindings: &Bindings,
    errors: &Errors,
) -> TokenStream {
    let Function { attrs, vis, .. } = item;
    let body = item.body.as_ref().map(relocated);
    if errors.any() {
        return broken(item, bindings);
    }
    let signature = without_bound(item, bindings);
    let services = own_services(item, fixtures, bindings);
    let value = ours("_value");
    let run = match item.gives() {
        // The item `const _` keeps the body from being the tail expression, whose temporaries would
        // outlive the services before edition 2024. After a body that never returns, rustc would
        // warn about a statement, but not about an item.
        Gives::Nothing => quote!(#body const _: () = ();),
        Gives::Unnameable => quote!(#body),
        // The closure catches an `Err` that `?` or `return` returns, so that the failure is
        // recorded before the services end.
        Gives::Type(ty) => {
            let (asyncness, run) = match &item.sig.asyncness {
                Some(asyncness) => (quote!(#asyncness), quote!(.await)),
                None => (quote!(), quote!()),
            };
            quote! {
                #[allow(unused_imports)]
                use ::mirakuru::__private::{AnyOutcome as _, ExitOutcome as _};
                let #value: #ty = (#asyncness || -> #ty #body)() #run;
                ::mirakuru::__private::Outcome(&#value).tell();
                #value
            }
        }
    };
    quote! {
        #(#attrs)*
        #vis #signature {
            #services
            #run
        }
    }
}

/// Generates a fixture function. rstest's attribute makes it a fixture. Its body starts the
/// services first.
pub(crate) fn on_fixture(
    item: &Function,
    fixtures: &[Args],
    bindings: &Bindings,
    errors: &Errors,
) -> TokenStream {
    let Function { attrs, vis, sig, .. } = item;
    if errors.any() {
        return broken(item, bindings);
    }
    let signature = without_bound(item, bindings);
    let rstest = rstest_attribute(item);
    let body = match &sig.output {
        ReturnType::Type(_, ty) => match behind_static(ty) {
            Some(ty) => shared_fixture(item, ty, fixtures, bindings),
            None => own_fixture(item, fixtures, bindings),
        },
        ReturnType::Default => own_fixture(item, fixtures, bindings),
    };
    quote! {
        #rstest
        #(#attrs)*
        #vis #signature { #body }
    }
}

/// Returns rstest's `#[fixture]`, unless the user has written it.
fn rstest_attribute(item: &Function) -> Option<TokenStream> {
    let wanted = cfg!(feature = "rstest") && !item.attrs.iter().any(is_rstest_fixture);
    wanted.then(|| quote!(#[::mirakuru::__private::rstest::fixture]))
}

/// Generates the body of a fixture function whose services are started for each test.
fn own_fixture(item: &Function, fixtures: &[Args], bindings: &Bindings) -> TokenStream {
    let services = own_services(item, fixtures, bindings);
    let value = ours("_value");
    match (&item.body, item.gives()) {
        (None, Gives::Type(ty)) => {
            let service = taken(&fixtures[0], &handle(0), ty);
            quote!(#services let #value: #ty = #service; #value)
        }
        (None, _) => {
            let value = handle(0);
            quote!(#services #value)
        }
        (Some(body), Gives::Type(ty)) => {
            let body = relocated(body);
            match item.sig.asyncness {
                Some(_) => quote!(#services let #value: #ty = #body; #value),
                None => quote!(#services let #value: #ty = (|| -> #ty #body)(); #value),
            }
        }
        (Some(body), _) => {
            let body = relocated(body);
            quote!(#services #body)
        }
    }
}

/// Generates the body of a fixture function `-> &'static T`. Its value is created at the first use,
/// and kept in a static inside the function.
fn shared_fixture(item: &Function, ty: &Type, fixtures: &[Args], bindings: &Bindings) -> TokenStream {
    let name = item.sig.ident.to_string();
    let once = quote! {
        static __MIRAKURU_SHARED: ::mirakuru::__private::Once<#ty> = ::mirakuru::__private::Once::new(#name);
    };
    let value = match (&item.body, fixtures[0].static_name()) {
        (None, Some(in_static)) => {
            let started = started_alone(&fixtures[0], &name);
            let service = located(&handle(0), ty);
            let start = quote!(|| {
                let (#service,) = #started?;
                ::core::result::Result::Ok(#service)
            });
            let share = quote_spanned! {service.span()=>
                ::mirakuru::__private::Taken(&#in_static).share(&__MIRAKURU_SHARED, #start)
            };
            return quote! {
                #once
                #[allow(unused_imports)]
                use ::mirakuru::__private::AnyTaken as _;
                #share
            };
        }
        (None, None) => shared_value(&fixtures[0], ty, &name),
        (Some(body), _) => {
            let body = relocated(body);
            let services = services(item, fixtures, bindings, &|members| {
                let started = started_shared(members);
                quote!(#started?)
            });
            let value = ours("_value");
            quote!({
                #services
                let #value: #ty = (move || -> #ty #body)();
                ::core::result::Result::Ok(#value)
            })
        }
    };
    quote! {
        #once
        __MIRAKURU_SHARED.get_or_start(move || #value)
    }
}

/// Generates the start of one service for all tests: an expression of type
/// `Result<(Handle,), Error>`.
fn started_alone(fixture: &Args, name: &str) -> TokenStream {
    started_shared(&[Member {
        fixture,
        name: name.to_owned(),
        slot: handle(0),
        needs: Vec::new(),
    }])
}

/// Generates a block that starts the fixture for all tests. Its value is a `Result<T, Error>`.
fn shared_value(fixture: &Args, ty: &Type, name: &str) -> TokenStream {
    let (service, value) = (handle(0), ours("_value"));
    let found = taken(fixture, &service, ty);
    let started = started_alone(fixture, name);
    quote!({
        let (#service,) = #started?;
        let #value: #ty = #found;
        ::core::result::Result::Ok(#value)
    })
}

/// Generates the item after a mistake. Parameters that receive a fixture become variables of the
/// right type, which never get a value.
fn broken(item: &Function, bindings: &Bindings) -> TokenStream {
    let Function { attrs, vis, sig, .. } = item;
    let form = item.form();
    let lacks_its_body = item.is_test_without_a_body();
    let missing = |index: &usize| {
        let may_be_meant = || {
            item.parameter(*index)
                .is_some_and(|it| !has_attribute_of_its_own(it))
        };
        bindings.is_bound(*index)
            || item.takes_fixtures_only()
            || lacks_its_body
            || (bindings.incomplete && may_be_meant())
    };
    let mut signature = Signature {
        inputs: remaining(item, |index| !missing(&index)),
        ..sig.clone()
    };
    if let ReturnType::Type(_, ty) = &mut signature.output {
        if let Type::Reference(reference) = &mut **ty {
            reference
                .lifetime
                .get_or_insert_with(|| syn::parse_quote!('static));
        }
    }
    let rstest = (form == Form::Fixture && sig.receiver().is_none() && !lacks_its_body)
        .then(|| rstest_attribute(item))
        .flatten();
    let mut lets = TokenStream::new();
    for index in 0..sig.inputs.len() {
        if let Some(PatType { pat, ty, .. }) = item.parameter(index).filter(|_| missing(&index)) {
            lets.extend(quote!(let #pat: #ty = ::core::unreachable!();));
        }
    }
    let nothing_runs_it = form == Form::Test && item.lacks_an_async_test_attribute().is_some();
    if nothing_runs_it {
        signature.asyncness = None;
    }
    let body = match &item.body {
        Some(body) if !item.is_shared() && !nothing_runs_it => body.stream(),
        _ => quote!(::core::unreachable!()),
    };
    quote! {
        #rstest
        #(#attrs)*
        #[allow(unused, unreachable_code)]
        #vis #signature {
            #lets
            #body
        }
    }
}

/// Generates the start of a function's services, and the variables for its parameters. `start`
/// generates the expression that starts the members of one system and returns their handles as a
/// tuple.
///
/// Each service is moved into a variable of its own, in the order of the attributes. The parameter
/// gets that value, or a reference to it. So the last service is dropped first, and each service
/// ends before the services that it needs.
fn services(
    item: &Function,
    fixtures: &[Args],
    bindings: &Bindings,
    start: &dyn Fn(&[Member<'_>]) -> TokenStream,
) -> TokenStream {
    let parameter = |index: usize| bindings.of(index).and_then(|index| item.parameter(index));
    let is_shared = |index: usize| {
        let behind_static = parameter(index).and_then(|it| behind_static(&it.ty));
        behind_static.is_some() && !fixtures[index].is_static()
    };
    let (mut shared, mut members, mut lets) = (TokenStream::new(), Vec::new(), TokenStream::new());
    for (index, fixture) in fixtures.iter().enumerate() {
        if is_shared(index) {
            shared.extend(service_shared(item, fixture, bindings, index));
            continue;
        }
        let service = handle(index);
        match parameter(index) {
            Some(parameter) => lets.extend(binding(fixture, parameter, &service)),
            None if item.body.is_some() => lets.extend(quote!(let #service = #service;)),
            None => {}
        }
        let mut needs = Vec::new();
        for (other, name) in bindings.needs(index) {
            // A shared service is already a variable, so it has no slot.
            if !is_shared(other) {
                needs.push((handle(other), name));
            }
        }
        members.push(Member {
            fixture,
            name: name_of(item, bindings, index),
            slot: service,
            needs,
        });
    }
    let start = if members.is_empty() {
        quote!()
    } else {
        let handles = members.iter().map(|member| &member.slot).rev();
        let started = start(&members);
        quote!(let (#(#handles,)*) = #started;)
    };
    quote!(#shared #start #lets)
}

/// Generates the code that starts the services of a single test.
fn own_services(item: &Function, fixtures: &[Args], bindings: &Bindings) -> TokenStream {
    services(item, fixtures, bindings, &|members| {
        let (system, add, take) = (system_variable(), add(members), take(members));
        let skip = match item.gives() {
            _ if item.form() != Form::Test => None,
            Gives::Nothing => Some(quote!(return)),
            Gives::Type(ty) => Some(quote!({
                #[allow(unused_imports)]
                use ::mirakuru::__private::AnySkip as _;
                return ::mirakuru::__private::Skip(::core::marker::PhantomData::<fn() -> #ty>).value();
            })),
            Gives::Unnameable => None,
        };
        let started = match item.sig.asyncness {
            Some(_) => quote!(#system.start_async(#take).await),
            None => quote!(#system.start(#take)),
        };
        let start = match skip {
            // A panic here would be taken for the panic that the test expects.
            _ if item.has_attr("should_panic") => {
                let expected = item.expected_panic();
                quote!(match #started.or_report(#expected) {
                    ::core::option::Option::Some(handles) => handles,
                    ::core::option::Option::None => return,
                })
            }
            Some(skip) => quote!(match #started.or_skip() {
                ::core::option::Option::Some(handles) => handles,
                ::core::option::Option::None => #skip,
            }),
            None => quote!(#started.or_panic()),
        };
        // With rstest's `#[once]`, all tests share the fixture, so it must not end with one test.
        let new = match item.has_attr("once") {
            true => quote!(new),
            false => quote!(of_test),
        };
        quote!({
            let mut #system = ::mirakuru::__private::System::#new();
            #add
            #start
        })
    })
}

/// Generates the variable for a parameter `&'static T`. Its service is shared, even if the
/// function's own value is not.
fn service_shared(item: &Function, fixture: &Args, bindings: &Bindings, index: usize) -> TokenStream {
    let Some(parameter) = bindings.of(index).and_then(|index| item.parameter(index)) else {
        return quote!();
    };
    let Some(ty) = behind_static(&parameter.ty) else {
        return quote!();
    };
    let name = name_of(item, bindings, index);
    let cell = format_ident!("__MIRAKURU_SERVICE_{index}");
    let value = shared_value(fixture, ty, &name);
    let PatType { attrs, pat, .. } = parameter;
    quote! {
        static #cell: ::mirakuru::__private::Once<#ty> = ::mirakuru::__private::Once::new(#name);
        #(#attrs)*
        let #pat: &'static #ty = #cell.get_or_start(move || #value);
    }
}

/// Generates the variable for a parameter.
fn binding(fixture: &Args, parameter: &PatType, service: &Ident) -> TokenStream {
    let PatType { attrs, pat, ty, .. } = parameter;
    match &**ty {
        Type::Reference(reference) => {
            let mutability = &reference.mutability;
            let ampersand = quote_spanned!(reference.and_token.span=> &);
            let value = match mutability {
                Some(_) => taken(fixture, service, &reference.elem),
                None => quote!(#service),
            };
            let borrowed = located(service, ty);
            quote! {
                let #mutability #service = #value;
                #(#attrs)*
                let #pat: #ty = #ampersand #mutability #borrowed;
            }
        }
        _ => {
            let value = taken(fixture, service, ty);
            quote! {
                #(#attrs)*
                let #pat: #ty = #value;
            }
        }
    }
}

/// Generates the value for a variable that holds a handle. It has the span of the type, so that
/// rustc points there if the type is wrong, or if the handle of a static would be moved.
fn taken(fixture: &Args, service: &Ident, ty: &Type) -> TokenStream {
    let service = located(service, ty);
    taken_value(fixture, service.span(), &quote!(#service), ty)
}

fn taken_value(fixture: &Args, place: Span, handle: &TokenStream, ty: &Type) -> TokenStream {
    let Some(name) = fixture.static_name() else {
        return handle.clone();
    };
    let taken = quote_spanned! {place=>
        use ::mirakuru::__private::AnyTaken as _;
        ::mirakuru::__private::Taken(&#name).take::<#ty>(#handle)
    };
    quote_spanned!(place=> { #[allow(unused_imports)] #taken })
}

/// A service that starts together with others.
struct Member<'a> {
    fixture: &'a Args,
    /// The name of the service in messages.
    name: String,
    /// The variable that holds the service's slot, and later its handle.
    slot: Ident,
    /// The slots of the services that this one needs, and their names in its recipe.
    needs: Vec<(Ident, &'a Ident)>,
}

/// Generates statements that add services to the variable `__system`:
/// `let db = __system.service("db", recipe);`. If a recipe uses the handles of other services, it
/// is a closure.
fn add(members: &[Member<'_>]) -> TokenStream {
    let mut lets = TokenStream::new();
    for member in members {
        let Member {
            fixture,
            name,
            slot,
            needs,
        } = member;
        let place = Place::of(fixture);
        let recipe = recipe(fixture, &place);
        // If the attribute has the key `queue`, the recipe decides. Otherwise the service waits for
        // its ports.
        let queue = fixture.entry("queue").is_none();
        let method = if needs.is_empty() { "service" } else { "after" };
        let method = Ident::new(method, place.first);
        let arguments = if needs.is_empty() {
            quote!(#name, #queue, #recipe)
        } else {
            let of_needs = |each: fn(&Ident, &Ident) -> TokenStream| {
                let each = needs.iter().map(|(slot, name)| each(slot, name));
                tuple(each.collect())
            };
            let clones = of_needs(|slot, _| quote!(::core::clone::Clone::clone(&#slot)));
            let slots = of_needs(|slot, _| quote!(#slot));
            let names = of_needs(|_, name| quote!(#name));
            let handles = of_needs(|slot, _| quote!(#slot.get()));
            quote!(#name, #queue, #clones, |#slots| {
                #[allow(unused_variables, non_snake_case)]
                let #names = #handles;
                #recipe
            })
        };
        let arguments = place.parenthesised(arguments);
        let system = at(&system_variable(), Span::mixed_site().located_at(place.first));
        let call = quote_spanned!(place.first=> #system.#method #arguments);
        lets.extend(quote!(let #slot = #call;));
    }
    lets
}

/// Generates a tuple. A long one contains nested tuples, because the runtime accepts at most eight
/// slots in each.
fn tuple(mut items: Vec<TokenStream>) -> TokenStream {
    while items.len() > 8 {
        items = items.chunks(8).map(|items| quote!((#(#items,)*))).collect();
    }
    quote!((#(#items,)*))
}

/// Generates a closure that takes the handles of the started services, the last one first.
fn take(members: &[Member<'_>]) -> TokenStream {
    let slots = members.iter().map(|member| &member.slot).rev();
    quote!(|| (#(#slots.take(),)*))
}

/// The span for the code of one fixture. If the user's expression does not implement a trait, rustc
/// reports that once per span, so all code that needs the trait has the same span.
struct Place {
    first: Span,
    last: Span,
}

impl Place {
    fn of(args: &Args) -> Place {
        let wait_for = args.entry("wait_for").and_then(|entry| entry.value.as_ref());
        let expr = args.expr.as_ref().or(wait_for);
        let tokens: Vec<TokenTree> = expr.to_token_stream().into_iter().collect();
        let span = |token: Option<&TokenTree>| token.map_or_else(Span::call_site, TokenTree::span);
        Place {
            first: span(tokens.first()),
            last: span(tokens.last()),
        }
    }

    fn parenthesised(&self, tokens: TokenStream) -> Group {
        let mut group = Group::new(Delimiter::Parenthesis, tokens);
        group.set_span(self.last);
        group
    }
}

/// Generates the start of services for all tests: an expression of type
/// `Result<(Handle, ..), Error>`.
fn started_shared(members: &[Member<'_>]) -> TokenStream {
    let is_any = |wanted: &str| {
        let mut scopes = members.iter().filter_map(|member| {
            let scope = member.fixture.entry("scope")?;
            scope.literal()
        });
        scopes.any(|scope| scope.value() == wanted)
    };
    // Services that start together all get the narrowest of their scopes.
    let scope = if is_any("process") {
        quote!(Process)
    } else if is_any("users") {
        quote!(Users)
    } else {
        quote!(Run)
    };
    let (system, add, take) = (system_variable(), add(members), take(members));
    quote! {
        ::mirakuru::__private::start_shared(::mirakuru::__private::Scope::#scope, |#system| { #add #take })
    }
}

fn recipe(args: &Args, place: &Place) -> TokenStream {
    if let Some(expr) = &args.expr {
        let optional = args.entry("optional").map(setter);
        let (of_name, ampersand) = match args::name(expr) {
            None => return quote!(#expr #optional),
            Some(Name::Type) => ("recipe", None),
            // A static is borrowed, because its value cannot be moved.
            Some(Name::Static) => ("recipe_in_static", Some(quote_spanned!(place.first=> &))),
        };
        let of_name = Ident::new(of_name, place.first);
        let path = quote_spanned!(place.first=> ::mirakuru::__private::#of_name);
        let argument = place.parenthesised(quote!(#ampersand #expr));
        return quote!(#path #argument #optional);
    }
    let program = args.entries.iter().find_map(|entry| program(args, entry));
    let setters = args
        .entries
        .iter()
        .filter(|entry| entry.setter().is_some())
        .map(setter);
    let readiness = args.entries.iter().find(|entry| entry.is_readiness());
    let readiness = readiness.map(|entry| self::readiness(entry, place));
    let builder = quote_spanned!(place.first=> ::mirakuru::Executor::builder);
    quote!(#builder(#program) #(#setters)* #readiness)
}

fn program(args: &Args, entry: &Entry) -> Option<TokenStream> {
    let value = entry.value.as_ref()?;
    if entry.key == "cmd" {
        return Some(value.to_token_stream());
    }
    let kind = match &*entry.key.to_string() {
        "bin" => quote!(new),
        "example" => quote!(example),
        _ => return None,
    };
    let name = literal(value)?;
    let bin = quote_spanned!(name.span()=> ::mirakuru::Bin::#kind(#name));
    let build = args
        .entries
        .iter()
        .filter(|entry| BUILD.iter().any(|key| entry.key == key));
    let build = build.map(setter);
    let path = path_of_bin(entry, &name.value());
    Some(quote!(#bin.__compiled(#path, ::core::env!("CARGO_MANIFEST_DIR")) #(#build)*))
}

/// Returns the path of a binary, if it belongs to the current package. Cargo sets the variable only
/// for integration tests and benches.
fn path_of_bin(entry: &Entry, name: &str) -> TokenStream {
    let (package, name) = name
        .split_once(':')
        .map_or((None, name), |(package, name)| (Some(package), name));
    let is_own =
        package.is_none_or(|package| std::env::var("CARGO_PKG_NAME").is_ok_and(|own| own == package));
    if entry.key != "bin" || !is_own {
        return quote!(::core::option::Option::None);
    }
    let variable = format!("CARGO_BIN_EXE_{name}");
    quote!(::core::option_env!(#variable))
}

fn setter(entry: &Entry) -> TokenStream {
    let Entry { key, value } = entry;
    match value {
        Some(Expr::Tuple(ExprTuple { elems, .. }))
            if ["env", "file", "listen_as"].iter().any(|pair| key == pair) =>
        {
            quote!(.#key(#elems))
        }
        _ => quote!(.#key(#value)),
    }
}

fn readiness(entry: &Entry, place: &Place) -> TokenStream {
    let Entry { key, value } = entry;
    let condition = match &*key.to_string() {
        "tcp" => match value {
            Some(Expr::Lit(lit)) if matches!(lit.lit, syn::Lit::Int(_)) => {
                quote!(::mirakuru::Tcp::port(#value))
            }
            Some(value) if literal(value).is_some() => quote!(::mirakuru::Tcp::addr(#value)),
            _ => quote!(::mirakuru::__private::tcp(#value)),
        },
        "http" => quote!(::mirakuru::Http::head(#value)),
        "unix" => quote!(::mirakuru::UnixSocket::path(#value)),
        "pid_file" => quote!(::mirakuru::PidFile::path(#value)),
        "banner" => quote!(::mirakuru::Banner::matching(#value)),
        "exec" => quote!(::mirakuru::Exec::succeeds(#value)),
        _ => {
            let value = place.parenthesised(value.to_token_stream());
            return quote!(.#key #value);
        }
    };
    quote!(.wait_for(#condition))
}

/// The name of a fixture in messages: the name of its parameter or of the fixture function. May be
/// empty.
fn name_of(item: &Function, bindings: &Bindings, index: usize) -> String {
    let parameter = bindings.of(index).and_then(|index| item.parameter(index));
    match parameter.and_then(parameter_name) {
        Some(name) => name.unraw().to_string(),
        None if item.body.is_none() => item.sig.ident.to_string(),
        None => String::new(),
    }
}

fn without_bound(item: &Function, bindings: &Bindings) -> Signature {
    Signature {
        inputs: remaining(item, |index| !bindings.is_bound(index)),
        ..item.sig.clone()
    }
}

fn remaining(item: &Function, keep: impl Fn(usize) -> bool) -> Punctuated<syn::FnArg, syn::Token![,]> {
    let inputs = item.sig.inputs.iter().enumerate();
    inputs
        .filter(|(index, _)| keep(*index))
        .map(|(_, parameter)| parameter.clone())
        .collect()
}

/// Returns the variable that holds a fixture's handle. The user's code cannot see it.
fn handle(index: usize) -> Ident {
    ours(&format!("_service_{index}"))
}

/// Returns the variable that holds the system. It is not called `system`, because a field may have
/// that name.
fn system_variable() -> Ident {
    ours("__system")
}

fn ours(name: &str) -> Ident {
    Ident::new(name, Span::mixed_site())
}

/// Gives a variable of the generated code a span at the end of a type that the user has written.
fn located(variable: &Ident, ty: &Type) -> Ident {
    let last = ty.to_token_stream().into_iter().last();
    let place = last.as_ref().map_or_else(Span::call_site, TokenTree::span);
    at(variable, variable.span().located_at(place))
}

/// Copies an identifier, which may be a raw one, with another span.
fn at(name: &Ident, place: Span) -> Ident {
    let mut name = name.clone();
    name.set_span(place);
    name
}

/// Copies the user's body with new braces. With the old ones, rustc would warn about unnecessary
/// braces around a one-line body.
fn relocated(body: &Group) -> Group {
    let mut group = Group::new(body.delimiter(), body.stream());
    group.set_span(Span::mixed_site().located_at(body.span()));
    group
}
