//! Finds the services that a recipe is made from: the names of other fixtures in its expressions.
//!
//! It searches tokens, even inside macros and closures, and does not know their meaning. If an
//! expression declares a variable with the name of a fixture, that counts as the fixture. The only
//! effect is that the service starts later than it could.

use std::collections::HashSet;

use proc_macro2::{Delimiter, Ident, Spacing, Span, TokenStream, TokenTree};
use quote::ToTokens;

use crate::args::{Args, Target};
use crate::errors::Errors;
use crate::nearest::closest;

/// For each fixture, the ones that it needs, as places in the list. Each of them stands above it.
pub(crate) type Needs = Vec<Vec<usize>>;

/// Finds the needs of fixtures with these names; some have no name. `others` are further variables
/// in scope.
pub(crate) fn needs(
    fixtures: &[&Args],
    names: &[Option<Ident>],
    others: &[&Ident],
    errors: &mut Errors,
) -> Needs {
    let used: Vec<Vec<Use>> = fixtures.iter().map(|fixture| uses(fixture)).collect();
    let place = |name: &Ident| names.iter().position(|known| known.as_ref() == Some(name));
    let mut needs = vec![Vec::new(); fixtures.len()];
    for (at, uses) in used.iter().enumerate() {
        let declared = declared(fixtures[at]);
        for Use { name, is_receiver } in uses {
            let Some(other) = place(name) else {
                let is_known = !is_receiver || others.contains(&name) || declared.contains(&name.to_string());
                if let Some(meant) = (!is_known).then(|| mistyped(name, &names[..at])).flatten() {
                    let message = format!("no service above is called `{name}`: did you mean `{meant}`?");
                    errors.at(name.span(), message);
                }
                continue;
            };
            if other < at {
                if !needs[at].contains(&other) {
                    needs[at].push(other);
                }
                continue;
            }
            let message = match chain(&used, names, other, at) {
                _ if other == at => format!("`{name}` needs itself: its recipe is made before it starts"),
                Some(chain) => in_a_circle(names, at, &chain),
                None => format!("`{name}` stands below: move it above the service that needs it"),
            };
            errors.at(name.span(), message);
            // Reports one mistake for each service. In a cycle it reports only the service that
            // stands above.
            break;
        }
    }
    needs
}

/// A chain of services from the first one to the second one, each of which uses the next. `None` if
/// the first one does not need the second one.
fn chain(used: &[Vec<Use>], names: &[Option<Ident>], from: usize, to: usize) -> Option<Vec<usize>> {
    let mut ways = vec![vec![from]];
    let mut seen = vec![from];
    while let Some(way) = ways.pop() {
        let at = *way.last()?;
        if at == to {
            return Some(way);
        }
        for Use { name, .. } in &used[at] {
            let next = names.iter().position(|known| known.as_ref() == Some(name));
            if let Some(next) = next.filter(|next| !seen.contains(next)) {
                seen.push(next);
                ways.push(way.iter().copied().chain([next]).collect());
            }
        }
    }
    None
}

/// The message about services that need each other, beginning with this one.
fn in_a_circle(names: &[Option<Ident>], at: usize, chain: &[usize]) -> String {
    let name = |place: usize| {
        names[place]
            .as_ref()
            .map_or_else(String::new, |name| format!("`{name}`"))
    };
    let circle: Vec<usize> = [at].iter().chain(chain).copied().collect();
    let needs = circle
        .windows(2)
        .map(|pair| format!("{} needs {}", name(pair[0]), name(pair[1])));
    let needs: Vec<String> = needs.collect();
    let (last, first) = needs.split_last().expect("two services at least");
    let who = match chain.len() {
        2 => "one of the two must start without the other",
        _ => "one of them must start without the next one",
    };
    format!("{}, and {last}: {who}", first.join(", "))
}

/// An identifier in an expression that may be a variable.
struct Use {
    name: Ident,
    /// Its method or field is used, so it is a variable.
    is_receiver: bool,
}

/// The first use of this name in an attribute's expressions.
pub(crate) fn place_of_use(args: &Args, name: &Ident) -> Option<Span> {
    let uses = uses(args);
    let mut places = uses.iter().filter(|used| used.name == *name);
    places.next().map(|used| used.name.span())
}

fn uses(args: &Args) -> Vec<Use> {
    let mut found = Vec::new();
    for expr in expressions(args) {
        collect(expr, &mut found);
    }
    found
}

fn expressions(args: &Args) -> impl Iterator<Item = TokenStream> {
    let values = args
        .entries
        .iter()
        .filter(|entry| matches!(entry.target(), Target::Free));
    let values = values.filter_map(|entry| entry.value.as_ref());
    args.expr.iter().chain(values).map(ToTokens::to_token_stream)
}

fn collect(tokens: TokenStream, found: &mut Vec<Use>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let is = |at: Option<usize>, wanted: char| match at.and_then(|at| tokens.get(at)) {
        Some(TokenTree::Punct(punct)) => punct.as_char() == wanted,
        _ => false,
    };
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Group(group) => collect(group.stream(), found),
            TokenTree::Ident(name) => {
                let (before, two_before) = (at.checked_sub(1), at.checked_sub(2));
                // `x.name`, but not the range `x..name`.
                let is_field = is(before, '.') && !is(two_before, '.');
                let is_lifetime = is(before, '\'');
                let ends_a_path = is(before, ':') && is(two_before, ':');
                // A path goes on (`name::`), or a field is given its value (`name: value`).
                let goes_on = is(Some(at + 1), ':');
                let is_macro = is(Some(at + 1), '!') && !is(Some(at + 2), '=');
                let is_called = matches!(
                    tokens.get(at + 1),
                    Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis
                );
                if !(is_field || is_lifetime || ends_a_path || goes_on || is_macro || is_called) {
                    let is_receiver = is(Some(at + 1), '.') && !is(Some(at + 2), '.');
                    let name = name.clone();
                    found.push(Use { name, is_receiver });
                }
            }
            _ => {}
        }
    }
}

/// Names that an attribute's expressions declare themselves: by `let`, as a parameter of a closure,
/// or in a pattern.
fn declared(args: &Args) -> HashSet<String> {
    let mut declared = HashSet::new();
    for expr in expressions(args) {
        declarations(expr, &mut declared);
    }
    declared
}

fn declarations(tokens: TokenStream, declared: &mut HashSet<String>) {
    let mut in_bars = false;
    let mut after_keyword = false;
    for token in tokens {
        match token {
            TokenTree::Group(group) => {
                if in_bars || after_keyword {
                    let mut inside = Vec::new();
                    collect(group.stream(), &mut inside);
                    declared.extend(inside.iter().map(|inside: &Use| inside.name.to_string()));
                }
                declarations(group.stream(), declared);
            }
            TokenTree::Ident(ident) if ident == "let" || ident == "for" || ident == "match" => {
                after_keyword = true
            }
            TokenTree::Ident(ident) => {
                if in_bars || after_keyword {
                    declared.insert(ident.to_string());
                }
            }
            TokenTree::Punct(punct) => {
                in_bars ^= punct.as_char() == '|' && punct.spacing() == Spacing::Alone;
                after_keyword &= !matches!(punct.as_char(), '=' | ';');
            }
            TokenTree::Literal(_) => {}
        }
    }
}

/// The service with nearly this name, which the user probably meant.
fn mistyped(variable: &Ident, above: &[Option<Ident>]) -> Option<String> {
    let known: Vec<String> = above.iter().flatten().map(Ident::to_string).collect();
    let word = variable.to_string();
    // With one letter, every other name would be close.
    let meant = (word.len() > 1).then(|| closest(&word, known.iter().map(String::as_str)));
    meant.flatten().map(str::to_owned)
}
