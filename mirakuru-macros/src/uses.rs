//! Finds the names that an expression uses but does not declare, according to Rust's scoping rules.
//!
//! A name may be an item that the attribute cannot see, and a macro may interpret its tokens in any
//! way. So each use has a certainty, and only a certain use can lead to an error.

use proc_macro2::{Delimiter, Ident, Span, TokenStream, TokenTree};
use syn::ext::IdentExt as _;
use syn::parse::{Parse, ParseStream, Parser as _};
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Block, Expr, ExprPath, Item, Lit, Macro, Member, Pat, Path, Stmt, Token};

use crate::args::literal;

/// A name that an expression uses.
pub(crate) struct Use {
    /// The name without `r#`.
    pub(crate) name: String,
    pub(crate) span: Span,
    pub(crate) certainty: Certainty,
    /// The field in `name.field`.
    pub(crate) field: Option<Ident>,
}

#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(crate) enum Certainty {
    /// The name is called, so it is a function, not a service.
    Called,
    /// The name occurs in an unknown macro, so it may mean anything.
    InMacro,
    /// The name is a value: a variable, a function or a constant.
    Value,
    /// The name is a variable: its methods, fields or elements are used, or it is borrowed or
    /// formatted.
    Variable,
}

/// Finds the names that these expressions use, in order.
pub(crate) fn uses(expressions: &[&Expr]) -> Vec<Use> {
    let mut search = Search::default();
    for expr in expressions {
        search.visit_expr(expr);
    }
    search.found
}

/// Returns the name if the expression is a single name.
fn bare(expr: &Expr) -> Option<&Ident> {
    match expr {
        Expr::Path(ExprPath {
            qself: None, path, ..
        }) => path.get_ident(),
        Expr::Group(group) => bare(&group.expr),
        Expr::Paren(paren) => bare(&paren.expr),
        _ => None,
    }
}

#[derive(Default)]
struct Search {
    found: Vec<Use>,
    /// The names declared at the current position, those of the innermost scope last.
    declared: Vec<Declared>,
}

struct Declared {
    name: Ident,
    /// Whether a macro or a condition decides if the name is declared at all.
    perhaps: bool,
}

impl Search {
    fn declare(&mut self, name: &Ident, perhaps: bool) {
        let name = name.unraw();
        self.declared.push(Declared { name, perhaps });
    }

    fn scope(&mut self, search: impl FnOnce(&mut Search)) {
        let outside = self.declared.len();
        search(self);
        self.declared.truncate(outside);
    }

    fn add(&mut self, name: &Ident, certainty: Certainty, field: Option<Ident>) {
        self.add_word(name.unraw().to_string(), name.span(), certainty, field);
    }

    fn add_word(&mut self, name: String, span: Span, certainty: Certainty, field: Option<Ident>) {
        let mut declared = self.declared.iter().filter(|declared| declared.name == name);
        let certainty = match declared.clone().next() {
            Some(_) if declared.any(|declared| !declared.perhaps) => return,
            Some(_) if certainty > Certainty::InMacro => Certainty::InMacro,
            _ => certainty,
        };
        self.found.push(Use {
            name,
            span,
            certainty,
            field,
        });
    }

    /// Searches an expression whose methods or fields are used, or which is borrowed or formatted.
    /// If the expression is a single name, that name is a variable.
    fn variable(&mut self, expr: &Expr, field: Option<Ident>) {
        match bare(expr) {
            Some(name) => self.add(name, Certainty::Variable, field),
            None => self.visit_expr(expr),
        }
    }

    /// Searches the tokens of an unknown macro.
    fn tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let is = |at: Option<usize>, wanted: char| match at.and_then(|at| tokens.get(at)) {
            Some(TokenTree::Punct(punct)) => punct.as_char() == wanted,
            _ => false,
        };
        for (at, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(name) => {
                    let (before, two_before) = (at.checked_sub(1), at.checked_sub(2));
                    // `x.name`, but not the range `x..name`.
                    let is_field = is(before, '.') && !is(two_before, '.');
                    let is_lifetime = is(before, '\'');
                    let ends_a_path = is(before, ':') && is(two_before, ':');
                    // `name::` in a path, or `name: value` in a struct.
                    let goes_on = is(Some(at + 1), ':');
                    let is_macro = is(Some(at + 1), '!') && !is(Some(at + 2), '=');
                    let is_called = matches!(
                        tokens.get(at + 1),
                        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis
                    );
                    let is_no_name = is_field || is_lifetime || ends_a_path || goes_on || is_macro;
                    if !is_no_name && name != "self" {
                        let certainty = if is_called {
                            Certainty::Called
                        } else {
                            Certainty::InMacro
                        };
                        self.add(name, certainty, None);
                    }
                }
                TokenTree::Literal(literal) => {
                    if let Lit::Str(text) = Lit::new(literal.clone()) {
                        for name in captures(&text.value()) {
                            self.add_word(name, text.span(), Certainty::InMacro, None);
                        }
                    }
                }
                TokenTree::Punct(_) => {}
            }
        }
    }

    /// Searches the arguments of a standard library macro.
    fn arguments(&mut self, arguments: &Arguments, format_string: Option<usize>) {
        let mut named = Vec::new();
        for argument in arguments {
            named.extend(argument.name.as_ref().map(|name| name.unraw()));
        }
        for (at, Argument { value, .. }) in arguments.iter().enumerate() {
            match literal(value) {
                Some(text) if format_string == Some(at) => {
                    for name in captures(&text.value()) {
                        if !named.iter().any(|known| *known == name) {
                            self.add_word(name, text.span(), Certainty::Variable, None);
                        }
                    }
                }
                _ if format_string.is_some() => self.variable(value, None),
                _ => self.visit_expr(value),
            }
        }
    }

    /// Marks all names in a macro call as possibly declared, for the statements that follow.
    fn perhaps_declared(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.perhaps_declared(group.stream()),
                TokenTree::Ident(name) => self.declare(&name, true),
                _ => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Search {
    fn visit_expr(&mut self, expr: &'ast Expr) {
        match expr {
            Expr::Path(_) => {
                if let Some(name) = bare(expr) {
                    self.add(name, Certainty::Value, None);
                }
            }
            Expr::MethodCall(call) => {
                self.variable(&call.receiver, None);
                call.args.iter().for_each(|argument| self.visit_expr(argument));
            }
            Expr::Field(field) => {
                let name = match &field.member {
                    Member::Named(name) => Some(name.clone()),
                    Member::Unnamed(_) => None,
                };
                self.variable(&field.base, name);
            }
            // `&name` is treated as a variable, because references to functions are unusual.
            Expr::Reference(reference) => self.variable(&reference.expr, None),
            Expr::Index(indexed) => {
                self.variable(&indexed.expr, None);
                self.visit_expr(&indexed.index);
            }
            Expr::Call(call) => {
                match bare(&call.func) {
                    Some(name) => self.add(name, Certainty::Called, None),
                    None => self.visit_expr(&call.func),
                }
                call.args.iter().for_each(|argument| self.visit_expr(argument));
            }
            Expr::Closure(closure) => self.scope(|search| {
                closure.inputs.iter().for_each(|input| search.visit_pat(input));
                search.visit_expr(&closure.body);
            }),
            Expr::Let(condition) => {
                self.visit_expr(&condition.expr);
                self.visit_pat(&condition.pat);
            }
            Expr::If(branches) => {
                self.scope(|search| {
                    search.visit_expr(&branches.cond);
                    search.visit_block(&branches.then_branch);
                });
                if let Some((_, otherwise)) = &branches.else_branch {
                    self.visit_expr(otherwise);
                }
            }
            Expr::While(_) => self.scope(|search| visit::visit_expr(search, expr)),
            Expr::ForLoop(repeated) => {
                self.visit_expr(&repeated.expr);
                self.scope(|search| {
                    search.visit_pat(&repeated.pat);
                    search.visit_block(&repeated.body);
                });
            }
            // A `const` block cannot use variables.
            Expr::Const(_) => {}
            Expr::Repeat(repeated) => self.visit_expr(&repeated.expr),
            Expr::Verbatim(tokens) => self.tokens(tokens.clone()),
            _ => visit::visit_expr(self, expr),
        }
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        self.scope(|search| visit::visit_arm(search, arm));
    }

    fn visit_block(&mut self, block: &'ast Block) {
        self.scope(|search| {
            for stmt in &block.stmts {
                match stmt {
                    Stmt::Item(Item::Fn(item)) => search.declare(&item.sig.ident, !item.attrs.is_empty()),
                    Stmt::Item(Item::Const(item)) => search.declare(&item.ident, !item.attrs.is_empty()),
                    Stmt::Item(Item::Static(item)) => search.declare(&item.ident, !item.attrs.is_empty()),
                    _ => {}
                }
            }
            visit::visit_block(search, block);
        });
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if let Some(init) = &local.init {
            self.visit_expr(&init.expr);
            if let Some((_, diverge)) = &init.diverge {
                self.visit_expr(diverge);
            }
        }
        let above = self.declared.len();
        self.visit_pat(&local.pat);
        for declared in &mut self.declared[above..] {
            declared.perhaps |= !local.attrs.is_empty();
        }
    }

    fn visit_stmt_macro(&mut self, stmt: &'ast syn::StmtMacro) {
        self.visit_macro(&stmt.mac);
        if arguments_of(&stmt.mac).is_none() {
            self.perhaps_declared(stmt.mac.tokens.clone());
        }
    }

    fn visit_pat(&mut self, pat: &'ast Pat) {
        match pat {
            Pat::Ident(pat) => {
                self.declare(&pat.ident, false);
                if let Some((_, inside)) = &pat.subpat {
                    self.visit_pat(inside);
                }
            }
            Pat::Macro(pat) => self.perhaps_declared(pat.mac.tokens.clone()),
            Pat::Verbatim(tokens) => self.perhaps_declared(tokens.clone()),
            Pat::Const(_) | Pat::Lit(_) | Pat::Path(_) | Pat::Range(_) => {}
            _ => visit::visit_pat(self, pat),
        }
    }

    fn visit_macro(&mut self, mac: &'ast Macro) {
        match arguments_of(mac) {
            Some((arguments, format_string)) => self.arguments(&arguments, format_string),
            None => self.tokens(mac.tokens.clone()),
        }
    }

    // Attributes and items cannot use variables.

    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}

    fn visit_item(&mut self, _: &'ast Item) {}

    fn visit_path(&mut self, _: &'ast Path) {}

    fn visit_type(&mut self, _: &'ast syn::Type) {}
}

type Arguments = Punctuated<Argument, Token![,]>;

/// A macro's argument: `value`, or `name = value`.
struct Argument {
    name: Option<Ident>,
    value: Expr,
}

impl Parse for Argument {
    fn parse(input: ParseStream<'_>) -> syn::Result<Argument> {
        let mut name = None;
        if input.peek(Ident::peek_any) && input.peek2(Token![=]) && !input.peek2(Token![==]) {
            name = Some(Ident::parse_any(input)?);
            input.parse::<Token![=]>()?;
        }
        let value = input.parse()?;
        Ok(Argument { name, value })
    }
}

/// Parses the arguments of a standard library macro that takes expressions. Also returns the
/// position of its format string. `None` for any other macro.
fn arguments_of(mac: &Macro) -> Option<(Arguments, Option<usize>)> {
    let words = &mac.path.segments;
    let is_std = ["std", "core", "alloc"].iter().any(|word| words[0].ident == word);
    if words.len() > 1 && !is_std {
        return None;
    }
    let format_string = match &*words.last()?.ident.to_string() {
        "format" | "format_args" | "print" | "println" | "eprint" | "eprintln" | "panic" | "todo"
        | "unimplemented" | "unreachable" => Some(0),
        "write" | "writeln" | "assert" | "debug_assert" => Some(1),
        "assert_eq" | "assert_ne" | "debug_assert_eq" | "debug_assert_ne" => Some(2),
        "vec" | "dbg" => None,
        _ => return None,
    };
    let arguments = Arguments::parse_terminated.parse2(mac.tokens.clone()).ok()?;
    Some((arguments, format_string))
}

/// The variables that a format string refers to, such as `db` and `width` in `"{db:>width$}"`.
fn captures(text: &str) -> Vec<String> {
    let is_in_word = |char: char| char == '_' || char.is_alphanumeric();
    let mut words = Vec::new();
    let mut rest = text;
    while let Some(brace) = rest.find('{') {
        rest = &rest[brace + 1..];
        if let Some(escaped) = rest.strip_prefix('{') {
            rest = escaped;
            continue;
        }
        let Some(end) = rest.find('}') else { break };
        let (name, spec) = rest[..end].split_once(':').unwrap_or((&rest[..end], ""));
        words.push(name.trim());
        let mut spec = spec;
        while let Some((before_dollar, _)) = spec.rsplit_once('$') {
            let word = before_dollar
                .rsplit(|char| !is_in_word(char))
                .next()
                .unwrap_or_default();
            words.push(word.trim_start_matches(|digit: char| digit.is_ascii_digit()));
            spec = before_dollar;
        }
        rest = &rest[end + 1..];
    }
    let mut names = Vec::new();
    for word in words {
        let begins_a_name = word
            .chars()
            .next()
            .is_some_and(|first| first == '_' || first.is_alphabetic());
        if begins_a_name && word.chars().all(is_in_word) {
            names.push(word.to_owned());
        }
    }
    names
}

/// The variables that a pattern declares.
pub(crate) fn declared_by(pat: &Pat) -> Vec<Ident> {
    let mut search = Search::default();
    search.visit_pat(pat);
    let mut names = Vec::new();
    for declared in search.declared {
        names.push(declared.name);
    }
    names
}

/// Whether two identifiers are the same name: `r#db` is the same as `db`.
pub(crate) fn is_same(one: &Ident, other: &Ident) -> bool {
    one.unraw() == other.unraw()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names that an expression uses but does not call: `db` for a variable, `db?` for a value
    /// of any kind, `db~` for a name in an unknown macro.
    fn found(expr: &str) -> String {
        let expr: Expr = syn::parse_str(expr).unwrap_or_else(|error| panic!("{expr}: {error}"));
        let found = uses(&[&expr]).into_iter().filter_map(|used| {
            let mark = match used.certainty {
                Certainty::Variable => "",
                Certainty::Value => "?",
                Certainty::InMacro => "~",
                Certainty::Called => return None,
            };
            Some(used.name + mark)
        });
        found.collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn table(rows: &[(&str, &str)]) {
        for (expr, names) in rows {
            assert_eq!(found(expr), *names, "{expr}");
        }
    }

    #[test]
    fn names_that_are_used() {
        table(&[
            ("db", "db?"),
            ("db.url()", "db"),
            ("(db).url().port(cache)", "db cache?"),
            ("db.port", "db"),
            ("&db.nodes[0].dir", "db"),
            ("url(db, &cache)", "db? cache"),
            ("[db.url(), url(cache)]", "db cache?"),
            ("(\"URL\", db.url())", "db"),
            ("Config { db, cache: server.port(), ..rest }", "db? server rest?"),
            ("-db + !cache * 2", "db? cache?"),
            ("db..cache", "db? cache?"),
            ("db.await.x?", "db?"),
            ("async move { db.url() }", "db"),
            ("unsafe { db.url() }", "db"),
            ("'db: loop { break 'db db.port() }", "db"),
            ("r#type.url()", "type"),
            ("self.db", "self"),
            ("url(|| db.url())", "db"),
            ("x = db", "x? db?"),
        ]);
    }

    #[test]
    fn names_that_are_no_variables() {
        table(&[
            ("db()", ""),
            ("db::<u8>()", ""),
            ("db::<u8>", ""),
            ("db::url()", ""),
            ("module::db", ""),
            ("crate::db", ""),
            ("self::db", ""),
            ("::db", ""),
            ("<db as cache>::url", ""),
            ("config.db()", "config"),
            ("config.db", "config"),
            ("Config { db: 1 }", ""),
            ("parse::<db>()", ""),
            ("text.parse::<db>()", "text"),
            ("x as db", "x?"),
            ("[0; db]", ""),
            ("const { db }", ""),
            ("'db: loop { break 'db }", ""),
            ("db! { }", ""),
            ("\"{db}\"", ""),
            ("[\"--port\", \"{db}\"]", ""),
            ("|_: db| -> cache { 1 }", ""),
        ]);
    }

    #[test]
    fn names_that_the_expression_declares() {
        table(&[
            ("{ let db = 1; db.url() }", ""),
            ("{ let db = db.url(); db.url() }", "db"),
            ("{ let x = db.url(); let db = x; db.url() }", "db"),
            ("{ { let db = 1; } db.url() }", "db"),
            ("{ let (db, [cache, ..]) = x(); (db.a, cache.a) }", ""),
            ("{ let Config { db, port: cache } = x(); (db.a, cache.a) }", ""),
            ("{ let db: u8; db.url() }", ""),
            ("{ let ref mut db @ _ = 1; db.url() }", ""),
            ("{ let Some(db) = x() else { db.url(); return }; db.url() }", "db"),
            ("|db| db.url()", ""),
            ("|&(db, cache): &(u8, u8)| (db.url(), cache.url())", ""),
            ("(|db| 1, db.url())", "db"),
            ("x().map(|db| db.url()).or(db.url())", "db"),
            ("match x() { Some(db) => db.url(), None => db.port() }", "db"),
            ("match x() { Some(db) if db.is() => db.url(), _ => 1 }", ""),
            (
                "match db.x() { A(db) | B { db } => db.url(), db => db.y() }",
                "db",
            ),
            ("match x() { db @ 1..=2 => db.url(), _ => 1 }", ""),
            (
                "if let Some(db) = db.x() { db.url() } else { db.port() }",
                "db db",
            ),
            ("if let Some(db) = x() && db.is() { db.url() } else { 1 }", ""),
            (
                "if a() { 1 } else if let Some(db) = x() { db.url() } else { db.y() }",
                "db",
            ),
            ("while let Some(db) = db.next() { db.url(); }", "db"),
            ("for db in db.all() { db.url(); }", "db"),
            (
                "{ for db in all() { db.url(); } while let Some(db) = x() {} db.url() }",
                "db",
            ),
            ("{ db.url(); fn db() {} x(db) }", ""),
            ("{ fn f(db: u8) { db.url(); cache.url() } f(1) }", ""),
            ("{ const db: u8 = 1; static cache: u8 = 1; (db, cache) }", ""),
            ("{ use x::db; db.url() }", "db"),
            ("{ let r#db = 1; db.url() }", ""),
            ("{ let db = 1; format!(\"{db}\", ) }", ""),
            ("{ let db = 1; json!({ \"url\": db }) }", ""),
            ("{ declare!(db); db.url() }", "db~ db~"),
            ("{ log!(x.db); db.url() }", "x~ db~"),
            ("x(|db| { log!(db); db.url() })", ""),
            ("{ #[cfg(a)] let db = 1; db.url() }", "db~"),
            ("{ #[cfg(a)] fn db() {} db.url() }", "db~"),
            ("match x() { db!(db) => db.url() }", "db~"),
            ("{ println!(\"{}\", db); db.url() }", "db db"),
        ]);
    }

    #[test]
    fn names_in_macros() {
        table(&[
            ("format!(\"{db}\")", "db"),
            ("format!(\"{db:?} {cache:>8} {{server}}\")", "db cache"),
            ("format!(\"{{{db}}}\")", "db"),
            ("format!(\"{}\", db)", "db"),
            ("format!(\"{0} {}\", cache.port())", "cache"),
            (
                "format!(\"{:>width$.precision$} {x:08w$}\", 1)",
                "precision width x w",
            ),
            ("format!(\"{db}\", db = cache.url())", "cache"),
            ("format!(r#\"{db}\"#)", "db"),
            ("format!(\"{}\", \"{db}\")", ""),
            ("format!(\"{}\", format!(\"{db}\"))", "db"),
            ("format!(\"{x}\", x = { let db = 1; db })", ""),
            ("format!(\"{type}\")", "type"),
            ("format!(\"{ db }\")", "db"),
            ("format!(\"} {\")", ""),
            ("std::format!(\"{db}\")", "db"),
            ("write!(out, \"{db}\")", "out db"),
            ("assert!(db.is(), \"{cache}\")", "db cache"),
            ("assert_eq!(\"{db}\", 1, \"{cache}\")", "cache"),
            ("vec![db.url(), url(cache), \"{server}\"]", "db cache?"),
            ("vec![db.url(); 3]", "db~"),
            ("json!({ \"url\": db.url(), x.cache: 1, server: 2 })", "db~ x~"),
            (
                "json!({ \"url\": format!(\"{db}\"), \"port\": \"{port}\" })",
                "db~ port~",
            ),
            ("mine::format!(\"{db}\")", "db~"),
            ("mine!(\"{'} {\\\"} {#} {a b} {/*} {[}\")", ""),
            ("mine!(\"{größe:ſ} {ﬁ\u{345}x}\")", "größe~ ﬁ\u{345}x~"),
            ("sql!('db cache(), mod::server, x!() 1..y)", "y~"),
        ]);
    }
}
