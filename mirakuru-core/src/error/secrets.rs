//! Masks secrets: passwords in URLs, and values of environment variables.
//!
//! Every text that mirakuru itself creates is masked. A service's output is shown as it is.
//!
//! In `executor/` and `ports/`, a function that creates an error from a service's expanded values
//! returns an [`Unmasked`]. Only [`Secrets::mask_error`] turns it into an [`Error`], so a public
//! function that does not mask its errors does not compile.
//! [`Prepare::invalid`](crate::readiness::Prepare::invalid) creates and masks the errors of a
//! readiness condition.

use std::borrow::Cow;
use std::fmt;

use crate::error::Error;

/// The text that replaces a secret.
const STARS: &str = "***";

/// Query parameters that are secret in every URL: `postgresql://host/db?password=...`.
const PARAMETERS: [&str; 10] = [
    "password",
    "passwd",
    "pwd",
    "sslpassword",
    "token",
    "access_token",
    "auth_token",
    "secret",
    "api_key",
    "apikey",
];

/// A variable whose name contains one of these parts is taken to hold a secret.
const NAMES: [&str; 9] = [
    "PASS",
    "PWD",
    "SECRET",
    "TOKEN",
    "CREDENTIAL",
    "APIKEY",
    "API_KEY",
    "PRIVATE_KEY",
    "ACCESS_KEY",
];

/// Whether the name of a variable indicates a secret.
pub(crate) fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    // The values of these two are directories, not passwords.
    !matches!(name.as_str(), "PWD" | "OLDPWD") && NAMES.iter().any(|part| name.contains(part))
}

/// Masks the passwords of all URLs in a string: `redis://user:***@host`.
pub(crate) fn mask_urls(text: &str) -> Cow<'_, str> {
    if !text.contains("://") {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + 3);
        shown.push_str(before);
        let end = url.find(ends_a_url).unwrap_or(url.len());
        let (url, after) = url.split_at(end);
        mask_parameters(&mask_user(url), &mut shown);
        rest = after;
    }
    shown.push_str(rest);
    Cow::Owned(shown)
}

fn ends_a_url(c: char) -> bool {
    c.is_whitespace() || c.is_control() || matches!(c, '"' | '\'' | '`' | '<' | '>')
}

/// The text after a URL's scheme, with the password before the host masked.
fn mask_user(url: &str) -> Cow<'_, str> {
    let authority = url.split(['/', '?', '#']).next().unwrap_or_default();
    let at = match (authority.rfind('@'), authority.split_once(':')) {
        (Some(at), _) => Some(at),
        // The text after the colon is not a port, so it is a password that contains `/`, `?` or
        // `#`. Such a URL is invalid, but people write URLs like this.
        (None, Some((_, port)))
            if !port.is_empty() && !port.starts_with(|c: char| c.is_ascii_digit() || c == '{') =>
        {
            url.rfind('@')
        }
        _ => None,
    };
    let Some(at) = at else {
        return Cow::Borrowed(url);
    };
    match url[..at].split_once(':') {
        Some((user, password)) if !password.is_empty() => Cow::Owned(format!("{user}:{STARS}{}", &url[at..])),
        _ => Cow::Borrowed(url),
    }
}

fn mask_parameters(url: &str, shown: &mut String) {
    let Some((path, query)) = url.split_once('?') else {
        shown.push_str(url);
        return;
    };
    shown.push_str(path);
    for (number, parameter) in query.split('&').enumerate() {
        shown.push(if number == 0 { '?' } else { '&' });
        match parameter.split_once('=') {
            Some((key, _)) if PARAMETERS.contains(&key.to_ascii_lowercase().as_str()) => {
                shown.push_str(key);
                shown.push('=');
                shown.push_str(STARS);
            }
            _ => shown.push_str(parameter),
        }
    }
}

/// The secrets of one service, each with the string that replaces it.
#[derive(Clone, Default)]
pub(crate) struct Secrets(Vec<(String, String)>);

impl fmt::Debug for Secrets {
    /// Prints the number of the secrets, but not their values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

impl Secrets {
    /// Adds a secret value, and the string that replaces it.
    ///
    /// Short values and ports are not masked. A value of fewer than four letters would also occur
    /// inside other words, and a number of up to five digits is taken for a port.
    pub(crate) fn add(&mut self, value: &str, shown: &str) {
        let is_port = value.len() <= 5 && value.bytes().all(|byte| byte.is_ascii_digit());
        let value = value.trim();
        if value.chars().count() < 4 || is_port || self.0.iter().any(|(known, _)| known == value) {
            return;
        }
        // Longer values come first, because one value may be part of another.
        let place = self.0.partition_point(|(known, _)| known.len() >= value.len());
        self.0.insert(place, (value.to_owned(), shown.to_owned()));
    }

    /// Adds the secrets of another service.
    pub(crate) fn extend(&mut self, other: Secrets) {
        for (value, shown) in other.0 {
            self.add(&value, &shown);
        }
    }

    /// Adds the value of a variable whose name indicates a secret.
    pub(crate) fn add_secret(&mut self, value: &str) {
        self.add(value, STARS);
    }

    /// Masks these values, and passwords in URLs.
    pub(crate) fn mask(&self, text: &str) -> String {
        let mut text = Cow::Borrowed(text);
        for (value, shown) in &self.0 {
            if text.contains(value.as_str()) {
                text = Cow::Owned(text.replace(value.as_str(), shown));
            }
        }
        mask_urls(&text).into_owned()
    }

    /// Masks the secrets in an error, except in the service's output.
    pub(crate) fn mask_error(&self, error: Unmasked) -> Error {
        error.0.map_texts(&|text| self.mask(text))
    }
}

/// An error that may contain unmasked secrets. Only [`Secrets::mask_error`] takes the error out,
/// and `?` does not turn this type into an [`Error`]. So a function that returns this type cannot
/// let an error reach a user without masking it.
pub(crate) struct Unmasked(Error);

impl Unmasked {
    /// Changes the error before it is masked.
    pub(crate) fn change(mut self, change: impl FnOnce(&mut Error)) -> Unmasked {
        change(&mut self.0);
        self
    }

    /// Adds the remark that the service keeps running unchanged.
    pub(crate) fn before_a_stop(self) -> Unmasked {
        self.change(|error| match error {
            Error::Spawn { attempt, .. } => attempt.push_str(", so the service runs on unchanged"),
            Error::InvalidCommand { reason, .. } | Error::InvalidReadiness { reason, .. } => {
                reason.push_str("; the service runs on unchanged");
            }
            _ => {}
        })
    }
}

impl From<Error> for Unmasked {
    fn from(error: Error) -> Unmasked {
        Unmasked(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_urls_are_masked() {
        for (text, shown) in [
            ("redis://user:secret@host:6379/0", "redis://user:***@host:6379/0"),
            ("redis://:secret@host", "redis://:***@host"),
            (
                "run --url 'a://u:p@h' b://v:q@i/x",
                "run --url 'a://u:***@h' b://v:***@i/x",
            ),
            ("x://u:p@ss@h/", "x://u:***@h/"),
            ("x://u:pa/ss@h/", "x://u:***@h/"),
            (
                "jdbc:postgresql://h/db?user=u&password=p&ssl=1",
                "jdbc:postgresql://h/db?user=u&password=***&ssl=1",
            ),
            ("x://h/?Token=t", "x://h/?Token=***"),
        ] {
            assert_eq!(mask_urls(text), shown);
        }
    }

    #[test]
    fn what_is_no_password_stays() {
        for text in [
            "no url",
            "http://127.0.0.1:6379/a:b",
            "http://127.0.0.1:{port}/a:b@c",
            "http://host:80/x@y",
            "http://user@host/",
            "http://[::1]:80/?a=b&c",
            "://",
            "x://u:@h",
        ] {
            assert_eq!(mask_urls(text), text);
        }
    }

    #[test]
    fn values_are_shown_as_their_placeholder() {
        let mut secrets = Secrets::default();
        secrets.add("hunter2", "{env:A}");
        secrets.add("hunter2-long", "{env:B}");
        secrets.add("80", "{env:PORT}");
        secrets.add("65000", "{env:PORT}");
        secrets.add_secret("swordfish");
        assert_eq!(
            secrets.mask("x hunter2-long hunter2 80 65000 swordfish"),
            "x {env:B} {env:A} 80 65000 ***"
        );
    }

    #[test]
    fn debug_output_has_the_number_of_secrets_but_no_value() {
        let mut secrets = Secrets::default();
        secrets.add("hunter2", "{env:A}");
        secrets.add_secret("swordfish");
        assert_eq!(format!("{secrets:?} {secrets:#?}"), "Secrets(2) Secrets(2)");
    }

    #[test]
    fn names_tell() {
        for name in [
            "PGPASSWORD",
            "redis_pass",
            "GITHUB_TOKEN",
            "AWS_SECRET_ACCESS_KEY",
        ] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in ["PATH", "HOME", "PWD", "OLDPWD", "KEYBOARD", "LANG"] {
            assert!(!is_secret_name(name), "{name}");
        }
    }
}
