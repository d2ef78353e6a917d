//! The request of an [`Http`] condition, with all placeholders filled in.

use std::net::SocketAddr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use ureq::http as types;

use super::{Accepts, Body, Http};
use crate::error::Error;
use crate::ports::address::{self, Place};
use crate::readiness::Prepare;
use crate::sys::Protocol;
use crate::util::text::printable;

/// A request with all placeholders filled in.
#[derive(Clone)]
pub(super) struct Target {
    /// The whole URL, as clients of the service use it.
    pub(super) url: String,
    /// The URL for messages, without user, password and query.
    pub(super) shown_url: String,
    /// Path and query of the request.
    pub(super) path: String,
    pub(super) places: Vec<Place>,
    /// The address on which the service was found to listen, or the first address to try.
    pub(super) addr: SocketAddr,
    pub(super) tls: bool,
    pub(super) headers: types::HeaderMap,
    pub(super) body: Option<Vec<u8>>,
    pub(super) accepts: Accepts,
}

impl Http {
    pub(super) fn resolve(&self, cx: &mut Prepare<'_>) -> Result<Target, Error> {
        // Errors show the URL as it was written, but without parts that may be secret.
        let shown = show(&self.given_url);
        let fill = |cx: &mut Prepare<'_>, text: &str| {
            cx.expand(text).map_err(|e| match e {
                Error::InvalidReadiness { reason, .. } => cx.invalid(&shown, reason),
                other => other,
            })
        };
        let url = fill(cx, &self.given_url)?;
        let parts = Parts::of(&url).map_err(|why| cx.invalid(&shown, why))?;
        let accepts = self.wanted.compile().map_err(|why| cx.invalid(&shown, why))?;
        let method_is_token = !self.method.is_empty() && self.method.bytes().all(is_token);
        if !method_is_token || self.method.eq_ignore_ascii_case("CONNECT") {
            return Err(cx.invalid(
                &shown,
                format!("the method `{}` cannot be used", printable(&self.method, 40)),
            ));
        }

        let mut headers = types::HeaderMap::new();
        for (name, value) in &self.given_headers {
            let invalid = |what: &str| {
                format!(
                    "the {what} of the header `{}` contains a character that HTTP headers do not allow",
                    printable(name, 80)
                )
            };
            // No error shows the value, because it may be secret.
            let value = fill(cx, value)?;
            let name = types::HeaderName::try_from(name.as_str())
                .map_err(|_| cx.invalid(&shown, invalid("name")))?;
            let value =
                types::HeaderValue::try_from(value).map_err(|_| cx.invalid(&shown, invalid("value")))?;
            headers.append(name, value);
        }
        let mut default = |name: types::HeaderName, value: String| -> Result<(), Error> {
            if !headers.contains_key(&name) {
                let value = types::HeaderValue::try_from(value).map_err(|_| {
                    cx.invalid(
                        &shown,
                        "the URL contains a character that HTTP headers do not allow",
                    )
                })?;
                headers.insert(name, value);
            }
            Ok(())
        };
        default(types::header::HOST, parts.authority.to_owned())?;
        default(types::header::CONNECTION, "close".to_owned())?;
        if let Some(user) = parts.user {
            default(types::header::AUTHORIZATION, basic(user))?;
        }
        let tls = parts.tls;
        let body = match &self.given_body {
            Body::None => None,
            Body::Form(fields) => {
                default(
                    types::header::CONTENT_TYPE,
                    "application/x-www-form-urlencoded".to_owned(),
                )?;
                let mut form = String::new();
                for (key, value) in fields {
                    if !form.is_empty() {
                        form.push('&');
                    }
                    form += &format!("{}={}", form_encode(key), form_encode(&fill(cx, value)?));
                }
                Some(form.into_bytes())
            }
            Body::Bytes(bytes) => Some(match std::str::from_utf8(bytes) {
                Ok(text) => fill(cx, text)?.into_bytes(),
                Err(_) => bytes.clone(),
            }),
        };
        // `Uri` rejects any other character that a request line cannot contain.
        if let Err(error) = types::Uri::try_from(format!("http://h{}", parts.path)) {
            let text = format!("the path or query cannot be sent as it is: {error}; percent-encode it");
            return Err(cx.invalid(&shown, text));
        }

        let addrs = address::host_addrs(parts.host, parts.port).map_err(|why| cx.invalid(&shown, why))?;
        let places = cx.places(Protocol::Tcp, &addrs);
        Ok(Target {
            shown_url: show(&url),
            path: parts.path,
            addr: places[0].addr,
            tls,
            places,
            headers,
            body,
            accepts,
            url,
        })
    }
}

/// A parsed URL.
#[derive(Debug, PartialEq)]
pub(super) struct Parts<'a> {
    pub(super) tls: bool,
    pub(super) user: Option<&'a str>,
    pub(super) host: &'a str,
    pub(super) port: u16,
    /// Host and port, as in the URL.
    pub(super) authority: &'a str,
    pub(super) path: String,
}

impl<'a> Parts<'a> {
    /// Parses a URL. The error names the mistake, but no part that may be secret.
    pub(super) fn of(url: &'a str) -> Result<Parts<'a>, String> {
        if let Some(c) = url.chars().find(|c| c.is_whitespace() || c.is_control()) {
            return Err(format!(
                "a URL cannot contain {c:?}; percent-encode it (a space is %20)"
            ));
        }
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err("the scheme is missing; a URL begins with `http://`".to_owned());
        };
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" if cfg!(feature = "tls") => true,
            "https" => {
                return Err(
                    "`https://` needs mirakuru's feature `tls`, which is turned off; turn it on, or use \
                     `http://` where the service has a plain port"
                        .to_owned(),
                );
            }
            _ => return Err("only `http://` and `https://` URLs can be requested".to_owned()),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (user, authority) = match authority.rsplit_once('@') {
            Some((user, authority)) => (Some(user), authority),
            None => (None, authority),
        };
        let (host, port) = address::split(authority)?;
        if host.is_empty() {
            return Err("the host is missing; for this machine it is `127.0.0.1`".to_owned());
        }
        let is_host = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
        if !host.chars().all(is_host) {
            return Err(format!("`{}` is not a host", printable(host, 80)));
        }
        let port = match port {
            None if tls => 443,
            None => 80,
            Some(port) => address::port_number(port).ok_or_else(|| {
                format!(
                    "`{}` is not a port; give a number from 1 to 65535",
                    printable(port, 80)
                )
            })?,
        };
        // A fragment is never sent to the server.
        let path = path.split('#').next().unwrap_or_default();
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        Ok(Parts {
            tls,
            user,
            host,
            port,
            authority,
            path,
        })
    }
}

/// A URL for display, without user, password and query.
pub(super) fn show(url: &str) -> String {
    let url = url.split('#').next().unwrap_or_default();
    let plain = without_query(url);
    let mut shown = match plain.split_once("://") {
        Some((scheme, rest)) => {
            let end = rest.find('/').unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            format!("{scheme}://{host}{path}")
        }
        None => plain.rsplit_once('@').map_or(plain, |(_, rest)| rest).to_owned(),
    };
    if plain.len() < url.len() {
        shown.push_str("?\u{2026}");
    }
    printable(&shown, 300)
}

pub(super) fn without_query(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

/// Whether a byte is allowed in the name of a method.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Returns the value of an `Authorization` header for `user:password`. Both parts may be
/// percent-encoded.
pub(super) fn basic(user: &str) -> String {
    let mut bytes: Vec<u8> = percent_decode_str(user).collect();
    if !user.contains(':') {
        bytes.push(b':');
    }
    format!("Basic {}", BASE64_STANDARD.encode(bytes))
}

/// The bytes that are percent-encoded in a form. A space is then replaced by a plus sign.
const FORM: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'*')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b' ');

fn form_encode(text: &str) -> String {
    utf8_percent_encode(text, FORM).to_string().replace(" ", "+")
}
