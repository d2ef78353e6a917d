//! [`Http`]: ready when the service answers an HTTP request with the right status.
//!
//! `target.rs` turns the URL and the settings into a request. `exchange.rs` sends the request and
//! reads the response.

mod exchange;
mod target;
#[cfg(test)]
mod tests;

use crate::util::hash;
use std::fmt;
use std::hash::Hasher;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use regex::bytes::{Regex, RegexBuilder};

use self::target::{Target, show};
use super::{Prepare, Probe, Readiness, Wake};
use crate::error::Error;
use crate::ports::address::Place;
use crate::util::backoff::{poll_pause, quiet_poll_pause};
use crate::util::deadline::scaled;
use crate::util::text::printable;

/// Time limit of the first request. If a request exceeds its limit, the next one gets twice the
/// time.
const FIRST_LIMIT: Duration = Duration::from_secs(1);

/// Ready when the service answers an HTTP request with the right status. The default is 2xx;
/// [`status`](Http::status) sets another one.
///
/// ```no_run
/// # use mirakuru_core as mirakuru;
/// use mirakuru::{Executor, Http, HttpExecutor};
///
/// let server: HttpExecutor = Executor::builder("python3 -m http.server {port} --bind 127.0.0.1")
///     .wait_for(Http::get("http://127.0.0.1:{port}/").status(200))
///     .start()?;
/// assert!(server.url().ends_with("/"));
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
///
/// # The request
///
/// Each poll first checks, without a connection, whether the service listens on the port. Then it
/// sends the request to the address on which the service listens. If the host has several
/// addresses, as `localhost` may have, a process that listens on another of them never gets the
/// request. Each request has its own connection. Proxy settings in the environment are ignored.
/// Redirects are not followed: a 301 is a response like any other.
///
/// Once the service listens, the pause between two requests is a fiftieth of the time since then,
/// at least 0.1 ms. If the service answers with a wrong status, the pause is a twentieth of that
/// time, at least 1 ms, so that the service's log stays short. The first request may take 1 s. If a
/// request takes too long, the next one gets twice the time.
///
/// The URL begins with `http://` (default port 80). With the feature `tls`, it may also begin with
/// `https://` (default port 443). Certificates are not checked, because test certificates are
/// rarely trusted, and no server name is sent. For an address of this machine, mirakuru checks that
/// the port belongs to the service. Path and query are sent as given. A user and password
/// (`http://user:password@host/`) are sent as basic authentication, and never shown in errors.
///
/// The URL, the values of headers and form fields, and a UTF-8 body may contain placeholders.
#[derive(Clone)]
pub struct Http {
    method: String,
    given_url: String,
    wanted: Wanted,
    given_headers: Vec<(String, String)>,
    given_body: Body,
    target: Option<Target>,
    limit: Duration,
    /// When the service began to listen, as the time since its start.
    listens: Option<Duration>,
    /// When the next request is sent, as the time since the start of the service.
    next: Duration,
    /// Whether the service has answered any request with a wrong status.
    answers: bool,
    /// The error of the last request that was not cut short by the end of the wait.
    last_error: Option<String>,
    /// The first bytes received from the port, if they were not HTTP.
    first_bytes: Option<String>,
}

#[derive(Clone)]
enum Body {
    None,
    Bytes(Vec<u8>),
    Form(Vec<(String, String)>),
}

/// The status that means ready.
#[derive(Clone, Debug)]
#[doc(hidden)]
pub struct Wanted(WantedKind);

#[derive(Clone, Debug)]
enum WantedKind {
    Success,
    Code(i64),
    Pattern(String),
}

/// The argument of [`Http::status`]: a number, or a regular expression that the whole code must
/// match. This trait is sealed. It is implemented for `u16`, `i32`, `&str` and `String`.
pub trait IntoStatus {
    #[doc(hidden)]
    fn into_status(self) -> Wanted;
}

impl IntoStatus for u16 {
    fn into_status(self) -> Wanted {
        Wanted(WantedKind::Code(self.into()))
    }
}

impl IntoStatus for i32 {
    fn into_status(self) -> Wanted {
        Wanted(WantedKind::Code(self.into()))
    }
}

impl IntoStatus for &str {
    fn into_status(self) -> Wanted {
        Wanted(WantedKind::Pattern(self.to_owned()))
    }
}

impl IntoStatus for String {
    fn into_status(self) -> Wanted {
        Wanted(WantedKind::Pattern(self))
    }
}

impl Wanted {
    fn compile(&self) -> Result<Accepts, String> {
        match &self.0 {
            WantedKind::Success => Ok(Accepts::Success),
            WantedKind::Code(code) => match u16::try_from(*code) {
                Ok(code) if (100..=999).contains(&code) => Ok(Accepts::Code(code)),
                _ => Err(format!(
                    "{code} is not an HTTP status; use a number with three digits"
                )),
            },
            WantedKind::Pattern(pattern) => {
                // The pattern is first compiled without the anchors, so that an error shows it as
                // it was written.
                let build = |pattern: &str| RegexBuilder::new(pattern).unicode(false).build();
                build(pattern)
                    .and_then(|_| build(&format!("^(?:{pattern})$")))
                    .map(Accepts::Pattern)
                    .map_err(|error| format!("the status `{pattern}`: {error}"))
            }
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            WantedKind::Success => f.write_str("2xx"),
            WantedKind::Code(code) => write!(f, "{code}"),
            WantedKind::Pattern(pattern) => f.write_str(&printable(pattern, 100)),
        }
    }
}

#[derive(Clone)]
enum Accepts {
    Success,
    Code(u16),
    Pattern(Regex),
}

impl Accepts {
    fn accepts(&self, status: u16) -> bool {
        match self {
            Accepts::Success => (200..300).contains(&status),
            Accepts::Code(code) => status == *code,
            Accepts::Pattern(pattern) => pattern.is_match(status.to_string().as_bytes()),
        }
    }
}

impl Http {
    /// A HEAD request. It is the cheapest, because the response has no body, but some servers do
    /// not support it.
    pub fn head(url: impl Into<String>) -> Http {
        Http::new("HEAD", url.into())
    }

    /// A GET request.
    pub fn get(url: impl Into<String>) -> Http {
        Http::new("GET", url.into())
    }

    /// A POST request. Its body is empty unless [`form`](Http::form) or [`body`](Http::body) sets
    /// one.
    pub fn post(url: impl Into<String>) -> Http {
        Http::new("POST", url.into())
    }

    fn new(method: &str, given_url: String) -> Http {
        Http {
            method: method.to_owned(),
            given_url,
            wanted: Wanted(WantedKind::Success),
            given_headers: Vec::new(),
            given_body: Body::None,
            target: None,
            limit: FIRST_LIMIT,
            listens: None,
            next: Duration::ZERO,
            answers: false,
            last_error: None,
            first_bytes: None,
        }
    }

    /// Sets the method, such as `PUT`, `OPTIONS` or `PROPFIND`.
    pub fn method(mut self, method: impl Into<String>) -> Http {
        self.method = method.into();
        self
    }

    /// Sets the status that means ready: a number, or a regular expression that the whole code
    /// must match, such as `"(200|404)"` or `"[23].."`. The default is any 2xx.
    pub fn status(mut self, status: impl IntoStatus) -> Http {
        self.wanted = status.into_status();
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Http {
        self.given_headers.push((name.into(), value.into()));
        self
    }

    /// Adds fields to a form, which is sent as the body with the type
    /// `application/x-www-form-urlencoded`.
    pub fn form<K: Into<String>, V: Into<String>>(
        mut self,
        fields: impl IntoIterator<Item = (K, V)>,
    ) -> Http {
        let mut form = match self.given_body {
            Body::Form(form) => form,
            _ => Vec::new(),
        };
        form.extend(fields.into_iter().map(|(k, v)| (k.into(), v.into())));
        self.given_body = Body::Form(form);
        self
    }

    /// Sets the body. Add a [`header`](Http::header) `Content-Type` to declare its type.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Http {
        self.given_body = Body::Bytes(body.into());
        self
    }
}

impl fmt::Debug for Http {
    /// Omits headers, body, user and query, because they may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Http({} {}, wanted {})",
            self.method,
            show(&self.given_url),
            self.wanted
        )
    }
}

impl Readiness for Http {
    fn describe(&self) -> String {
        let url = match &self.target {
            Some(target) => target.shown_url.clone(),
            None => show(&self.given_url),
        };
        format!(
            "it answered {} {url} with {}",
            printable(&self.method, 40),
            self.wanted
        )
    }

    fn fingerprint(&self, hasher: &mut dyn Hasher) {
        let Http {
            method,
            given_url,
            wanted,
            given_headers,
            given_body,
            limit,
            target: _,
            listens: _,
            next: _,
            last_error: _,
            first_bytes: _,
            answers: _,
        } = self;
        hash::text(hasher, method.as_ref());
        hash::text(hasher, given_url.as_ref());
        match &wanted.0 {
            WantedKind::Success => hash::number(hasher, 0),
            WantedKind::Code(code) => hash::text(hasher, code.to_string().as_ref()),
            WantedKind::Pattern(pattern) => hash::text(hasher, pattern.as_ref()),
        }
        let pairs = |hasher: &mut dyn Hasher, pairs: &[(String, String)]| {
            hash::number(hasher, pairs.len() as u64);
            for (key, value) in pairs {
                hash::text(hasher, key.as_ref());
                hash::text(hasher, value.as_ref());
            }
        };
        pairs(hasher, given_headers);
        match given_body {
            Body::None => hash::number(hasher, 0),
            Body::Bytes(bytes) => hash::bytes(hasher, bytes),
            Body::Form(form) => pairs(hasher, form),
        }
        hash::number(hasher, limit.as_nanos() as u64);
    }

    fn prepare(&mut self, cx: &mut Prepare<'_>) -> Result<(), Error> {
        self.target = None;
        self.target = Some(self.resolve(cx)?);
        self.limit = scaled(FIRST_LIMIT);
        self.listens = None;
        self.next = Duration::ZERO;
        self.answers = false;
        self.last_error = None;
        self.first_bytes = None;
        Ok(())
    }

    fn probe(&mut self, cx: &Probe<'_>) -> io::Result<bool> {
        if cx.elapsed() < self.next {
            // It is too early for the next request. An event of another condition caused this poll.
            return match &self.last_error {
                Some(text) => Err(io::Error::other(text.clone())),
                None => Ok(false),
            };
        }
        let Some(mut target) = self.target.take() else {
            return Ok(false);
        };
        let begun = Instant::now();
        let result = match find(&target.places, cx) {
            Ok(addr) => {
                target.addr = addr;
                let listens = *self.listens.get_or_insert(cx.elapsed());
                let is_cut_short = cx.remaining() < self.limit;
                let answer = self.ask(&target, cx);
                // The pause depends on the time since the service began to listen, because a good
                // response usually follows soon.
                let now = cx.elapsed() + begun.elapsed();
                // A server that answers may log each request, so the pauses are longer.
                self.next = now
                    + match self.answers {
                        true => quiet_poll_pause(now - listens),
                        false => poll_pause(now - listens),
                    };
                match (answer, &self.last_error) {
                    // The end of the wait cut this request short, so the error of the previous
                    // request is more helpful.
                    (Err(error), Some(last)) if is_cut_short && error.kind() == io::ErrorKind::TimedOut => {
                        Err(io::Error::other(last.clone()))
                    }
                    (result, _) => {
                        self.last_error = result.as_ref().err().map(io::Error::to_string);
                        result
                    }
                }
            }
            Err(error) => {
                self.listens = None;
                Err(error)
            }
        };
        self.target = Some(target);
        result
    }

    fn wakes(&self, wake: &mut Wake) {
        match self.listens {
            Some(_) => wake.at(self.next),
            None => wake.with_back_off_but(REQUEST),
        }
    }

    fn addr(&self) -> Option<SocketAddr> {
        self.target.as_ref().map(|target| target.addr)
    }

    fn url(&self) -> Option<&str> {
        self.target.as_ref().map(|target| target.url.as_str())
    }
}

/// The time that a request and its response take on loopback. Until the service listens, `Http`
/// polls earlier by this time, so that it is ready as early as `Tcp`.
const REQUEST: Duration = Duration::from_micros(400);

/// Returns the address to which the request is sent. If the service does not listen yet, the error
/// says so.
fn find(places: &[Place], cx: &Probe<'_>) -> io::Result<SocketAddr> {
    let mut found = None;
    let mut last_error = None;
    for place in places {
        if !place.is_local {
            found = found.or(Some(place.addr));
            continue;
        }
        // Every address is checked, even after one on which the service listens. Clients may use
        // any of them, so another process on one of them is an error.
        match cx.listens_on(place.addr) {
            Ok(true) => found = found.or(Some(place.addr)),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(error) => last_error = Some(error),
        }
    }
    match (found, last_error) {
        (Some(addr), _) => Ok(addr),
        (None, Some(error)) => Err(error),
        (None, None) => {
            let all: Vec<_> = places.iter().map(|place| place.addr.to_string()).collect();
            Err(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                format!("it does not listen on {}", all.join(" or ")),
            ))
        }
    }
}
