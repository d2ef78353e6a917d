//! Placeholders in the literals of the attribute: the rules of mirakuru-core, applied at compile
//! time.
//!
//! A placeholder is `{word}` or `{word:argument}` without a `$` before it. A word is a lower-case
//! letter, followed by lower-case letters, digits and `_`. An argument contains no braces, quotes
//! or white space. `{{word}}` stands for the text `{word}`. Any other brace stands for itself. The
//! text is read from the left, and the doubled form takes precedence at each position.
//!
//! One rule is stricter here: a known word with an empty argument, such as `{port:}`, is a mistake.

use std::ops::Range;

/// The first mistake in a string, and its position.
#[derive(Debug, PartialEq)]
pub(crate) struct Mistake {
    pub(crate) place: Range<usize>,
    pub(crate) message: String,
}

/// Finds the first placeholder that does not exist or has a wrong argument.
pub(crate) fn check(text: &str) -> Option<Mistake> {
    let mut at = 0;
    while let Some(offset) = text[at..].find('{') {
        let brace = at + offset;
        if let Some(end) = escaped(text, brace) {
            at = end;
            continue;
        }
        at = brace + 1;
        if text[..brace].ends_with('$') {
            continue;
        }
        if let Some(found) = placeholder(text, brace) {
            at = found.end;
            if let Some(message) = found.mistake() {
                return Some(Mistake {
                    place: brace..found.end,
                    message,
                });
            }
        }
    }
    None
}

const KNOWN: [&str; 5] = ["port", "dir", "name", "id", "env"];

struct Found<'a> {
    word: &'a str,
    argument: Option<&'a str>,
    end: usize,
}

impl Found<'_> {
    fn mistake(&self) -> Option<String> {
        let Found { word, argument, .. } = *self;
        match (word, argument) {
            ("port" | "env", Some("")) => Some(format!(
                "the placeholder `{{{word}:}}` has an empty argument: write `{{{word}:NAME}}`"
            )),
            ("env", None) => {
                Some("the placeholder `{env}` lacks the variable's name: write `{env:NAME}`".to_owned())
            }
            ("dir" | "name" | "id", Some(_)) => Some(format!(
                "the placeholder `{{{word}}}` takes no argument: write `{{{word}}}`"
            )),
            ("port" | "env" | "dir" | "name" | "id", _) => None,
            _ => Some(format!(
                "unknown placeholder `{{{word}}}`: there are `{{port}}`, `{{port:NAME}}`, `{{dir}}`, \
                    `{{name}}`, `{{id}}` and \
                 `{{env:VAR}}`; to write braces literally, double them: `{{{{{word}}}}}`"
            )),
        }
    }
}

/// Returns the end of `{{word}}` or `{{word:argument}}`, if one begins at this brace.
fn escaped(text: &str, brace: usize) -> Option<usize> {
    if !text[brace + 1..].starts_with('{') {
        return None;
    }
    let inner = placeholder(text, brace + 1)?;
    text[inner.end..].starts_with('}').then_some(inner.end + 1)
}

/// Parses the text between this brace and the next closing one, if it has the form of a
/// placeholder.
fn placeholder(text: &str, brace: usize) -> Option<Found<'_>> {
    let inside = &text[brace + 1..];
    let inside = &inside[..inside.find(['{', '}'])?];
    let end = brace + 1 + inside.len() + 1;
    if !text[..end].ends_with('}') {
        return None;
    }
    let (word, argument) = match inside.split_once(':') {
        Some((word, argument)) => (word, Some(argument)),
        None => (inside, None),
    };
    let is_word = word.starts_with(|first: char| first.is_ascii_lowercase())
        && word
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    let is_argument = |argument: &str| match argument {
        "" => KNOWN.contains(&word),
        _ => !argument.contains(|char: char| char.is_ascii_whitespace() || "'\"".contains(char)),
    };
    (is_word && argument.is_none_or(is_argument)).then_some(Found { word, argument, end })
}

#[cfg(test)]
mod tests {
    use super::check;

    #[track_caller]
    fn fine(text: &str) {
        assert_eq!(check(text), None, "{text}");
    }

    #[track_caller]
    fn wrong(text: &str, place: &str, message: &str) {
        let mistake = check(text).unwrap_or_else(|| panic!("no mistake found in {text}"));
        assert_eq!(&text[mistake.place.clone()], place);
        assert!(mistake.message.contains(message), "{}", mistake.message);
    }

    #[test]
    fn the_known_ones() {
        fine("");
        fine("redis-server --port {port} --dir {dir}/{name} {port:admin} {env:HOME}");
    }

    #[test]
    fn every_other_brace_stands_for_itself() {
        fine(r#"{"port": 1, "a": {"b": {}}}"#);
        fine(
            "${service_dir} $${service_dir} {HOME} {Port} {2port} {1..9} {a,b} {} { port } {print $1} {a b}",
        );
        fine("{{{{ }}}} }{ {");
        fine(r#"{port: 80} {a:} {prot:'x'} {prot:"x"} {prot:{x y}}"#);
        fine("ünïcode {ü} {port}");
    }

    #[test]
    fn doubled_braces_are_literal() {
        fine("{{prot}} {{prot:x}} {{env}} {{{prot}}}");
    }

    #[test]
    fn unknown_words() {
        wrong("a {prot} b", "{prot}", "unknown placeholder `{prot}`");
        wrong("a {prot:x} b", "{prot:x}", "`{env:VAR}`");
        wrong("{pid_file}", "{pid_file}", "unknown");
        wrong("{port2}", "{port2}", "unknown");
        wrong("{port}{prot}", "{prot}", "`{{prot}}`");
        wrong("{{prot}", "{prot}", "unknown");
        wrong("{port{prot}}", "{prot}", "unknown");
    }

    #[test]
    fn wrong_arguments() {
        wrong("{env}", "{env}", "`{env:NAME}`");
        wrong("{env:}", "{env:}", "empty");
        wrong("{port:}", "{port:}", "empty");
        wrong("{dir:x}", "{dir:x}", "no argument");
        wrong("{name:}", "{name:}", "no argument");
    }
}
