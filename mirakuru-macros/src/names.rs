//! Finds the services that a recipe uses: the names of other fixtures in its expressions.

use proc_macro2::{Ident, Span};
use syn::ext::IdentExt as _;

use crate::args::{Args, Target};
use crate::errors::Errors;
use crate::nearest::closest;
use crate::uses::{self, Certainty, Use};

/// The indices of the fixtures that each fixture needs. All of them are above that fixture.
pub(crate) type Needs = Vec<Vec<usize>>;

/// Finds the services that each fixture needs. `names` are the names of the fixtures, and `others`
/// are other names in scope.
pub(crate) fn needs(
    fixtures: &[&Args],
    names: &[Option<Ident>],
    others: &[Ident],
    errors: &mut Errors,
) -> Needs {
    let used: Vec<Vec<Use>> = fixtures.iter().map(|fixture| uses(fixture)).collect();
    let mut needs = vec![Vec::new(); fixtures.len()];
    for (at, uses) in used.iter().enumerate() {
        for used_here in uses {
            let Use { name, certainty, .. } = used_here;
            let other = place(names, name);
            let is_above = other.is_some_and(|other| other < at);
            if !is_above && others.iter().any(|other| other.unraw() == *name) {
                continue;
            }
            let needed = match certainty {
                Certainty::Called => continue,
                // Brings the similar name into scope, so that rustc can suggest it.
                Certainty::Value if other.is_none() && name != "self" => mistyped(name, &names[..at]),
                _ => other.filter(|_| is_above),
            };
            // If the expressions also call a function with this name, an uncertain use may mean
            // that function, so it does not count.
            let is_certain = is_above && *certainty >= Certainty::Value;
            if let Some(needed) = needed.filter(|&needed| is_certain || !calls(uses, &names[needed])) {
                if !needs[at].contains(&needed) {
                    needs[at].push(needed);
                }
            } else if let Some(message) = mistake(used_here, other, at, &used, names) {
                errors.at(used_here.span, message);
                // One mistake per service is enough. A cycle is reported only for its topmost
                // service.
                break;
            }
        }
    }
    needs
}

fn calls(uses: &[Use], name: &Option<Ident>) -> bool {
    let mut called = uses.iter().filter(|used| used.certainty == Certainty::Called);
    called.any(|called| name.as_ref().is_some_and(|name| name.unraw() == called.name))
}

fn place(names: &[Option<Ident>], name: &str) -> Option<usize> {
    let is_it = |known: &Option<Ident>| known.as_ref().is_some_and(|known| known.unraw() == *name);
    names.iter().position(is_it)
}

/// The message if the service `at` uses a name that no service above it has. `None` if the name may
/// be an item, which rustc checks.
fn mistake(
    Use {
        name,
        certainty,
        field,
        ..
    }: &Use,
    other: Option<usize>,
    at: usize,
    used: &[Vec<Use>],
    names: &[Option<Ident>],
) -> Option<String> {
    if name == "self" {
        let remedy = match field {
            Some(field) => format!("write `{field}`, not `self.{field}`"),
            None => "write that name".to_owned(),
        };
        return Some(format!(
            "there is no `self` here: a service above is in scope by its name; {remedy}"
        ));
    }
    if *certainty != Certainty::Variable {
        return None;
    }
    let Some(other) = other else {
        let above = &names[..at];
        let remedy = match mistyped(name, above).and_then(|meant| names[meant].as_ref()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            // A service above has no parameter, and therefore no name.
            None if above.contains(&None) && name.starts_with(char::is_lowercase) => {
                format!("to use one without a name, write `name = {name}` in its attribute")
            }
            None => return None,
        };
        return Some(format!("no service above is called `{name}`: {remedy}"));
    };
    Some(match chain(used, names, other, at) {
        _ if other == at => format!("`{name}` needs itself, but its recipe is created before it starts"),
        Some(chain) => in_a_circle(names, at, &chain),
        None => format!("`{name}` is declared below: move it above the service that needs it"),
    })
}

/// Finds a chain of services from `from` to `to` in which each service uses the next one. `None` if
/// there is no such chain.
fn chain(used: &[Vec<Use>], names: &[Option<Ident>], from: usize, to: usize) -> Option<Vec<usize>> {
    let mut ways = vec![vec![from]];
    let mut seen = vec![from];
    while let Some(way) = ways.pop() {
        let at = *way.last()?;
        if at == to {
            return Some(way);
        }
        for Use { name, certainty, .. } in &used[at] {
            let is_edge = |&next: &usize| match certainty {
                Certainty::Called => false,
                Certainty::InMacro | Certainty::Value => next < at,
                Certainty::Variable => true,
            };
            let next = place(names, name).filter(is_edge);
            if let Some(next) = next.filter(|next| !seen.contains(next)) {
                seen.push(next);
                ways.push([&way[..], &[next]].concat());
            }
        }
    }
    None
}

/// The message about services that need each other, beginning with the service `at`.
fn in_a_circle(names: &[Option<Ident>], at: usize, chain: &[usize]) -> String {
    let name = |place: usize| {
        names[place]
            .as_ref()
            .map_or_else(String::new, |name| format!("`{name}`"))
    };
    let (mut needs, mut user) = (Vec::new(), at);
    for &needed in chain {
        needs.push(format!("{} needs {}", name(user), name(needed)));
        user = needed;
    }
    let (last, first) = needs.split_last().expect("two services at least");
    let who = match chain.len() {
        2 => "one of the two must start without the other",
        _ => "one of them must start without the next one",
    };
    format!("{}, and {last}: {who}", first.join(", "))
}

/// The first certain use of this name in an attribute's expressions.
pub(crate) fn place_of_use(args: &Args, name: &Ident) -> Option<Span> {
    let uses = uses(args);
    let mut places = uses
        .iter()
        .filter(|used| name.unraw() == used.name && used.certainty >= Certainty::Value);
    places.next().map(|used| used.span)
}

/// Whether an attribute's expressions may use a service with this name.
pub(crate) fn uses_name(args: &Args, name: &Ident) -> bool {
    let uses = uses(args);
    let mut uses = uses.iter().filter(|used| used.certainty > Certainty::Called);
    uses.any(|used| name.unraw() == used.name)
}

/// The names that an attribute's expressions use.
fn uses(args: &Args) -> Vec<Use> {
    let mut expressions = Vec::new();
    expressions.extend(&args.expr);
    for entry in &args.entries {
        if let Target::Free = entry.target() {
            expressions.extend(&entry.value);
        }
    }
    uses::uses(&expressions)
}

/// The service with a similar name, which the user probably meant.
fn mistyped(word: &str, above: &[Option<Ident>]) -> Option<usize> {
    // A one-letter word resembles every short name, and a word with a capital letter is probably a
    // constant.
    let is_likely = word.len() > 1 && !word.starts_with(char::is_uppercase);
    if !is_likely {
        return None;
    }
    let mut known = Vec::new();
    for name in above.iter().flatten() {
        known.push(name.unraw().to_string());
    }
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    place(above, closest(word, &known)?)
}

#[cfg(test)]
mod tests {
    use quote::format_ident;

    use super::*;
    use crate::args::stacked;

    /// Gives the services `cache`, `server` and `worker` these attributes. Returns their needs and
    /// the mistakes.
    fn found(attributes: [&str; 3]) -> (Needs, Vec<String>) {
        found_with(attributes, ["cache", "server", "worker"].map(Some))
    }

    fn found_with(attributes: [&str; 3], names: [Option<&str>; 3]) -> (Needs, Vec<String>) {
        let mut errors = Errors::default();
        let parse = |text: &str| stacked(text.parse().unwrap(), &mut Vec::new(), &mut Errors::default());
        let fixtures: Vec<Args> = attributes.into_iter().flat_map(parse).collect();
        let fixtures: Vec<&Args> = fixtures.iter().collect();
        let names = names.map(|name| name.map(|name| format_ident!("{name}")));
        let others = [format_ident!("limit")];
        let needs = needs(&fixtures, &names, &others, &mut errors);
        (needs, errors.messages())
    }

    #[track_caller]
    fn one(attributes: [&str; 3], message: &str) {
        let (_, errors) = found(attributes);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].starts_with(message), "{errors:?}");
    }

    #[test]
    fn services_above() {
        for attribute in [
            "server(cache)",
            "cmd = [\"x\", &format!(\"{cache:?}\")]",
            "cmd = \"x\", env = (\"URL\", url(&cache.a, cache))",
            "cmd = \"x\", arg = json!({ \"url\": \"{cache}\" })",
            "cmd = \"x\", arg = url(cahce)",
        ] {
            let (needs, errors) = found(["cache()", attribute, "worker()"]);
            assert_eq!(needs, [vec![], vec![0], vec![]], "{attribute}");
            assert_eq!(errors, Vec::<String>::new(), "{attribute}");
        }
    }

    #[test]
    fn names_of_services_that_are_no_mistake() {
        for attribute in [
            "cmd = \"x\", args = list().map(|worker| worker.url())",
            "cmd = \"x\", arg = { let worker = 1; format!(\"{worker}\") }",
            // `worker` may be a function.
            "cmd = \"x\", args = list().map(worker)",
            "cmd = \"x\", wait_for = Check::new(\"it is there\", cache)",
            // `{worker}` may be plain text.
            "cmd = \"x\", arg = json!({ \"url\": \"{worker}\" })",
            "cmd = \"x\", arg = limit.to_string(), name = worker",
            "cmd = \"{worker}\"",
            "cmd = \"x\", arg = CACHE.port()",
            // A name that is called is a function.
            "cache()",
            "cmd = \"x\", arg = json!({ \"url\": worker() })",
        ] {
            let (needs, errors) = found([attribute, "server()", "worker()"]);
            assert_eq!(needs, [[]; 3].map(Vec::from), "{attribute}");
            assert_eq!(errors, Vec::<String>::new(), "{attribute}");
        }
    }

    #[test]
    fn functions_are_not_hidden_by_a_guess() {
        for attribute in [
            "cache().arg(json!({ \"url\": \"{cache}\" }))",
            "cache().args(list().map(caches))",
        ] {
            let (needs, errors) = found(["cache()", attribute, "worker()"]);
            assert_eq!(needs, [[]; 3].map(Vec::from), "{attribute}");
            assert_eq!(errors, Vec::<String>::new(), "{attribute}");
        }
    }

    #[test]
    fn a_service_without_a_name() {
        let mistakes = |used: &str| found_with(["x()", used, "x()"], [None, Some("server"), None]).1;
        let remedy = "no service above is called `cache`: to use one without a name, \
                      write `name = cache` in its attribute";
        assert_eq!(mistakes("x(cache.url())"), [remedy]);
        for other in [
            "x(cache)",
            "x(CACHE.url())",
            "x(limit.url())",
            "x(|cache| cache.url())",
        ] {
            assert_eq!(mistakes(other), Vec::<String>::new(), "{other}");
        }
    }

    #[test]
    fn mistakes() {
        one(["x(worker.url())", "x()", "x()"], "`worker` is declared below");
        one(
            ["x(format!(\"{worker}\"))", "x()", "x()"],
            "`worker` is declared below",
        );
        one(["x()", "x(server.url())", "x()"], "`server` needs itself");
        one(
            ["x(server.url())", "x(cache)", "x()"],
            "`cache` needs `server`, and `server` needs `cache`",
        );
        one(
            ["x(worker.a, server.b)", "x()", "x()"],
            "`worker` is declared below",
        );
        one(["x(url(&worker))", "x()", "x()"], "`worker` is declared below");
        one(["x(worker[0].url())", "x()", "x()"], "`worker` is declared below");
        one(
            ["x()", "x(cahce.url())", "x()"],
            "no service above is called `cahce`: did you mean `cache`?",
        );
        one(["x()", "x(self.cache.url())", "x()"], "there is no `self` here");
        one(["x()", "x()", "x(self)"], "there is no `self` here");
    }
}
