//! Parses the attribute's arguments: keys, or one expression whose value is a recipe, optionally
//! followed by keys.
//!
//! This file only parses: `check` decides whether a key exists and which values it takes.

use proc_macro2::TokenStream;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream, Parser};
use syn::{Attribute, Expr, ExprLit, ExprPath, Ident, Lit, LitStr, Meta, Path, Token};

use crate::errors::Errors;
use crate::fields::RENAMED;

/// Keys that select the program. Exactly one of them is required.
pub(crate) const PROGRAM: &[&str] = &["cmd", "bin", "example"];

/// Keys that configure how cargo builds a workspace program. Each calls the method of `Bin` with
/// the same name.
pub(crate) const BUILD: &[&str] = &["features", "profile"];

/// Keys for the readiness condition. At most one is allowed.
pub(crate) const READINESS: &[&str] = &["tcp", "http", "unix", "pid_file", "banner", "exec", "wait_for"];

/// A key that calls the builder method with the same name. (In `name = ident`, the key is not a
/// setter: see [`Target::Named`].)
pub(crate) struct Setter {
    pub(crate) key: &'static str,
    pub(crate) value: Value,
    /// Whether the key may be repeated, because it adds to a list.
    pub(crate) repeats: bool,
}

/// The kind of value that a setter takes.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Value {
    /// No value: the key is written alone.
    Absent,
    /// A value whose strings may contain placeholders.
    Expanded,
    Plain,
}
use Value::{Absent, Expanded, Plain};

const fn once(key: &'static str, value: Value) -> Setter {
    Setter {
        key,
        value,
        repeats: false,
    }
}

const fn many(key: &'static str, value: Value) -> Setter {
    Setter {
        repeats: true,
        ..once(key, value)
    }
}

/// All builder methods that are keys.
pub(crate) const SETTERS: &[Setter] = &[
    many("arg", Expanded),
    once("args", Expanded),
    many("env", Expanded),
    once("envs", Expanded),
    many("env_remove", Plain),
    once("env_clear", Absent),
    once("current_dir", Expanded),
    once("stdin", Plain),
    once("stdout", Plain),
    once("stderr", Plain),
    once("shell", Plain),
    once("name", Plain),
    once("timeout", Plain),
    once("stop_signal", Plain),
    once("stop_timeout", Plain),
    once("kill_signal", Plain),
    once("expected_exit", Plain),
    many("fail_on", Expanded),
    many("file", Expanded),
    many("listen", Expanded),
    many("listen_as", Expanded),
    many("log_file", Expanded),
    once("log_limit", Plain),
    once("low_ports", Plain),
    once("program", Expanded),
    once("queue", Plain),
    once("optional", Absent),
    once("unprivileged", Plain),
    once("uid", Plain),
    once("gid", Plain),
    once("groups", Plain),
    once("umask", Plain),
    once("on_end", Expanded),
];

/// Returns the builder method with the name of this key.
pub(crate) fn setter(key: &Ident) -> Option<&'static Setter> {
    SETTERS.iter().find(|setter| key == setter.key)
}

/// Returns all keys.
pub(crate) fn known() -> Vec<&'static str> {
    let mut known = [PROGRAM, BUILD, READINESS].concat();
    for setter in SETTERS {
        known.push(setter.key);
    }
    known.push("scope");
    known
}

/// One `#[mirakuru::fixture(..)]` attribute.
#[derive(Default)]
pub(crate) struct Args {
    /// The attribute's path, for errors about missing keys. `None` for the outermost attribute,
    /// whose path the compiler does not pass.
    pub(crate) path: Option<Path>,
    /// The expression in place of keys. Its value is a recipe.
    pub(crate) expr: Option<Expr>,
    pub(crate) entries: Vec<Entry>,
    /// Whether parsing failed. If so, no other mistakes in this attribute are reported.
    pub(crate) broken: bool,
}

/// One `key = value`, or a key without a value.
pub(crate) struct Entry {
    pub(crate) key: Ident,
    pub(crate) value: Option<Expr>,
}

/// The parameter that receives the fixture.
pub(crate) enum Target<'a> {
    /// The first free parameter.
    Free,
    /// The parameter in `name = ident`.
    Named(&'a Ident),
    /// No parameter: `name = _`.
    None,
}

impl Args {
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    pub(crate) fn target(&self) -> Target<'_> {
        self.entries
            .iter()
            .find_map(|entry| match entry.target() {
                Target::Free => None,
                target => Some(target),
            })
            .unwrap_or(Target::Free)
    }

    /// Whether the attribute names a static with a shared fixture.
    pub(crate) fn is_static(&self) -> bool {
        self.static_name().is_some()
    }

    /// The expression, if it is the name of a static with a shared fixture.
    pub(crate) fn static_name(&self) -> Option<&Expr> {
        self.expr.as_ref().filter(|expr| name(expr) == Some(Name::Static))
    }

    /// Parses the outermost attribute, whose arguments the compiler passes separately.
    fn outermost(tokens: TokenStream) -> syn::Result<Args> {
        Args::parse.parse2(tokens)
    }

    /// If parsing failed, reports the error, and returns arguments that are marked as broken.
    fn or_broken(parsed: syn::Result<Args>, path: Option<Path>, errors: &mut Errors) -> Args {
        let args = parsed.unwrap_or_else(|error| {
            errors.push(error);
            Args {
                broken: true,
                ..Args::default()
            }
        });
        Args { path, ..args }
    }
}

impl Entry {
    pub(crate) fn target(&self) -> Target<'_> {
        if self.key != "name" {
            return Target::Free;
        }
        match &self.value {
            Some(Expr::Infer(_)) => Target::None,
            Some(Expr::Path(ExprPath {
                qself: None, path, ..
            })) => path.get_ident().map_or(Target::Free, Target::Named),
            _ => Target::Free,
        }
    }

    /// Returns the builder method that the key calls.
    pub(crate) fn setter(&self) -> Option<&'static Setter> {
        setter(&self.key).filter(|_| matches!(self.target(), Target::Free))
    }

    /// Whether mirakuru expands placeholders in the value.
    pub(crate) fn is_expanded(&self) -> bool {
        let setter_expands = self.setter().is_some_and(|setter| setter.value == Expanded);
        setter_expands || self.key == "cmd" || self.is_readiness()
    }

    /// Whether the key is for the readiness condition.
    pub(crate) fn is_readiness(&self) -> bool {
        READINESS.iter().any(|key| self.key == key)
    }

    /// The value, if it is a string literal.
    pub(crate) fn literal(&self) -> Option<&LitStr> {
        self.value.as_ref().and_then(literal)
    }
}

/// The kind of item that a name refers to, guessed from its letter case.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Name {
    /// `SHOP`: a static, or a recipe in a constant.
    Static,
    /// `Shop`: a struct with the attribute, or a recipe.
    Type,
}

/// The kind of item that an expression names. `None` unless the expression is a path whose last
/// segment begins with a capital letter.
pub(crate) fn name(expr: &Expr) -> Option<Name> {
    let Expr::Path(ExprPath {
        qself: None, path, ..
    }) = expr
    else {
        return None;
    };
    let segment = path.segments.last()?;
    let last = segment.ident.unraw().to_string();
    let first = last.chars().next()?;
    // A static cannot have generic arguments.
    let is_type = last.chars().any(char::is_lowercase) || !segment.arguments.is_none();
    match first.is_uppercase() {
        true if is_type => Some(Name::Type),
        true => Some(Name::Static),
        false => None,
    }
}

/// The string literal, if the expression is one.
pub(crate) fn literal(expr: &Expr) -> Option<&LitStr> {
    match expr {
        Expr::Lit(ExprLit {
            lit: Lit::Str(text), ..
        }) => Some(text),
        Expr::Group(group) => literal(&group.expr),
        Expr::Paren(paren) => literal(&paren.expr),
        _ => None,
    }
}

/// Parses the outermost attribute, and takes the other mirakuru attributes off the item. All of
/// them are expanded together, so that the runtime knows all services of a test before it starts
/// any of them.
pub(crate) fn stacked(outermost: TokenStream, attrs: &mut Vec<Attribute>, errors: &mut Errors) -> Vec<Args> {
    let mut all = vec![Args::or_broken(Args::outermost(outermost), None, errors)];
    all.extend(taken_out(attrs, is_ours, errors));
    all
}

/// Takes the mirakuru attributes off a struct or a field.
pub(crate) fn on_system(attrs: &mut Vec<Attribute>, errors: &mut Errors) -> Vec<Args> {
    let is_wanted =
        |attr: &Attribute| is_ours(attr) || is_rstest_fixture(attr) || attr.path().is_ident(RENAMED);
    taken_out(attrs, is_wanted, errors)
}

fn taken_out(
    attrs: &mut Vec<Attribute>,
    is_wanted: impl Fn(&Attribute) -> bool,
    errors: &mut Errors,
) -> Vec<Args> {
    let (ours, others): (Vec<_>, Vec<_>) = std::mem::take(attrs).into_iter().partition(is_wanted);
    *attrs = others;
    let one = |attr: Attribute| {
        let parsed = match &attr.meta {
            Meta::List(_) => attr.parse_args_with(Args::parse),
            // An attribute without parentheses contains no keys.
            _ => Args::outermost(TokenStream::new()),
        };
        Args::or_broken(parsed, Some(attr.path().clone()), errors)
    };
    ours.into_iter().map(one).collect()
}

/// Whether an attribute is another `#[mirakuru::fixture(..)]`, whatever path it was imported under.
/// A bare `#[fixture]` is rstest's, because ours always has parentheses.
fn is_ours(attr: &Attribute) -> bool {
    let path = attr.path();
    let fixture = path.segments.last().is_some_and(|last| last.ident == "fixture");
    fixture && !is_of_rstest(attr) && matches!(attr.meta, Meta::List(_))
}

/// Whether an attribute is `#[rstest::fixture]`, or a bare `#[fixture]`, which can only be
/// rstest's.
pub(crate) fn is_rstest_fixture(attr: &Attribute) -> bool {
    let path = attr.path();
    let fixture = path.segments.last().is_some_and(|last| last.ident == "fixture");
    fixture && (is_of_rstest(attr) || matches!(attr.meta, Meta::Path(_)))
}

fn is_of_rstest(attr: &Attribute) -> bool {
    let segments = &attr.path().segments;
    segments.len() > 1 && segments[segments.len() - 2].ident == "rstest"
}

impl Parse for Args {
    fn parse(input: ParseStream<'_>) -> syn::Result<Args> {
        let mut args = Args::default();
        if !input.is_empty() && !Entry::is_next(input) {
            args.expr = Some(input.parse().map(ungrouped)?);
            separator(input)?;
            if let Some(another) = another_recipe(input) {
                return Err(syn::Error::new_spanned(
                    another,
                    "an attribute starts one service: give this one an attribute of its own",
                ));
            }
        }
        while !input.is_empty() {
            args.entries.push(input.parse()?);
            separator(input)?;
        }
        Ok(args)
    }
}

/// Removes the invisible parentheses that a macro's `$name:expr` adds to an expression.
fn ungrouped(expr: Expr) -> Expr {
    match expr {
        Expr::Group(group) => ungrouped(*group.expr),
        other => other,
    }
}

/// Parses a second recipe (a call) where a key is expected.
fn another_recipe(input: ParseStream<'_>) -> Option<Expr> {
    if Entry::is_next(input) {
        return None;
    }
    match input.fork().parse() {
        Ok(another @ (Expr::Call(_) | Expr::MethodCall(_))) => Some(another),
        _ => None,
    }
}

/// Parses a comma, unless the input ends here.
fn separator(input: ParseStream<'_>) -> syn::Result<()> {
    if input.is_empty() {
        return Ok(());
    }
    if !input.peek(Token![,]) {
        return Err(input.error("expected `,` before the next key"));
    }
    input.parse::<Token![,]>().map(drop)
}

impl Entry {
    /// Whether a key comes next, as opposed to an expression. A known word is a key even if `=` is
    /// missing, unless it begins a path, a method call or a macro call.
    fn is_next(input: ParseStream<'_>) -> bool {
        let fork = input.fork();
        let Ok(word) = Ident::parse_any(&fork) else {
            return false;
        };
        let equals = fork.peek(Token![=]) && !fork.peek(Token![==]);
        let known = known().iter().any(|key| word == key);
        let no_path = !fork.peek(Token![::]) && !fork.peek(Token![.]) && !fork.peek(Token![!]);
        equals || (known && no_path)
    }
}

impl Parse for Entry {
    fn parse(input: ParseStream<'_>) -> syn::Result<Entry> {
        if !input.peek(Ident::peek_any) {
            return Err(input.error("expected a key, as in `cmd = \"redis-server\"`"));
        }
        let key = Ident::parse_any(input)?;
        let ends = input.is_empty() || input.peek(Token![,]);
        if ends && setter(&key).is_some_and(|setter| setter.value == Absent) {
            return Ok(Entry { key, value: None });
        }
        if !input.peek(Token![=]) {
            return Err(syn::Error::new(
                key.span(),
                format!("expected a value: `{key} = ..`"),
            ));
        }
        input.parse::<Token![=]>()?;
        if input.is_empty() || input.peek(Token![,]) {
            return Err(syn::Error::new(
                key.span(),
                format!("expected a value after `{key} =`"),
            ));
        }
        let value = Some(input.parse().map(ungrouped)?);
        Ok(Entry { key, value })
    }
}

#[cfg(test)]
mod tests {
    use quote::quote;
    use syn::parse_quote;

    use super::*;

    fn parse(tokens: TokenStream) -> Args {
        Args::outermost(tokens).unwrap()
    }

    fn fails(tokens: TokenStream) -> String {
        Args::outermost(tokens).err().expect("a mistake").to_string()
    }

    fn keys(args: &Args) -> Vec<String> {
        args.entries.iter().map(|entry| entry.key.to_string()).collect()
    }

    #[test]
    fn keys_and_values() {
        let args = parse(quote!(
            tcp = "localhost:6379",
            cmd = ["redis-server", "--port"],
            env_clear,
        ));
        assert!(args.expr.is_none());
        assert_eq!(keys(&args), ["tcp", "cmd", "env_clear"]);
        assert_eq!(
            args.entry("tcp").unwrap().literal().unwrap().value(),
            "localhost:6379"
        );
        assert!(args.entry("env_clear").unwrap().value.is_none());
        assert!(parse(quote!()).entries.is_empty());
    }

    #[test]
    fn unknown_keys_and_keywords_are_left_to_the_checks() {
        assert_eq!(keys(&parse(quote!(timout = 5, type = 3))), ["timout", "type"]);
    }

    #[test]
    fn an_expression() {
        for tokens in [
            quote!(presets::redis()),
            quote!(recipe),
            quote!(a == b),
            quote!(name.clone()),
            quote!(exec::recipe()),
        ] {
            let args = parse(tokens.clone());
            assert!(args.expr.is_some(), "{tokens}");
            assert!(args.entries.is_empty(), "{tokens}");
        }
        let args = parse(quote!(
            presets::redis().version(7),
            name = cache,
            scope = "process"
        ));
        assert!(args.expr.is_some());
        assert_eq!(keys(&args), ["name", "scope"]);
    }

    #[test]
    fn targets() {
        assert!(matches!(parse(quote!(r(), name = cache)).target(), Target::Named(name) if name == "cache"));
        assert!(matches!(parse(quote!(r(), name = _)).target(), Target::None));
        assert!(matches!(
            parse(quote!(cmd = "x", name = "cache")).target(),
            Target::Free
        ));
        assert!(matches!(parse(quote!(cmd = "x")).target(), Target::Free));
    }

    #[test]
    fn names_in_capital_letters() {
        for (expr, kind) in [
            (parse_quote!(SHOP), Some(Name::Static)),
            (parse_quote!(common::r#SHOP_2), Some(Name::Static)),
            (parse_quote!(Shop), Some(Name::Type)),
            (parse_quote!(Shop::<Tcp>), Some(Name::Type)),
            (parse_quote!(shops::S::<u8>), Some(Name::Type)),
            (parse_quote!(recipe), None),
            (parse_quote!(SHOP.clone()), None),
        ] {
            assert_eq!(name(&expr), kind, "{}", quote!(#expr));
        }
    }

    #[test]
    fn mistakes_in_the_form() {
        assert!(fails(quote!(cmd)).contains("expected a value: `cmd = ..`"));
        assert!(fails(quote!(cmd("x"))).contains("expected a value: `cmd = ..`"));
        assert!(fails(quote!(cmd = )).contains("expected a value after `cmd =`"));
        assert!(fails(quote!(cmd = , tcp = 1)).contains("expected a value after `cmd =`"));
        assert!(fails(quote!(cmd = "x" tcp = "y")).contains("expected `,`"));
        assert!(fails(quote!(cmd = "x", "y")).contains("expected a key"));
        assert!(fails(quote!(redis(), presets::nats())).contains("an attribute of its own"));
        assert!(fails(quote!(redis(), timeout(5))).contains("expected a value: `timeout = ..`"));
    }

    #[test]
    fn only_our_own_attributes_are_taken() {
        let mut attrs: Vec<Attribute> = vec![
            parse_quote!(#[test]),
            parse_quote!(#[mirakuru::fixture(cmd = "a")]),
            parse_quote!(#[fixture(cmd = "b")]),
            parse_quote!(#[rstest::fixture]),
            parse_quote!(#[mirakuru::rstest::fixture(x = 1)]),
            parse_quote!(#[fixture]),
        ];
        let mut errors = Errors::default();
        let all = stacked(quote!(cmd = "top"), &mut attrs, &mut errors);
        let commands: Vec<_> = all
            .iter()
            .map(|args| args.entry("cmd").unwrap().literal().unwrap().value())
            .collect();
        assert_eq!(commands, ["top", "a", "b"]);
        assert_eq!(attrs.len(), 4);
        assert_eq!(attrs.iter().filter(|attr| is_rstest_fixture(attr)).count(), 3);
        assert!(!errors.any());
    }

    /// Fails if a builder method has no key.
    #[test]
    fn every_method_of_the_recipe_is_a_key() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../mirakuru-core/src/recipe/builder.rs"
        );
        let Ok(source) = std::fs::read_to_string(path) else {
            return; // The published package does not contain mirakuru-core.
        };
        let mut methods: Vec<&str> = source
            .lines()
            .filter_map(|line| line.trim().strip_prefix("pub fn "))
            .filter(|line| line.contains("(mut self"))
            .filter_map(|line| line.split(['(', '<']).next())
            .filter(|name| !name.starts_with("__"))
            .collect();
        let mut setters: Vec<&str> = SETTERS.iter().map(|setter| setter.key).collect();
        methods.sort_unstable();
        setters.sort_unstable();
        assert_eq!(methods, setters);
    }
}
