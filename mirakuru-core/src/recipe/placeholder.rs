//! Placeholders in commands, arguments, environment values, paths, URLs and readiness strings.
//!
//! # The grammar
//!
//! A *placeholder* is `{`, a word, optionally `:` and an argument, and `}`. The word begins with a
//! lower-case ASCII letter, and continues with such letters, digits and `_`. The argument is not
//! empty and contains no braces, quotes or white space. So JavaScript's `{port: 80}` is not a
//! placeholder. With a `$` directly before the brace, the text is left to another program:
//! `${port}` stays unchanged. Every brace that does not begin a placeholder stands for itself:
//! JSON, `{1..9}`, `{a,b}` and awk's programs are safe.
//!
//! An *escape* is a placeholder in a second pair of braces, and expands to the placeholder itself:
//! `{{port}}` becomes `{port}`.
//!
//! The text is read once from left to right. At each `{`, an escape is tried first, then a
//! placeholder. So `{{{port}}}` becomes `{{port}}` (a brace, an escape, a brace), and
//! `{"x":{port}}` becomes `{"x":6379}`. Values are not expanded again.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::error::Error;
use crate::error::secrets::mask_urls;

/// The reason why a string could not be expanded.
#[derive(Debug)]
pub(crate) enum ExpandError {
    /// The string contains a mistake. The message names the remedy.
    Text(String),
    /// No port is free.
    Port(io::Error),
}

impl ExpandError {
    pub(crate) fn in_command(self, command: &str) -> Error {
        match self {
            ExpandError::Text(reason) => Error::InvalidCommand {
                command: mask_urls(command).into_owned(),
                reason,
                system: Vec::new(),
            },
            ExpandError::Port(source) => no_port(source),
        }
    }
    pub(crate) fn in_readiness(self, readiness: &str) -> Error {
        match self {
            ExpandError::Text(reason) => Error::InvalidReadiness {
                readiness: mask_urls(readiness).into_owned(),
                reason,
                system: Vec::new(),
            },
            ExpandError::Port(source) => no_port(source),
        }
    }
}

fn no_port(source: io::Error) -> Error {
    Error::system("reserve a free port", source)
}

/// A function that appends the value of a placeholder.
pub(crate) type PushValue<'a> = &'a mut dyn FnMut(&Placeholder<'_>, &mut Vec<u8>) -> Result<(), ExpandError>;

/// Replaces each placeholder in `text` with the bytes that `push_value` appends for it.
pub(crate) fn expand_bytes(text: &[u8], push_value: PushValue<'_>) -> Result<Vec<u8>, ExpandError> {
    let mut out = Vec::with_capacity(text.len());
    for token in tokens(text, false) {
        match token {
            Token::Text(text) => out.extend_from_slice(text),
            Token::Placeholder(found) => push_value(&found, &mut out)?,
        }
    }
    Ok(out)
}

/// A part of a string that may contain placeholders.
pub(crate) enum Token<'a> {
    /// Literal text. An escape is returned without its outer braces.
    Text(&'a [u8]),
    Placeholder(Placeholder<'a>),
}

/// Splits a string into literal parts and placeholders, from left to right. In a regular
/// expression, a brace after a backslash begins neither an escape nor a placeholder.
pub(crate) fn tokens(text: &[u8], is_regex: bool) -> impl Iterator<Item = Token<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at;
        let is_own = |brace: usize| {
            let backslashes = text[..brace].iter().rev().take_while(|byte| **byte == b'\\');
            !is_regex || backslashes.count() % 2 == 0
        };
        while at < text.len() {
            let here = &text[at..];
            let found = match here[0] == b'{' && is_own(at) {
                true => escape_at(here)
                    .map(|inner| (Token::Text(inner), inner.len() + 2))
                    .or_else(|| {
                        let is_foreign = at > 0 && text[at - 1] == b'$';
                        let found = placeholder_at(here).filter(|_| !is_foreign)?;
                        let len = found.len;
                        Some((Token::Placeholder(found), len))
                    }),
                false => None,
            };
            match found {
                // The text before the escape or the placeholder is returned first.
                Some(_) if at > start => return Some(Token::Text(&text[start..at])),
                Some((token, len)) => {
                    at += len;
                    return Some(token);
                }
                None => at += 1,
            }
        }
        (at > start).then(|| Token::Text(&text[start..]))
    })
}

pub(crate) struct Placeholder<'a> {
    pub(crate) word: &'a str,
    pub(crate) argument: Option<&'a [u8]>,
    /// The length of the placeholder, including both braces.
    pub(crate) len: usize,
}

impl fmt::Display for Placeholder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.argument {
            Some(argument) => write!(f, "{{{}:{}}}", self.word, String::from_utf8_lossy(argument)),
            None => write!(f, "{{{}}}", self.word),
        }
    }
}

/// The placeholder at the beginning of `text`, if there is one.
fn placeholder_at(text: &[u8]) -> Option<Placeholder<'_>> {
    let inside = text.strip_prefix(b"{")?;
    let inside = &inside[..inside.iter().position(|byte| *byte == b'}')?];
    let (word, argument) = match inside.iter().position(|byte| *byte == b':') {
        Some(colon) => (&inside[..colon], Some(&inside[colon + 1..])),
        None => (inside, None),
    };
    let is_word = word.first().is_some_and(u8::is_ascii_lowercase)
        && word
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_');
    let is_argument =
        |arg: &[u8]| !arg.is_empty() && !arg.iter().any(|b| b.is_ascii_whitespace() || b"{'\"".contains(b));
    if !is_word || !argument.is_none_or(is_argument) {
        return None;
    }
    Some(Placeholder {
        word: std::str::from_utf8(word).ok()?,
        argument,
        len: inside.len() + 2,
    })
}

/// The escape at the beginning of `text`, if there is one, without its outer braces.
fn escape_at(text: &[u8]) -> Option<&[u8]> {
    let inner = text.strip_prefix(b"{")?;
    let len = placeholder_at(inner)?.len;
    (inner.get(len) == Some(&b'}')).then(|| &inner[..len])
}

/// Escapes each placeholder in `text`, so that the result expands to `text` itself. Use it for
/// paths and passwords that may contain braces.
#[must_use]
pub fn literal(text: impl AsRef<OsStr>) -> OsString {
    escaped(text.as_ref().as_bytes())
}

fn escaped(text: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match placeholder_at(&text[at..]) {
            Some(found) => {
                let end = at + found.len;
                out.push(b'{');
                out.extend_from_slice(&text[at..end]);
                out.push(b'}');
                at = end;
            }
            None => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    OsString::from_vec(out)
}
