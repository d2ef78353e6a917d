//! [`Http`]: the service answers an HTTP request with the right status.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use regex::bytes::{Regex, RegexBuilder};
use ureq::http as types;

use super::{Prepare, Probe, Readiness, Wake};
use crate::error::Error;
use crate::ports::owner;
use crate::readiness::context::pause_after;
use crate::util::deadline::scaled;
use crate::util::text::printable;

/// How long a request may take at first. Doubles each time that is not enough.
const FIRST_LIMIT: Duration = Duration::from_secs(1);
/// How much of an answer's body is read, and for how long: so that a server is not cut off in the middle of a short one.
const BODY: u64 = 64 * 1024;
const BODY_TIME: Duration = Duration::from_millis(50);

/// Ready when the service answers an HTTP request with the right status: 2xx, unless [`status`](Http::status) says
/// otherwise.
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
/// # What is asked
///
/// First whether the service listens on the port at all, which makes no connection; then the request is sent, to exactly
/// the address at which the service was found: `localhost` in the URL is each address that it resolves to, and a
/// stranger on one of them is never asked. A new connection is made for each request, and closed after it. Proxy
/// settings of the environment are not used, and redirects are not followed: a 301 is an answer like any other.
///
/// Once it listens it is asked again and again, with pauses of a fiftieth of the time since then, 0.1 ms at least.
/// A request has 1 s, the next one after it was not enough 2 s, and so on, so that a server that
/// accepts connections and never answers does not hang the start, and a slow one is not asked in vain for ever.
///
/// The URL is one of `http://`, whose port is 80 where it names none, or with the feature `tls` of `https://` and 443. A server's
/// certificate is not checked, since that of a test is rarely one to be trusted, and no server name is sent; that the port is the
/// service's own is known anyway, on this machine. Path and query are sent as they are given. A
/// user and password (`http://user:password@host/`) are sent as basic authentication, and never shown in errors.
///
/// Placeholders are filled in in the URL, in the values of headers and forms, and in a body that is UTF-8.
#[derive(Clone)]
pub struct Http {
    method: String,
    given_url: String,
    wanted: Wanted,
    given_headers: Vec<(String, String)>,
    given_body: Body,
    target: Option<Target>,
    limit: Duration,
    /// Since when there is somebody to ask, and when to ask again, since the start of the service.
    listens: Option<Duration>,
    next: Duration,
    /// Why the last request that was answered, or had its whole time, was not enough.
    last_error: Option<String>,
    /// What a plain look at the port showed when its answer was not HTTP.
    first_bytes: Option<String>,
}

#[derive(Clone)]
enum Body {
    None,
    Bytes(Vec<u8>),
    Form(Vec<(String, String)>),
}

/// The status that is wanted.
#[derive(Clone, Debug)]
#[doc(hidden)]
pub struct Wanted(WantedKind);

#[derive(Clone, Debug)]
enum WantedKind {
    Success,
    Code(i64),
    Pattern(String),
}

/// What [`Http::status`] takes: a number, or a regular expression for the whole code. The trait is sealed: it is implemented for `u16`,
/// `i32`, `&str` and `String`.
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
                _ => Err(format!("{code} is not an HTTP status; they have three digits")),
            },
            WantedKind::Pattern(pattern) => {
                // Once by itself, so that the error speaks of what was written.
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

/// A request with everything filled in.
#[derive(Clone)]
struct Target {
    /// As given.
    url: String,
    /// Without the user, the password and the query's text.
    shown_url: String,
    /// Path and query as sent.
    path: String,
    addrs: Vec<Candidate>,
    /// Where the service was found, or the first place where it will be looked for.
    addr: SocketAddr,
    tls: bool,
    headers: types::HeaderMap,
    body: Option<Vec<u8>>,
    accepts: Accepts,
}

#[derive(Clone, Copy)]
struct Candidate {
    addr: SocketAddr,
    /// Whether it is an address of this machine.
    local: bool,
}

impl Http {
    /// A HEAD request, the cheapest: the answer has no body. Some servers do not know it.
    pub fn head(url: impl Into<String>) -> Http {
        Http::new("HEAD", url.into())
    }

    /// A GET request.
    pub fn get(url: impl Into<String>) -> Http {
        Http::new("GET", url.into())
    }

    /// A POST request, with an empty body unless [`form`](Http::form) or [`body`](Http::body) gives one.
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
            last_error: None,
            first_bytes: None,
        }
    }

    /// Sets the method: `PUT`, `OPTIONS`, `PROPFIND`.
    pub fn method(mut self, method: impl Into<String>) -> Http {
        self.method = method.into();
        self
    }

    /// Sets the status that means ready: a number, or a regular expression that the whole code must match, such as
    /// `"(200|404)"` or `"[23].."`. The default is any 2xx.
    pub fn status(mut self, status: impl IntoStatus) -> Http {
        self.wanted = status.into_status();
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Http {
        self.given_headers.push((name.into(), value.into()));
        self
    }

    /// Adds fields to a form, which is sent as the body (`application/x-www-form-urlencoded`).
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

    /// Sets the body. What it is should be said with a `Content-Type` [`header`](Http::header).
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Http {
        self.given_body = Body::Bytes(body.into());
        self
    }

    fn resolve(&self, cx: &mut Prepare<'_>) -> Result<Target, Error> {
        // Errors show the URL as it was written, but not the password in it, and nothing else that may be a secret.
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
                    "the {what} of the header `{}` has characters that no header has",
                    printable(name, 80)
                )
            };
            // The value may be a secret: it is never shown.
            let value = fill(cx, value)?;
            let name = types::HeaderName::try_from(name.as_str())
                .map_err(|_| cx.invalid(&shown, invalid("name")))?;
            let value =
                types::HeaderValue::try_from(value).map_err(|_| cx.invalid(&shown, invalid("value")))?;
            headers.append(name, value);
        }
        let mut default = |name: types::HeaderName, value: String| -> Result<(), Error> {
            if !headers.contains_key(&name) {
                let value = types::HeaderValue::try_from(value)
                    .map_err(|_| cx.invalid(&shown, "the URL has characters that no header has"))?;
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
                    form_encode(key, &mut form);
                    form.push('=');
                    form_encode(&fill(cx, value)?, &mut form);
                }
                Some(form.into_bytes())
            }
            Body::Bytes(bytes) => Some(match std::str::from_utf8(bytes) {
                Ok(text) => fill(cx, text)?.into_bytes(),
                Err(_) => bytes.clone(),
            }),
        };
        // Whatever else a request line may not have.
        if let Err(error) = types::Uri::try_from(format!("http://h{}", parts.path)) {
            let text = format!("the path or query cannot be sent as it is: {error}; percent-encode it");
            return Err(cx.invalid(&shown, text));
        }

        let addrs = lookup(parts.host, parts.port).map_err(|why| cx.invalid(&shown, why))?;
        for candidate in &addrs {
            if candidate.local && !cx.is_chosen(candidate.addr.port()) {
                cx.claim_addr(candidate.addr);
            }
        }
        Ok(Target {
            shown_url: show(&url),
            path: parts.path,
            addr: addrs[0].addr,
            tls,
            addrs,
            headers,
            body,
            accepts,
            url,
        })
    }

    /// The method and the path, without the query.
    fn request(&self, target: &Target) -> String {
        format!("{} {}", self.method, printable(without_query(&target.path), 200))
    }

    fn ask(&mut self, target: &Target, cx: &Probe<'_>) -> io::Result<bool> {
        // Not less than a moment, or the last request before the end could not succeed at all.
        let limit = self.limit.min(cx.remaining()).max(Duration::from_millis(1));
        let answer = send(&self.method, target, limit);
        let request = self.request(target);
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return Err(self.explain(error, target, &request, limit)),
        };
        self.first_bytes = None;
        if target.accepts.accepts(answer.status) {
            return Ok(true);
        }
        let mut text = format!("answered {}", answer.status);
        if let Some(reason) = answer.reason {
            text = format!("{text} {reason}");
        }
        text = format!("{text} to {request}, wanted {}", self.wanted);
        if self.method == "HEAD" && matches!(answer.status, 405 | 501) {
            text.push_str(" (it does not know HEAD; use `Http::get`)");
        } else if let Some(location) = &answer.location {
            text = format!(
                "{text} (redirects are not followed; this one is to {})",
                show(location)
            );
        } else if answer.status == 400 && answer.line.contains("HTTPS") {
            text.push_str(&format!(" (the port speaks TLS{TLS_REMEDY})"));
        } else if !answer.line.is_empty() {
            text = format!("{text}: {}", answer.line);
        }
        Err(io::Error::other(text))
    }

    fn explain(&mut self, error: ureq::Error, target: &Target, request: &str, limit: Duration) -> io::Error {
        use io::ErrorKind;

        let addr = target.addr;
        let (kind, text) = match error {
            ureq::Error::Timeout(reason) => {
                self.limit = self.limit.saturating_mul(2);
                let text = match reason {
                    ureq::Timeout::Connect | ureq::Timeout::Resolve => {
                        format!("{addr} did not accept the connection within {limit:.0?}")
                    }
                    _ => format!("accepted the connection but did not answer {request} within {limit:.0?}"),
                };
                (ErrorKind::TimedOut, text)
            }
            ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => {
                let seen = self.first_bytes.get_or_insert_with(|| first_bytes(addr, limit));
                (
                    ErrorKind::InvalidData,
                    format!("what answered {request} on {addr} is not HTTP{seen}"),
                )
            }
            ureq::Error::Io(error) if target.tls && error.kind() == ErrorKind::InvalidData => (
                ErrorKind::InvalidData,
                format!("{addr} did not agree on TLS for {request}: {error}"),
            ),
            ureq::Error::Io(error) => match error.kind() {
                ErrorKind::ConnectionRefused => (
                    ErrorKind::ConnectionRefused,
                    format!("{addr} refused the connection"),
                ),
                ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof => {
                    let text = format!(
                        "closed the connection without an answer to {request} (a port that speaks TLS may do this)"
                    );
                    (error.kind(), text)
                }
                // An error of ours must not end the wait by its kind.
                _ => (ErrorKind::Other, format!("{request} on {addr}: {error}")),
            },
            // Its text could show the URL; the variant's name is enough for what cannot happen.
            ureq::Error::BadUri(_) => (ErrorKind::Other, format!("{request} on {addr}: not a URL")),
            other => (ErrorKind::Other, format!("{request} on {addr}: {other}")),
        };
        io::Error::new(kind, text)
    }
}

impl fmt::Debug for Http {
    /// Without headers, body, user and query: they may be secrets.
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

    fn prepare(&mut self, cx: &mut Prepare<'_>) -> Result<(), Error> {
        self.target = None;
        self.target = Some(self.resolve(cx)?);
        self.limit = scaled(FIRST_LIMIT);
        self.listens = None;
        self.next = Duration::ZERO;
        self.last_error = None;
        self.first_bytes = None;
        Ok(())
    }

    fn probe(&mut self, cx: &Probe<'_>) -> io::Result<bool> {
        if cx.elapsed() < self.next {
            // Woken by something that is not this condition's.
            return match &self.last_error {
                Some(text) => Err(io::Error::other(text.clone())),
                None => Ok(false),
            };
        }
        let Some(mut target) = self.target.take() else {
            return Ok(false);
        };
        let begun = Instant::now();
        let result = match find(&target.addrs, cx) {
            Ok(addr) => {
                target.addr = addr;
                let listens = *self.listens.get_or_insert(cx.elapsed());
                let is_cut_short = cx.remaining() < self.limit;
                let answer = self.ask(&target, cx);
                // It listens: the first good answer is near, however long it took to come so far.
                let now = cx.elapsed() + begun.elapsed();
                self.next = now + pause_after(now - listens);
                match (answer, &self.last_error) {
                    // By the end of the wait: what the one before told says more.
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
            None => wake.by_and_by_but(REQUEST),
        }
    }

    fn addr(&self) -> Option<SocketAddr> {
        self.target.as_ref().map(|target| target.addr)
    }

    fn url(&self) -> Option<&str> {
        self.target.as_ref().map(|target| target.url.as_str())
    }
}

/// What a request and its answer take, on loopback: the look for who listens is to be as much quicker, so that both together are no
/// later than it alone is with `Tcp`.
const REQUEST: Duration = Duration::from_micros(400);

/// The address at which the service is to be asked. The error says why there is none yet.
fn find(addrs: &[Candidate], cx: &Probe<'_>) -> io::Result<SocketAddr> {
    let mut found = None;
    let mut last_error = None;
    for candidate in addrs {
        if !candidate.local {
            found = found.or(Some(candidate.addr));
            continue;
        }
        // Every address is looked at, also after one that is the service's: clients of the URL may reach any of them, so
        // that a stranger on another one is an error.
        match cx.listens_on(candidate.addr) {
            Ok(true) => found = found.or(Some(candidate.addr)),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(error) => last_error = Some(error),
        }
    }
    match (found, last_error) {
        (Some(addr), _) => Ok(addr),
        (None, Some(error)) => Err(error),
        (None, None) => {
            let all: Vec<_> = addrs.iter().map(|c| c.addr.to_string()).collect();
            Err(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                format!("it does not listen on {}", all.join(" or ")),
            ))
        }
    }
}

struct Answer {
    status: u16,
    reason: Option<&'static str>,
    location: Option<String>,
    /// The first line of the body, when it is short text.
    line: String,
}

/// What to do about a port that speaks TLS, as the end of a sentence.
const TLS_REMEDY: &str = if cfg!(feature = "tls") {
    "; use `https://`, or the port for plain HTTP"
} else {
    "; use the port for plain HTTP, or `https://` with mirakuru's feature `tls`"
};

fn scheme(tls: bool) -> &'static str {
    if tls { "https" } else { "http" }
}

/// Sends the request to the target's address, on a connection of its own.
fn send(method: &str, target: &Target, limit: Duration) -> Result<Answer, ureq::Error> {
    // A limit for each phase and none for the whole: with a limit for the whole, ureq resolves names in a thread of its
    // own, even where there is nothing to resolve. Connecting and sending take no time on a local port.
    let phase = Some(limit);
    let config = ureq::Agent::config_builder();
    #[cfg(feature = "tls")]
    let config = config.tls_config(
        ureq::tls::TlsConfig::builder()
            .disable_verification(true)
            .use_sni(false)
            .build(),
    );
    let agent = config
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections(0)
        .allow_non_standard_methods(true)
        .proxy(None)
        // Filled with zeros for each request. A head of 64 KiB, which is the limit, fits into the first.
        .input_buffer_size(72 * 1024)
        .output_buffer_size(32 * 1024)
        .user_agent(concat!("mirakuru/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(phase)
        .timeout_send_request(phase)
        .timeout_await_100(phase)
        .timeout_send_body(phase)
        .timeout_recv_response(phase)
        .timeout_recv_body(Some(BODY_TIME.min(limit)))
        .build()
        .new_agent();
    // The name stands in the Host header; the address is the one that was looked at.
    let mut request = types::Request::builder()
        .method(method)
        .uri(format!("{}://{}{}", scheme(target.tls), target.addr, target.path))
        .body(())?;
    *request.headers_mut() = target.headers.clone();
    let needs_body = matches!(method, "POST" | "PUT" | "PATCH");
    let mut response = match &target.body {
        // A body makes ureq send it, whatever the method.
        Some(body) => agent.run(request.map(|()| body.as_slice()))?,
        // Without one these methods would be sent with an empty chunked body, which not every server takes.
        None if needs_body => agent.run(request.map(|()| [].as_slice()))?,
        None => agent.run(request)?,
    };
    let status = response.status();
    let location = response
        .headers()
        .get(types::header::LOCATION)
        .filter(|_| status.is_redirection())
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let is_text = response
        .headers()
        .get(types::header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_none_or(|kind| kind.starts_with("text/plain") || kind.contains("json"));
    // Reading the body is politeness; that it cannot be read changes nothing.
    let mut body = Vec::new();
    let _ = response.body_mut().as_reader().take(BODY).read_to_end(&mut body);
    let text = String::from_utf8_lossy(&body);
    let line = match text.lines().find(|line| !line.trim().is_empty()) {
        Some(line) if is_text => printable(line.trim(), 120),
        _ => String::new(),
    };
    Ok(Answer {
        status: status.as_u16(),
        reason: status.canonical_reason(),
        location,
        line,
    })
}

/// What a port says to a request that any HTTP server understands: the end of a sentence, for the case that it is not
/// HTTP.
fn first_bytes(addr: SocketAddr, limit: Duration) -> String {
    let poll = || -> io::Result<Vec<u8>> {
        let limit = limit.min(Duration::from_millis(500));
        let mut stream = TcpStream::connect_timeout(&addr, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        stream.write_all(b"HEAD / HTTP/1.0\r\n\r\n")?;
        let mut bytes = vec![0; 64];
        let n = stream.read(&mut bytes)?;
        bytes.truncate(n);
        Ok(bytes)
    };
    match poll() {
        // An alert or a handshake of TLS: its type, then the major version.
        Ok(bytes) if matches!(bytes.as_slice(), [0x15 | 0x16, 0x03, ..]) => {
            format!(": it speaks TLS{TLS_REMEDY}")
        }
        Ok(bytes) if !bytes.is_empty() => {
            let text = String::from_utf8_lossy(&bytes);
            format!(
                ": it begins with `{}`",
                printable(text.lines().next().unwrap_or(""), 60)
            )
        }
        _ => String::new(),
    }
}

/// A URL taken apart.
#[derive(Debug, PartialEq)]
struct Parts<'a> {
    tls: bool,
    user: Option<&'a str>,
    host: &'a str,
    port: u16,
    /// Host and port as they were given.
    authority: &'a str,
    path: String,
}

impl<'a> Parts<'a> {
    /// The error says what is wrong, without showing any part that may be a secret.
    fn of(url: &'a str) -> Result<Parts<'a>, String> {
        if let Some(c) = url.chars().find(|c| c.is_whitespace() || c.is_control()) {
            return Err(format!(
                "a URL has no {c:?}; write it percent-encoded (a space is %20)"
            ));
        }
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err("the scheme is missing; it begins with `http://`".to_owned());
        };
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" if cfg!(feature = "tls") => true,
            "https" => {
                return Err(
                    "`https://` needs mirakuru's feature `tls`, which is turned off; turn it on, or use `http://` where the service \
                     has a plain port"
                        .to_owned(),
                );
            }
            _ => return Err("only `http://` and `https://` can be asked".to_owned()),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (user, authority) = match authority.rsplit_once('@') {
            Some((user, authority)) => (Some(user), authority),
            None => (None, authority),
        };
        let (host, port) = match authority.strip_prefix('[') {
            Some(inside) => {
                let (host, after) = inside
                    .split_once(']')
                    .ok_or("the bracket of the IPv6 address is not closed; write `[::1]`")?;
                let port = match after.strip_prefix(':') {
                    None if !after.is_empty() => {
                        return Err("after the IPv6 address comes `:` and the port".to_owned());
                    }
                    port => port,
                };
                (host, port)
            }
            None if authority.matches(':').count() > 1 => {
                return Err("an IPv6 address stands in brackets: `http://[::1]:80/`".to_owned());
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
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
            Some(port) => port
                .parse()
                .ok()
                .filter(|p| *p != 0 && port.bytes().all(|b| b.is_ascii_digit()))
                .ok_or_else(|| format!("`{}` is not a port; they go from 1 to 65535", printable(port, 80)))?,
        };
        // A fragment is the client's own affair and never sent.
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

/// A URL fit to be shown: without user and password, and without what the query says.
fn show(url: &str) -> String {
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

fn without_query(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

/// Every address of a host.
fn lookup(host: &str, port: u16) -> Result<Vec<Candidate>, String> {
    let found = (host, port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
    let found = match found {
        Ok(found) if !found.is_empty() => found,
        // A container without a hosts file.
        _ if host.eq_ignore_ascii_case("localhost") => vec![
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
            SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port),
        ],
        Ok(_) => return Err(format!("the host `{host}` has no address")),
        Err(error) => return Err(format!("the host `{host}` cannot be resolved: {error}")),
    };
    let mut addrs: Vec<Candidate> = Vec::new();
    for addr in found {
        let addr = owner::canonical(addr);
        if addrs.iter().all(|known| known.addr != addr) {
            let local = owner::is_local(addr.ip());
            addrs.push(Candidate { addr, local });
        }
    }
    Ok(addrs)
}

/// Whether a byte may be in a method's name.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The value of an `Authorization` header for `user:password`, both of which may be percent-encoded.
fn basic(user: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = percent_decode(user);
    if !user.contains(':') {
        bytes.push(b':');
    }
    let mut value = "Basic ".to_owned();
    for three in bytes.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            if digit <= three.len() {
                let six = (group >> (18 - 6 * digit)) & 0x3f;
                value.push(char::from(ALPHABET[six as usize]));
            } else {
                value.push('=');
            }
        }
    }
    value
}

fn percent_decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    decoded
}

fn form_encode(text: &str, into: &mut String) {
    for byte in text.bytes() {
        match byte {
            b' ' => into.push('+'),
            b'*' | b'-' | b'.' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                into.push(char::from(byte))
            }
            _ => into.push_str(&format!("%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, mpsc};
    use std::thread;

    use super::super::harness::Harness;
    use super::*;
    use crate::sys::tests::in_time;
    use crate::util::own_process::{run_alone, test_name};

    /// A server that hands each connection to a function, together with the request that it has read, until it is
    /// dropped.
    struct Server {
        addr: SocketAddr,
        requests: mpsc::Receiver<String>,
    }

    impl Server {
        fn new(answer: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> Server {
            Server::on(TcpListener::bind("127.0.0.1:0").unwrap(), answer)
        }

        fn on(listener: TcpListener, answer: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> Server {
            let addr = listener.local_addr().unwrap();
            let (sender, requests) = mpsc::channel();
            // Ends with the test process: it waits in accept, and holds nothing but its socket.
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let Ok(mut stream) = stream else { break };
                    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                    let request = read_request(&mut stream);
                    let connects_only = request.is_empty();
                    if !connects_only {
                        answer(&mut stream);
                    }
                    if !connects_only && sender.send(request).is_err() {
                        break;
                    }
                }
            });
            Server { addr, requests }
        }

        fn answering(answer: &'static str) -> Server {
            Server::new(move |stream| {
                let _ = stream.write_all(answer.as_bytes());
            })
        }

        fn url(&self, path: &str) -> String {
            format!("http://{}{path}", self.addr)
        }

        fn request(&self) -> String {
            self.requests.recv_timeout(Duration::from_secs(10)).unwrap()
        }
    }

    /// The head of a request and as much body as it announces.
    fn read_request(stream: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        let mut buffer = [0; 1024];
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let head = head.to_ascii_lowercase();
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "))
                    .map_or(0, |n| n.parse().unwrap());
                if body.len() >= length {
                    return text;
                }
            }
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => return text,
                Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            }
        }
    }

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    fn probe(mut http: Http) -> io::Result<bool> {
        let harness = Harness::new();
        harness.prepare(&mut http).unwrap();
        harness.probe(&mut http)
    }

    fn error(http: Http) -> String {
        probe(http).unwrap_err().to_string()
    }

    #[test]
    fn a_success_is_ready_and_the_request_is_as_given() {
        let server = Server::answering("HTTP/1.1 204 No Content\r\n\r\n");
        let harness = Harness::new();
        let mut http = Http::head(server.url("/a%20b?q=1&r={1}#part"))
            .header("X-One", "1")
            .header("Accept", "text/plain");
        harness.prepare(&mut http).unwrap();
        assert!(harness.probe(&mut http).unwrap());
        let request = server.request().to_ascii_lowercase();
        assert!(
            request.starts_with("head /a%20b?q=1&r={1} http/1.1\r\n"),
            "{request}"
        );
        assert!(
            request.contains(&format!("\r\nhost: {}\r\n", server.addr)),
            "{request}"
        );
        assert!(request.contains("\r\nx-one: 1\r\n"), "{request}");
        assert!(request.contains("\r\naccept: text/plain\r\n"), "{request}");
        assert!(request.contains("\r\nuser-agent: mirakuru/"), "{request}");
        assert!(request.contains("\r\nconnection: close\r\n"), "{request}");
        assert!(
            !request.contains("content-length") && !request.contains("transfer-encoding"),
            "{request}"
        );
        assert_eq!(http.addr(), Some(server.addr));
        assert_eq!(http.url(), Some(server.url("/a%20b?q=1&r={1}#part").as_str()));
        assert_eq!(
            http.describe(),
            format!("it answered HEAD http://{}/a%20b?\u{2026} with 2xx", server.addr)
        );
        assert_eq!(harness.claimed(), [server.addr]);
    }

    #[test]
    fn the_status_decides() {
        let server = Server::answering("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
        let text = error(Http::head(server.url("/health")));
        assert_eq!(
            text,
            "answered 503 Service Unavailable to HEAD /health, wanted 2xx"
        );
        let text = error(Http::get(server.url("")).status(204));
        assert_eq!(text, "answered 503 Service Unavailable to GET /, wanted 204");
        let text = error(Http::get(server.url("")).status("(200|404)"));
        assert_eq!(
            text,
            "answered 503 Service Unavailable to GET /, wanted (200|404)"
        );
        // The whole code, not a part of it.
        assert!(probe(Http::get(server.url("")).status("50")).is_err());
        assert!(probe(Http::get(server.url("")).status("0|5")).is_err());
        assert!(probe(Http::get(server.url("")).status("50|503")).unwrap());
        assert!(probe(Http::get(server.url("")).status(503)).unwrap());
        assert!(probe(Http::get(server.url("")).status(503_u16)).unwrap());
        assert!(probe(Http::get(server.url("")).status(r"5\d\d".to_owned())).unwrap());
    }

    #[test]
    fn what_the_body_says_is_shown_when_it_is_plain() {
        let server = Server::answering(
            "HTTP/1.1 500 Oops\r\nContent-Length: 24\r\n\r\n\nno database\u{1b}[1m here\r\n",
        );
        let text = error(Http::get(server.url("/")));
        assert_eq!(
            text,
            "answered 500 Internal Server Error to GET /, wanted 2xx: no database here"
        );
        let server = Server::answering(
            "HTTP/1.1 500 Oops\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
        );
        assert!(error(Http::get(server.url("/"))).ends_with("wanted 2xx"));
    }

    #[test]
    fn a_server_that_does_not_know_head_is_told_apart() {
        for status in ["405 Method Not Allowed", "501 Not Implemented"] {
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            let server = Server::new(move |stream| stream.write_all(answer.as_bytes()).unwrap());
            let text = error(Http::head(server.url("/")));
            assert_eq!(
                text,
                format!("answered {status} to HEAD /, wanted 2xx (it does not know HEAD; use `Http::get`)")
            );
            assert!(error(Http::get(server.url("/"))).ends_with("wanted 2xx"));
        }
    }

    #[test]
    fn a_redirect_is_an_answer() {
        let elsewhere = Server::answering(OK);
        let answer = format!(
            "HTTP/1.1 301 Moved\r\nLocation: http://me:secret@{}/x?token=1\r\nContent-Length: 0\r\n\r\n",
            elsewhere.addr
        );
        let server = Server::new(move |stream| stream.write_all(answer.as_bytes()).unwrap());
        let text = error(Http::get(server.url("/")));
        assert_eq!(
            text,
            format!(
                "answered 301 Moved Permanently to GET /, wanted 2xx \
                 (redirects are not followed; this one is to http://{}/x?\u{2026})",
                elsewhere.addr
            )
        );
        assert!(probe(Http::get(server.url("/")).status(301)).unwrap());
        assert!(elsewhere.requests.try_recv().is_err());
    }

    #[test]
    fn a_server_that_never_answers_gets_more_time_each_time() {
        let server = Server::new(|_| thread::sleep(Duration::from_secs(20)));
        let harness = Harness::new();
        let mut http = Http::head(server.url("/"));
        harness.prepare(&mut http).unwrap();
        let begun = Instant::now();
        let error = harness.probe(&mut http).unwrap_err();
        assert!(begun.elapsed() >= Duration::from_secs(1) && begun.elapsed() < Duration::from_secs(8));
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(
            error.to_string(),
            "accepted the connection but did not answer HEAD / within 1s"
        );
        assert_eq!(http.limit, Duration::from_secs(2));
        // Never more than there is; and then the error is the one of the request that had its whole time.
        harness.remaining(Duration::from_millis(50));
        let begun = Instant::now();
        let text = harness.probe(&mut http).unwrap_err().to_string();
        assert!(begun.elapsed() < Duration::from_secs(1));
        assert!(text.ends_with("within 1s"), "{text}");
        harness.prepare(&mut http).unwrap();
        let text = harness.probe(&mut http).unwrap_err().to_string();
        assert!(text.ends_with("within 50ms"), "{text}");
        harness.prepare(&mut http).unwrap();
        assert_eq!(http.limit, FIRST_LIMIT);
    }

    #[test]
    fn requests_begin_anew_once_it_listens_and_then_in_proportion() {
        let requests = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&requests);
        let server = Server::new(move |stream| {
            seen.fetch_add(1, Ordering::SeqCst);
            let _ = stream.write_all(b"HTTP/1.1 503 Odd\r\nContent-Length: 0\r\n\r\n");
        });
        let harness = Harness::new();
        let mut http = Http::get(server.url("/"));
        harness.prepare(&mut http).unwrap();
        let mut ask = |elapsed: Duration| {
            harness.elapsed(elapsed);
            let error = harness.probe(&mut http).unwrap_err().to_string();
            let mut wake = Wake::new(elapsed);
            http.wakes(&mut wake);
            assert!(wake.pause < Duration::MAX && wake.events.is_empty(), "{wake:?}");
            (error, http.listens, requests.load(Ordering::SeqCst))
        };
        let hour = Duration::from_secs(3600);
        let first = ask(hour);
        assert_eq!(
            (first.1, first.2),
            (Some(hour), 1),
            "the hour before does not count"
        );
        // Woken before its time, by another half: the same answer, and no request.
        assert_eq!(ask(hour), first);
        let later = ask(hour + Duration::from_secs(100));
        assert_eq!((later.1, later.2), (Some(hour), 2));
    }

    #[test]
    fn an_answer_that_drips_is_not_waited_for() {
        let server = Server::new(|stream| {
            for byte in OK.bytes() {
                if stream.write_all(&[byte]).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(400));
            }
        });
        let begun = Instant::now();
        let text = error(Http::head(server.url("/")));
        assert!(text.contains("did not answer HEAD / within"), "{text}");
        assert!(begun.elapsed() < Duration::from_secs(8));
    }

    #[test]
    fn a_body_without_end_is_not_waited_for() {
        let server = Server::new(|stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b'x'; 1000]).is_ok() {
                thread::sleep(Duration::from_millis(1));
            }
        });
        let begun = Instant::now();
        assert!(probe(Http::get(server.url("/"))).unwrap());
        assert!(begun.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn a_connection_that_is_closed_is_said() {
        let server = Server::new(|_| {});
        let text = error(Http::get(server.url("/x?secret")));
        assert!(
            text.starts_with("closed the connection without an answer to GET /x (a port"),
            "{text}"
        );
    }

    #[test]
    fn what_is_not_http_is_said() {
        let server = Server::answering("SSH-2.0-OpenSSH_9.2\r\n\r\n");
        let text = error(Http::get(server.url("/")));
        assert!(
            text.ends_with("is not HTTP: it begins with `SSH-2.0-OpenSSH_9.2`"),
            "{text}"
        );
        // What servers with TLS answer: a fatal alert, in a record of its own.
        let server = Server::new(|stream| {
            let _ = stream.write_all(&[0x15, 0x03, 0x01, 0x00, 0x02, 0x02, 0x16]);
        });
        let text = error(Http::get(server.url("/")));
        assert!(text.contains("is not HTTP: it speaks TLS"), "{text}");
        let server = Server::answering(
            "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.",
        );
        let text = error(Http::get(server.url("/")));
        assert!(text.contains("(the port speaks TLS; use "), "{text}");
    }

    #[test]
    fn nobody_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        drop(listener);
        in_time(|| TcpStream::connect(addr).is_err());
        let text = error(Http::get(format!("http://{addr}/")));
        assert_eq!(text, format!("it does not listen on {addr}"));
    }

    #[test]
    fn forms_and_bodies_are_sent_whatever_the_method() {
        let server = Server::answering(OK);
        assert!(probe(Http::post(server.url("/")).form([("a b", "1&2=é"), ("c", "*-._~")])).unwrap());
        let request = server.request();
        assert!(
            request.ends_with("\r\n\r\na+b=1%262%3D%C3%A9&c=*-._%7E"),
            "{request}"
        );
        let head = request.to_ascii_lowercase();
        assert!(
            head.contains("\r\ncontent-type: application/x-www-form-urlencoded\r\n"),
            "{request}"
        );
        assert!(head.contains("\r\ncontent-length: 28\r\n"), "{request}");

        for method in ["PUT", "DELETE", "GET", "PROPFIND"] {
            let http = Http::head(server.url("/"))
                .method(method)
                .header("Content-Type", "application/json")
                .body(r#"{"a":{"b":1}}"#);
            assert!(probe(http).unwrap());
            let request = server.request();
            assert!(
                request.starts_with(&format!("{method} / HTTP/1.1\r\n")),
                "{request}"
            );
            assert!(request.ends_with("\r\n\r\n{\"a\":{\"b\":1}}"), "{request}");
            assert!(request.contains("application/json"), "{request}");
        }

        assert!(probe(Http::post(server.url("/"))).unwrap());
        let request = server.request().to_ascii_lowercase();
        assert!(request.contains("\r\ncontent-length: 0\r\n"), "{request}");
        assert!(!request.contains("chunked"), "{request}");
        assert!(probe(Http::post(server.url("/")).body(vec![0xff])).unwrap());
    }

    #[test]
    fn a_user_is_sent_and_never_shown() {
        let server = Server::answering("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
        let url = format!("http://aladdin:open%20sesame@{}/?key=k3y", server.addr);
        let harness = Harness::new();
        let mut http = Http::get(url.as_str());
        harness.prepare(&mut http).unwrap();
        let text = harness.probe(&mut http).unwrap_err().to_string();
        let request = server.request().to_ascii_lowercase();
        assert!(
            request.contains("\r\nauthorization: basic ywxhzgrpbjpvcgvuihnlc2ftzq==\r\n"),
            "{request}"
        );
        assert!(
            request.contains(&format!("\r\nhost: {}\r\n", server.addr)),
            "{request}"
        );
        for shown in [text, http.describe(), format!("{http:?}")] {
            assert!(
                !shown.contains("sesame") && !shown.contains("k3y") && !shown.contains("aladdin"),
                "{shown}"
            );
        }
        // A client needs it.
        assert_eq!(http.url(), Some(url.as_str()));
        let text = harness.refusal(&mut Http::get("https://me:sesame@h/"));
        assert!(!text.contains("sesame"), "{text}");
        let text = harness.refusal(&mut Http::get("http://h/").header("X-Key", "sesame\n"));
        assert!(!text.contains("sesame") && text.contains("X-Key"), "{text}");
    }

    #[test]
    fn localhost_is_asked_where_the_service_is() {
        // The service is on one address only; on the other, if it resolves to two, there is nobody.
        let server = Server::answering(OK);
        let mut http = Http::get(format!("http://localhost:{}/", server.addr.port()));
        let harness = Harness::new();
        harness.prepare(&mut http).unwrap();
        assert!(harness.probe(&mut http).unwrap());
        assert_eq!(http.addr(), Some(server.addr));
        let request = server.request().to_ascii_lowercase();
        assert!(
            request.contains(&format!("\r\nhost: localhost:{}\r\n", server.addr.port())),
            "{request}"
        );
    }

    #[test]
    fn ipv6_and_any_address() {
        let Ok(listener) = TcpListener::bind("[::1]:0") else {
            return; // A machine without IPv6.
        };
        let server = Server::on(listener, |stream| stream.write_all(OK.as_bytes()).unwrap());
        assert!(probe(Http::get(server.url("/"))).unwrap());
        let mut http = Http::get(format!("http://[::]:{}", server.addr.port()));
        let harness = Harness::new();
        harness.prepare(&mut http).unwrap();
        assert_eq!(http.addr(), Some(server.addr));
        assert!(harness.probe(&mut http).unwrap());
    }

    #[test]
    fn https_is_a_feature() {
        let harness = Harness::new();
        let mut http = Http::get("https://127.0.0.1/");
        if cfg!(feature = "tls") {
            harness.prepare(&mut http).unwrap();
            assert_eq!(http.addr(), Some(SocketAddr::from(([127, 0, 0, 1], 443))));
        } else {
            let text = harness.refusal(&mut http);
            assert!(text.contains("needs mirakuru's feature `tls`"), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said() {
        let harness = Harness::new();
        for (url, part) in [
            ("127.0.0.1:80/x", "begins with `http://`"),
            ("ftp://127.0.0.1/", "only `http://` and `https://`"),
            ("http:///x", "the host is missing"),
            ("http://:80/", "the host is missing"),
            ("http://127.0.0.1:http/", "`http` is not a port"),
            ("http://127.0.0.1:0/", "`0` is not a port"),
            ("http://127.0.0.1:+80/", "`+80` is not a port"),
            ("http://127.0.0.1:70000/", "`70000` is not a port"),
            ("http://127.0.0.1:/", "`` is not a port"),
            ("http://::1/", "in brackets"),
            ("http://[::1/", "not closed"),
            ("http://[::1]80/", "comes `:`"),
            ("http://127.0.0.1/a b", "percent-encoded"),
            ("http://a<b/", "is not a host"),
            ("http://127.0.0.1/<>\\^", "percent-encode it"),
            ("http://no.such.host.invalid/", "cannot be resolved"),
        ] {
            let text = harness.refusal(&mut Http::get(url));
            assert!(text.contains(part), "{url}: {text}");
        }
        let text = harness.refusal(&mut Http::get("http://127.0.0.1/").status(20));
        assert!(text.contains("20 is not an HTTP status"), "{text}");
        let text = harness.refusal(&mut Http::get("http://127.0.0.1/").status("(200"));
        assert!(text.contains("unclosed group"), "{text}");
        let text = harness.refusal(&mut Http::get("http://127.0.0.1/").method("GET /x"));
        assert!(text.contains("the method `GET /x`"), "{text}");
    }

    #[test]
    fn a_url_is_taken_apart() {
        let parts = Parts::of("http://h").unwrap();
        assert_eq!((parts.host, parts.port, parts.path.as_str()), ("h", 80, "/"));
        let parts = Parts::of("HTTP://u:p@h:81?q=/#f").unwrap();
        assert_eq!(
            (parts.user, parts.authority, parts.path.as_str()),
            (Some("u:p"), "h:81", "/?q=/")
        );
        let parts = Parts::of("http://[::1]:82/é/?a?b").unwrap();
        assert_eq!(
            (parts.host, parts.port, parts.path.as_str()),
            ("::1", 82, "/é/?a?b")
        );
        assert_eq!(basic("a:b"), "Basic YTpi");
        assert_eq!(basic("ab"), "Basic YWI6");
        assert_eq!(basic("a%3"), "Basic YSUzOg==");
    }

    #[test]
    fn proxies_of_the_environment_are_not_used() {
        // In a process of its own, since the environment is everybody's. The proxy would be a port where nobody is.
        let proxy = |name| (name, "http://127.0.0.1:1");
        run_alone(
            test_name!(a_success_is_ready_and_the_request_is_as_given),
            &["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"].map(proxy),
        );
    }
}
