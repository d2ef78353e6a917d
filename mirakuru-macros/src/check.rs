//! Finds all mistakes that can be seen without types, in a list of small checks. Each check reports
//! all mistakes of its kind at the wrong token, with the remedy. rustc finds the mistakes that
//! depend on types, at the user's own tokens. The file is long because all checks are kept together
//! in the order in which they run.

use proc_macro2::TokenStream;
use syn::spanned::Spanned;
use syn::{
    BinOp, Expr, ExprBinary, ExprCall, ExprMethodCall, ExprPath, Fields, ItemStruct, Lit, LitStr, Type,
};

use crate::args::{Args, BUILD, Entry, PROGRAM, Target, Value, is_rstest_fixture, known, literal, setter};
use crate::bind::{Bindings, parameter_name};
use crate::errors::Errors;
use crate::fields::{Service, System};
use crate::item::{
    Form, Function, Gives, Static, behind_static, is_built_in, is_plain_test, takes_no_parameters,
};
use crate::names;
use crate::nearest::nearest;
use crate::placeholder;

/// Checks each attribute, whatever item it is on.
pub(crate) fn args(fixtures: &[Args], errors: &mut Errors) {
    for fixture in fixtures.iter().filter(|fixture| !fixture.broken) {
        for check in [
            something_is_to_be_started,
            keys_are_known,
            keys_stand_once,
            one_program,
            a_build_has_a_program,
            one_readiness,
            only_keys_of_ours_after_an_expression,
            expression_is_no_literal,
            values_have_the_right_form,
            placeholders_exist,
        ] {
            check(fixture, errors);
        }
    }
}

/// Checks `static NAME: T;`.
pub(crate) fn on_static(item: &Static, fixtures: &[Args], errors: &mut Errors) {
    if let Some(mutability) = &item.mutability {
        errors.at(
            mutability.span,
            "a shared fixture cannot be `static mut`: write `static`; a test that stops or restarts \
             a service needs its own",
        );
    }
    if let Some(value) = &item.value {
        errors.on(
            value,
            "a shared fixture has no value: the attribute gives it one; write `static NAME: T;`",
        );
    }
    one_attribute_only(
        fixtures,
        "a static holds one service: use a static for each",
        errors,
    );
    no_parameter_is_named(fixtures, "a static has none", errors);
}

/// Checks a struct's own attributes and its form. `others` are its other mirakuru attributes.
pub(crate) fn on_struct(item: &ItemStruct, arguments: &TokenStream, others: &[Args], errors: &mut Errors) {
    let name = &item.ident;
    if !matches!(item.fields, Fields::Named(_)) || item.fields.is_empty() {
        errors.at(
            name.span(),
            format!(
                "a system needs a named field for each service, as in `struct {name} {{ #[fixture(..)] \
                    db: Postgres }}`"
            ),
        );
    } else if !arguments.is_empty() {
        errors.on(
            arguments,
            "each field has its own attribute: write `#[mirakuru::fixture]` alone above the struct, and \
             `#[fixture(..)]` above its fields",
        );
    } else if let [other, ..] = others {
        errors.on_attribute(
            other,
            "one fixture attribute too many: write `#[mirakuru::fixture]` once above the struct, and \
             `#[fixture(..)]` above each of its fields",
        );
    }
}

/// Checks the fields of a struct.
pub(crate) fn on_fields(system: &System, errors: &mut Errors) {
    for Service { name, fixtures, .. } in &system.services {
        if fixtures.is_empty() {
            errors.at(
                name.span(),
                format!("nothing starts `{name}`: add an attribute to it, as in `#[fixture(cmd = \"..\")]`"),
            );
        }
        for other in fixtures.iter().skip(1) {
            errors.on_attribute(other, "one fixture attribute too many: a field is one service");
        }
        args(fixtures, errors);
        no_parameter_is_named(fixtures, "a field has its own name", errors);
        no_scope(
            fixtures,
            "write it on the `static` that holds the whole struct",
            errors,
        );
    }
}

/// Checks a test function.
pub(crate) fn on_test(item: &Function, fixtures: &[Args], bindings: &Bindings, errors: &mut Errors) {
    no_method(item, errors);
    no_scope(fixtures, "a test's own service lives as long as the test", errors);
    async_needs_an_async_test_attribute(item, errors);
    no_parameter_is_left_over(item, bindings, errors);
    for (fixture, parameter) in bound(item, fixtures, bindings) {
        if behind_static(&parameter.ty).is_some() && !fixture.is_static() {
            errors.on(
                &parameter.ty,
                "a test's own service ends with the test: take it as `&T`, `&mut T` or `T`; a service that \
                 is shared is a `static`",
            );
        }
    }
}

/// Checks a function that becomes an rstest fixture.
pub(crate) fn on_fixture(item: &Function, fixtures: &[Args], bindings: &Bindings, errors: &mut Errors) {
    if !cfg!(feature = "rstest") {
        errors.at(
            item.sig.ident.span(),
            "fixture functions need mirakuru's feature `rstest`, which is turned off: turn it on, or use a \
             `static` or put the attribute on a test",
        );
        return;
    }
    no_method(item, errors);
    if item.sig.receiver().is_some() {
        return;
    }
    if let syn::ReturnType::Type(_, ty) = &item.sig.output {
        if behind_static(ty).is_none() {
            if let Type::Reference(_) = &**ty {
                errors.on(
                    ty,
                    "a fixture returns `T` (a service for each test) or `&'static T` (a shared service)",
                );
            }
        }
    }
    match &item.body {
        None => without_a_body(item, fixtures, errors),
        Some(_) => with_a_body(item, fixtures, bindings, errors),
    }
}

fn without_a_body(item: &Function, fixtures: &[Args], errors: &mut Errors) {
    if item.is_test_without_a_body() {
        errors.at(
            item.sig.ident.span(),
            "a test needs a body: write `{ .. }` in place of `;`",
        );
        return;
    }
    if let Gives::Nothing = item.gives() {
        let name = &item.sig.ident;
        errors.at(
            name.span(),
            format!("the fixture returns nothing: add a return type, as in `fn {name}() -> TcpExecutor;`"),
        );
    }
    one_attribute_only(
        fixtures,
        "a fixture without a body returns one service: use a function for each",
        errors,
    );
    no_parameter_is_named(
        fixtures,
        "a fixture without a body returns the service itself",
        errors,
    );
    if !item.is_shared() {
        no_scope(
            fixtures,
            "a fixture that returns `T` starts a service for each test; return `&'static T` to share it",
            errors,
        );
    }
}

/// Whether a function seems to be a test that lacks a test attribute: it cannot be a useful
/// fixture, because its services would end when it returns.
fn lacks_a_test_attribute(item: &Function, fixtures: &[Args], bindings: &Bindings) -> bool {
    let is_own = |fixture: &Args, ty: &Type| behind_static(ty).is_none() && !fixture.is_static();
    let mut own = bound(item, fixtures, bindings).filter(|(fixture, it)| is_own(fixture, &it.ty));
    let ends_at_once = match item.gives() {
        Gives::Nothing => own.next().is_some(),
        _ => own.any(|(_, parameter)| matches!(*parameter.ty, Type::Reference(_))),
    };
    ends_at_once
        && item.sig.receiver().is_none()
        && item.gives_like_a_test()
        && !item.attrs.iter().any(is_rstest_fixture)
}

fn with_a_body(item: &Function, fixtures: &[Args], bindings: &Bindings, errors: &mut Errors) {
    if lacks_a_test_attribute(item, fixtures, bindings) {
        errors.at(
            item.sig.ident.span(),
            "`#[test]` is missing: write it below this attribute; a function without `#[test]` is a \
             fixture, and needs a return type `-> T`",
        );
        return;
    }
    let mut shared = item.is_shared();
    if shared {
        if let Some(asyncness) = &item.sig.asyncness {
            errors.at(
                asyncness.span,
                "a fixture that is shared as a whole cannot be `async`: share the service alone, \
                 `async fn client(server: &'static T) -> Client`",
            );
        }
    }
    for (index, fixture) in fixtures.iter().enumerate() {
        let names_a_parameter = !matches!(fixture.target(), Target::Free);
        if bindings.of(index).is_none() && !names_a_parameter {
            errors.at(
                item.sig.ident.span(),
                "a fixture's first parameter receives the service: add one, as in `server: TcpExecutor`",
            );
        }
    }
    for (fixture, parameter) in bound(item, fixtures, bindings) {
        shared |= behind_static(&parameter.ty).is_some();
        if behind_static(&parameter.ty).is_none() && !fixture.is_static() {
            if let Type::Reference(_) = &*parameter.ty {
                let misplaced = match item.gives() {
                    Gives::Type(_) => "",
                    _ => "; on a test, write this attribute above `#[test]`",
                };
                errors.on(
                    &parameter.ty,
                    format!(
                        "a service that is only borrowed ends when the fixture returns: take `T`, and keep \
                         it in the value that the fixture returns, or take `&'static T`, a shared \
                         service{misplaced}"
                    ),
                );
            }
        }
    }
    for (index, fixture) in fixtures.iter().enumerate() {
        let of_parameter = |index| bindings.of(index).and_then(|index| item.parameter(index));
        let is_shared = |index| of_parameter(index).is_some_and(|it| behind_static(&it.ty).is_some());
        if !item.is_shared() && is_shared(index) && !fixture.is_static() {
            for (_, name) in bindings.needs(index).filter(|(other, _)| !is_shared(*other)) {
                let Some(place) = names::place_of_use(fixture, name) else {
                    continue;
                };
                errors.at(
                    place,
                    format!(
                        "`{name}` is started for each test, but the service that uses it is shared: take \
                         both as `&'static T`, or both as `T`"
                    ),
                );
            }
        }
    }
    if !shared {
        no_scope(
            fixtures,
            "this fixture starts a service for each test; to share it, take the service or return the \
             result as `&'static T`",
            errors,
        );
    }
}

// ---- the keys of an attribute -------------------------------------------------------------------

fn something_is_to_be_started(fixture: &Args, errors: &mut Errors) {
    if fixture.expr.is_some() || PROGRAM.iter().any(|key| fixture.entry(key).is_some()) {
        return;
    }
    let unknown = fixture.entries.iter().find(|entry| is_unknown(entry));
    if unknown.is_some_and(|entry| nearest(&entry.key.to_string(), PROGRAM).is_some()) {
        return; // Another check reports the misspelled `cmd`.
    }
    let message = if fixture.entries.is_empty() {
        "the attribute names no program: add one, as in `#[mirakuru::fixture(tcp = \"127.0.0.1:{port}\", \
            cmd = \"redis-server --port {port}\")]`"
    } else {
        "`cmd` is missing: add it, as in `cmd = \"redis-server --port {port}\"`, or `bin = \
         \"name\"` for a program of this workspace"
    };
    errors.on_attribute(fixture, message);
}

fn is_unknown(entry: &Entry) -> bool {
    !known().iter().any(|key| entry.key == key)
}

fn keys_are_known(fixture: &Args, errors: &mut Errors) {
    for entry in fixture.entries.iter().filter(|entry| is_unknown(entry)) {
        let key = entry.key.to_string();
        let remedy = match nearest(&key, &known()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("the keys are {}", known().join(", ")),
        };
        errors.at(entry.key.span(), format!("unknown key `{key}`: {remedy}"));
    }
}

fn keys_stand_once(fixture: &Args, errors: &mut Errors) {
    for (index, entry) in fixture.entries.iter().enumerate() {
        let same = |other: &Entry| other.key == entry.key && is_target(other) == is_target(entry);
        let earlier = fixture.entries[..index].iter().any(same);
        let repeatable = entry.setter().is_some_and(|setter| setter.repeats);
        if earlier && !repeatable && !is_unknown(entry) {
            errors.at(
                entry.key.span(),
                format!("`{}` is given twice: remove one", entry.key),
            );
        }
    }
}

/// Whether the entry is `name = ident` or `name = _`, which is allowed beside `name = "text"`.
fn is_target(entry: &Entry) -> bool {
    !matches!(entry.target(), Target::Free)
}

fn one_program(fixture: &Args, errors: &mut Errors) {
    if fixture.expr.is_some() {
        return;
    }
    different_of(
        fixture,
        |entry| PROGRAM.iter().any(|key| entry.key == key),
        "there are two programs to start",
        errors,
    );
}

fn a_build_has_a_program(fixture: &Args, errors: &mut Errors) {
    let is_built = ["bin", "example"].iter().any(|key| fixture.entry(key).is_some());
    if is_built || fixture.expr.is_some() {
        return;
    }
    for entry in fixture
        .entries
        .iter()
        .filter(|entry| BUILD.iter().any(|key| entry.key == key))
    {
        let key = &entry.key;
        errors.at(
            key.span(),
            format!(
                "`{key}` says how cargo builds a program of the workspace: use it with `bin = \"name\"` \
                 or `example = \"name\"`"
            ),
        );
    }
}

fn one_readiness(fixture: &Args, errors: &mut Errors) {
    let message = "there are two readiness conditions, and only one key is allowed: \
                   combine them, as in `wait_for = Tcp::port(80).and(Exec::succeeds(\"..\"))`";
    if fixture.expr.is_none() {
        different_of(fixture, Entry::is_readiness, message, errors);
    }
}

/// Reports all keys of this kind that differ from the first one, because only one is allowed.
/// (Another check reports a key that is given twice.)
fn different_of(fixture: &Args, of_the_kind: impl Fn(&Entry) -> bool, message: &str, errors: &mut Errors) {
    let mut all = fixture.entries.iter().filter(|entry| of_the_kind(entry));
    let Some(first) = all.next() else {
        return;
    };
    for other in all.filter(|other| other.key != first.key) {
        errors.at(
            other.key.span(),
            format!("`{}` beside `{}`: {message}", other.key, first.key),
        );
    }
}

fn only_keys_of_ours_after_an_expression(fixture: &Args, errors: &mut Errors) {
    if fixture.expr.is_none() {
        return;
    }
    for entry in fixture.entries.iter().filter(|entry| !is_unknown(entry)) {
        let key = &entry.key;
        if is_target(entry) || key == "scope" || key == "optional" {
            continue;
        }
        let remedy = if setter(key).is_some() {
            format!("set it on the recipe, as in `recipe().{key}(..)`")
        } else {
            format!("remove either `{key}` or the expression")
        };
        errors.at(
            key.span(),
            format!("only `name = parameter`, `scope` and `optional` may follow an expression: {remedy}"),
        );
    }
}

fn expression_is_no_literal(fixture: &Args, errors: &mut Errors) {
    if let Some(expr @ Expr::Lit(_)) = &fixture.expr {
        errors.on(
            expr,
            "this is not a recipe: write a command as `cmd = \"..\"`, or an expression that returns a recipe",
        );
    }
}

/// Whether this is `NAME` or `PACKAGE:NAME`, without characters that cargo forbids.
fn is_program_name(name: &str) -> bool {
    let is_word =
        |word: &str| !word.is_empty() && !word.contains(['/', ':']) && !word.contains(char::is_whitespace);
    match name.split_once(':') {
        Some((package, name)) => is_word(package) && is_word(name),
        None => is_word(name),
    }
}

fn values_have_the_right_form(fixture: &Args, errors: &mut Errors) {
    for entry in &fixture.entries {
        let Some(value) = &entry.value else {
            continue;
        };
        let key = entry.key.to_string();
        let wrong_form = match value {
            Expr::Lit(lit) => match (&*key, &lit.lit) {
                ("tcp", Lit::Str(_) | Lit::Int(_)) => None,
                ("tcp", _) => {
                    Some("`tcp` is an address or a port: `tcp = \"127.0.0.1:{port}\"`, `tcp = 6379`")
                }
                ("args", _) => Some(
                    "`args` is a list: `args = [\"--port\", \"{port}\"]`; one argument is `arg = \"..\"`",
                ),
                ("envs", _) => Some(
                    "`envs` is a list: `envs = [(\"NAME\", \"value\")]`; one is \
                     `env = (\"NAME\", \"value\")`",
                ),
                (_, Lit::Str(_)) => None,
                ("cmd", _) => {
                    Some("`cmd` is a string or a list: `cmd = \"redis-server\"`, `cmd = [\"redis-server\"]`")
                }
                ("http", _) => Some("`http` is a URL: `http = \"http://127.0.0.1:{port}/\"`"),
                ("unix" | "pid_file", _) => Some("this is a path: `\"{dir}/name\"`"),
                ("banner", _) => Some("`banner` is a regular expression: `banner = \"ready to accept\"`"),
                ("profile", _) => Some("`profile` is the name of a cargo profile: `profile = \"release\"`"),
                ("exec", _) => Some("`exec` is a command: `exec = \"pg_isready -p {port}\"`"),
                _ => None,
            },
            Expr::Binary(ExprBinary {
                op: BinOp::Sub(_), ..
            }) if key == "cmd" => Some("`cmd` is a string: `cmd = \"redis-server\"`"),
            _ => None,
        };
        if let Some(message) = wrong_form {
            errors.on(value, message);
        }
        match &*key {
            "bin" | "example" if !literal(value).is_some_and(|name| is_program_name(&name.value())) => {
                let kind = if key == "bin" { "a binary" } else { "an example" };
                errors.on(
                    value,
                    format!(
                        "`{key}` names {kind} of this workspace, as a string: `{key} = \"name\"` or \
                         `{key} = \"package:name\"`"
                    ),
                );
            }
            "features" if matches!(value, Expr::Lit(_)) => {
                errors.on(value, "`features` is a list: `features = [\"name\"]`");
            }
            "scope"
                if !matches!(
                    literal(value).map(LitStr::value).as_deref(),
                    Some("run" | "process" | "users")
                ) =>
            {
                errors.on(
                    value,
                    "`scope` is \"run\" (one service for a whole `cargo test` or `cargo nextest run`), \
                    \"users\" (the same, until no process uses it) or \"process\" (one for each test \
                     process)",
                )
            }
            "env" | "file" | "listen_as" if !matches!(value, Expr::Tuple(pair) if pair.elems.len() == 2) => {
                let message = match &*key {
                    "env" => {
                        "`env` is a name and a value: `env = (\"NAME\", \"value\")`; several are \
                         `envs = [(\"NAME\", \"value\")]`"
                    }
                    "file" => {
                        "`file` is a path in the private directory and a text: \
                         `file = (\"server.conf\", \"port {port}\")`"
                    }
                    _ => {
                        "`listen_as` is a name and an address: `listen_as = (\"web\", \"127.0.0.1:{port}\")`"
                    }
                };
                errors.on(value, message);
            }
            flag if entry.setter().is_some_and(|setter| setter.value == Value::Absent) => {
                errors.on(value, format!("`{flag}` has no value: write the word alone"));
            }
            "http" if !cfg!(feature = "http") => errors.at(
                entry.key.span(),
                "the key `http` needs mirakuru's feature `http`, which is turned off: turn it on, or wait \
                    for `tcp`",
            ),
            _ => {}
        }
    }
}

fn placeholders_exist(fixture: &Args, errors: &mut Errors) {
    for entry in &fixture.entries {
        let Some(value) = &entry.value else {
            continue;
        };
        if entry.key == "wait_for" {
            placeholders_in_readiness(value, errors);
        } else if entry.is_expanded() {
            placeholders_in(value, errors);
        }
    }
}

/// Checks the literals whose placeholders mirakuru certainly expands: the value itself, and those
/// in lists and tuples. Does not check literals in macros and calls, because they may have another
/// meaning.
fn placeholders_in(value: &Expr, errors: &mut Errors) {
    if let Some(text) = literal(value) {
        return placeholders_in_literal(text, errors);
    }
    match value {
        Expr::Array(list) => list.elems.iter().for_each(|value| placeholders_in(value, errors)),
        Expr::Tuple(list) => list.elems.iter().for_each(|value| placeholders_in(value, errors)),
        Expr::Reference(reference) => placeholders_in(&reference.expr, errors),
        Expr::Group(group) => placeholders_in(&group.expr, errors),
        Expr::Paren(paren) => placeholders_in(&paren.expr, errors),
        _ => {}
    }
}

/// Checks the literals in a readiness condition that is created by mirakuru's own constructors.
fn placeholders_in_readiness(value: &Expr, errors: &mut Errors) {
    match value {
        Expr::Call(ExprCall { func, args, .. }) if makes_readiness(func) => {
            args.iter().for_each(|value| placeholders_in(value, errors));
        }
        Expr::MethodCall(ExprMethodCall {
            receiver,
            method,
            args,
            ..
        }) => {
            placeholders_in_readiness(receiver, errors);
            if method == "and" || method == "or" {
                args.iter()
                    .for_each(|value| placeholders_in_readiness(value, errors));
            }
        }
        _ => {}
    }
}

fn makes_readiness(func: &Expr) -> bool {
    let Expr::Path(ExprPath { path, .. }) = func else {
        return false;
    };
    let words: Vec<String> = path
        .segments
        .iter()
        .map(|segment| segment.ident.to_string())
        .collect();
    let [.., ty, constructor] = &*words else {
        return false;
    };
    matches!(
        (&**ty, &**constructor),
        ("Tcp", "addr")
            | ("Http", "head" | "get" | "post")
            | ("UnixSocket" | "PidFile", "path")
            | ("Exec", "succeeds")
            | ("Banner", "matching")
    )
}

fn placeholders_in_literal(text: &LitStr, errors: &mut Errors) {
    if let Some(mistake) = placeholder::check(&text.value()) {
        // The error points at the placeholder itself if the compiler supports that and the literal
        // contains no escapes.
        let token = text.token();
        let source = token.to_string();
        let offset = source.find(&text.value());
        let place =
            offset.and_then(|offset| token.subspan(offset + mistake.place.start..offset + mistake.place.end));
        errors.at(place.unwrap_or_else(|| text.span()), mistake.message);
    }
}

// ---- several kinds of item ----------------------------------------------------------------------

/// Pairs each fixture with its parameter. Skips fixtures without a parameter.
fn bound<'a>(
    item: &'a Function,
    fixtures: &'a [Args],
    bindings: &'a Bindings,
) -> impl Iterator<Item = (&'a Args, &'a syn::PatType)> {
    let all = fixtures.iter().enumerate();
    all.filter_map(|(index, fixture)| Some((fixture, item.parameter(bindings.of(index)?)?)))
}

fn one_attribute_only(fixtures: &[Args], remedy: &str, errors: &mut Errors) {
    for other in &fixtures[1..] {
        errors.on_attribute(other, format!("one fixture attribute too many: {remedy}"));
    }
}

fn no_parameter_is_named(fixtures: &[Args], why: &str, errors: &mut Errors) {
    for entry in fixtures
        .iter()
        .flat_map(|fixture| &fixture.entries)
        .filter(|entry| is_target(entry))
    {
        errors.on(
            &entry.value,
            format!(
                "`name = ident` names a parameter, and {why}: a name for the service is a string, `name \
                = \"..\"`"
            ),
        );
    }
}

fn no_scope(fixtures: &[Args], why: &str, errors: &mut Errors) {
    for fixture in fixtures {
        let why = match fixture.is_static() {
            true => "write it on the attribute that makes the `static`",
            false => why,
        };
        if let Some(scope) = fixture.entry("scope") {
            errors.at(
                scope.key.span(),
                format!("`scope` is for services that are shared: {why}"),
            );
        }
    }
}

fn no_method(item: &Function, errors: &mut Errors) {
    if let Some(receiver) = item.sig.receiver() {
        errors.on(
            receiver,
            "the attribute is not supported on methods: use a function outside the `impl`",
        );
    }
}

fn async_needs_an_async_test_attribute(item: &Function, errors: &mut Errors) {
    if let Some(span) = item.lacks_an_async_test_attribute() {
        errors.at(
            span,
            "an `async fn` needs an async test attribute below this one, such as `#[tokio::test]`; \
             `#[test]` or `#[rstest]` alone is not enough",
        );
    }
}

fn no_parameter_is_left_over(item: &Function, bindings: &Bindings, errors: &mut Errors) {
    if !item.takes_fixtures_only() || bindings.incomplete {
        return;
    }
    for index in 0..item.sig.inputs.len() {
        let Some(parameter) = item.parameter(index).filter(|_| !bindings.is_bound(index)) else {
            continue;
        };
        let message = "nothing gives this parameter its value: add a `#[mirakuru::fixture(..)]` for it, or \
            remove it; values other than fixtures need `#[rstest]` in place of `#[test]`";
        match parameter_name(parameter) {
            Some(name) => errors.at(name.span(), message),
            None => errors.on(&parameter.pat, message),
        }
    }
}

impl Function {
    /// Whether the function returns `&'static T`.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(&self.sig.output, syn::ReturnType::Type(_, ty) if behind_static(ty).is_some())
    }

    /// Whether only fixtures can give parameters their values. `false` if an attribute of this test
    /// may also do so, or is unknown. (An unknown attribute may be `fixture` under another name.)
    pub(crate) fn takes_fixtures_only(&self) -> bool {
        self.form() == Form::Test
            && self
                .attrs
                .iter()
                .all(|attr| takes_no_parameters(attr) || is_built_in(attr))
    }

    /// The span of `async`, if nothing would run the function's future.
    pub(crate) fn lacks_an_async_test_attribute(&self) -> Option<proc_macro2::Span> {
        let asyncness = self.sig.asyncness.as_ref()?;
        let runs_async = |attr: &syn::Attribute| {
            !is_plain_test(attr)
                && attr
                    .path()
                    .segments
                    .last()
                    .is_none_or(|last| last.ident != "rstest")
        };
        (!self.test_attrs().any(runs_async)).then(|| asyncness.span())
    }
}

#[cfg(test)]
mod tests {
    use quote::quote;
    use syn::parse_quote;

    use super::*;
    use crate::args::stacked;

    fn mistakes(tokens: proc_macro2::TokenStream) -> Vec<String> {
        let mut errors = Errors::default();
        let fixtures = stacked(tokens, &mut Vec::new(), &mut errors);
        args(&fixtures, &mut errors);
        errors.messages()
    }

    #[track_caller]
    fn one(tokens: proc_macro2::TokenStream, message: &str) {
        let found = mistakes(tokens);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains(message), "{found:?}");
    }

    #[test]
    fn what_is_right_has_no_mistake() {
        for tokens in [
            quote!(cmd = "redis-server --port {port}", tcp = "127.0.0.1:{port}"),
            quote!(
                cmd = ["sleep", "60"],
                timeout = Duration::from_secs(5),
                name = cache,
                name = "cache"
            ),
            quote!(
                bin = "helper",
                args = ["{port}"],
                arg = "a",
                arg = "b",
                env = ("A", "{env:B}"),
                env_clear,
                tcp = 80
            ),
            quote!(bin = "shop:server", features = FEATURES, profile = "release"),
            quote!(example = "server", features = ["a", "b"]),
            quote!(presets::redis(), name = cache, scope = "run"),
            quote!(cmd = COMMAND, tcp = ADDRESS, args = arguments()),
            quote!(cmd = "x", wait_for = my("{prot}").and(format("{prot}"))),
        ] {
            assert_eq!(mistakes(tokens.clone()), Vec::<String>::new(), "{tokens}");
        }
    }

    #[test]
    fn keys() {
        one(
            quote!(cmd = "x", timout = 5),
            "unknown key `timout`: did you mean `timeout`?",
        );
        one(quote!(command = "x"), "did you mean `cmd`?");
        one(
            quote!(cmd = "x", colour = 5),
            "the keys are cmd, bin, example, features, profile, tcp",
        );
        one(quote!(cmd = "x", cmd = "y"), "`cmd` is given twice");
        one(quote!(cmd = "x", tcp = 1, tcp = 2), "`tcp` is given twice");
        one(quote!(cmd = "x", bin = "y"), "`bin` beside `cmd`");
        one(quote!(bin = "x", example = "y"), "`example` beside `bin`");
        one(quote!(cmd = "x", features = ["y"]), "use it with `bin");
        one(quote!(cmd = "x", profile = "release"), "use it with `bin");
        one(quote!(cmd = "x", tcp = 1, unix = "y"), "`unix` beside `tcp`");
        one(quote!(tcp = 1), "`cmd` is missing");
        one(quote!(), "names no program");
    }

    #[test]
    fn expressions() {
        one(quote!("redis-server"), "not a recipe");
        one(quote!(redis(), timeout = 5), "`recipe().timeout(..)`");
        one(
            quote!(redis(), cmd = "x"),
            "remove either `cmd` or the expression",
        );
    }

    #[test]
    fn values() {
        one(quote!(cmd = 5), "`cmd` is a string or a list");
        one(quote!(cmd = redis - server), "`cmd` is a string");
        one(quote!(cmd = "x", tcp = 5.0), "`tcp` is an address or a port");
        one(quote!(cmd = "x", unix = 80), "path");
        one(quote!(cmd = "x", args = "y"), "`args` is a list");
        one(quote!(cmd = "x", env = "y"), "`env` is a name and a value");
        one(quote!(cmd = "x", env_clear = true), "no value");
        one(quote!(bin = NAME), "as a string");
        one(quote!(bin = "target/debug/x"), "as a string");
        one(quote!(bin = "a:b:c"), "`bin = \"package:name\"`");
        one(quote!(example = ""), "names an example");
        one(quote!(bin = "x", features = "y"), "`features` is a list");
        one(quote!(bin = "x", profile = 1), "`profile` is the name");
        one(quote!(cmd = "x", scope = "test"), "`scope` is \"run\"");
    }

    #[test]
    fn the_key_http() {
        if cfg!(feature = "http") {
            one(quote!(cmd = "x", http = 80), "`http` is a URL");
        } else {
            one(quote!(cmd = "x", http = "http://127.0.0.1/"), "feature `http`");
        }
    }

    #[test]
    fn unknown_placeholders() {
        for tokens in [
            quote!(cmd = "x {prot}"),
            quote!(cmd = ["x", "{prot}"]),
            quote!(cmd = "x", args = &["{prot}"]),
            quote!(cmd = "x", env = ("A", "{prot}")),
            quote!(cmd = "x", fail_on = "no {prot}"),
            quote!(cmd = "x", envs = [("A", "{prot}")]),
            quote!(cmd = "x", tcp = "127.0.0.1:{prot}"),
            quote!(cmd = "x", wait_for = mirakuru::Tcp::addr("{prot}")),
            quote!(
                cmd = "x",
                wait_for = Check::new("", f).or(Http::get("{prot}").status(204))
            ),
        ] {
            one(tokens, "unknown placeholder `{prot}`");
        }
    }

    #[test]
    fn the_span_of_an_attribute_below_is_known() {
        let mut errors = Errors::default();
        let mut attrs = vec![parse_quote!(#[fixture(tcp = 1)])];
        let fixtures = stacked(quote!(cmd = "x"), &mut attrs, &mut errors);
        args(&fixtures, &mut errors);
        assert_eq!(errors.messages().len(), 1);
    }
}
