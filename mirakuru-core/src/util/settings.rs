//! Environment variables that accept only certain words.

use once_cell::sync::Lazy;

const ON: [&str; 4] = ["1", "true", "yes", "on"];
const OFF: [&str; 4] = ["0", "false", "no", "off"];

pub(crate) const KEEP: &str = "MIRAKURU_KEEP";
pub(crate) const LIVE: &str = "MIRAKURU_LIVE";
#[doc(hidden)]
pub const MISSING: &str = "MIRAKURU_MISSING";
pub(crate) const QUIET: &str = "MIRAKURU_QUIET";
pub(crate) const SCOPE: &str = "MIRAKURU_SCOPE";

/// The variables and the values that messages propose, in this order. An empty value counts as
/// unset.
const CHOICES: [(&str, &[&str]); 5] = [
    (KEEP, &["1", "0"]),
    (LIVE, &["1", "0"]),
    (MISSING, &["skip", "fail"]),
    (QUIET, &["1", "0"]),
    (SCOPE, &["process", "users", "run"]),
];

/// Whether this variable is set to a value that does not mean "off".
pub(crate) fn is_on(name: &str) -> bool {
    let value = std::env::var_os(name).unwrap_or_default();
    !value.is_empty() && !is_word_of(&OFF, &value.to_string_lossy())
}

fn is_word_of(words: &[&str], value: &str) -> bool {
    words.iter().any(|word| word.eq_ignore_ascii_case(value))
}

/// The first variable with an unknown value, and the reason why the value is refused.
pub(crate) fn unknown() -> Option<&'static (&'static str, String)> {
    static UNKNOWN: Lazy<Option<(&str, String)>> = Lazy::new(|| {
        CHOICES.iter().find_map(|(name, known)| {
            let value = std::env::var_os(name)?;
            let value = value.to_string_lossy();
            Some((*name, refusal(known, &value)?))
        })
    });
    UNKNOWN.as_ref()
}

/// The reason why a value is refused. `None` if it is empty or known.
fn refusal(known: &[&str], value: &str) -> Option<String> {
    let is_switch = known == ["1", "0"] && [ON, OFF].iter().any(|words| is_word_of(words, value));
    let is_known = value.is_empty() || is_switch || known.contains(&value);
    (!is_known).then(|| {
        format!(
            "its value `{value}` is not known: write `{}`",
            known.join("` or `")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_not_known_is_refused_with_those_that_are() {
        let choice = ["skip", "fail"];
        for value in ["", "skip", "fail"] {
            assert_eq!(refusal(&choice, value), None, "{value}");
        }
        for value in ["skp", "Skip", "1"] {
            let reason = format!("its value `{value}` is not known: write `skip` or `fail`");
            assert_eq!(refusal(&choice, value), Some(reason));
        }
        for value in ["", "1", "0", "true", "FALSE", "no", "off", "on"] {
            assert_eq!(refusal(&["1", "0"], value), None, "{value}");
        }
        assert!(refusal(&["1", "0"], "flase").is_some());
    }
}
