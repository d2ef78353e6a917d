//! One HTTP request and its answer, and the reason why an answer is not good enough.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ureq::http as types;

use super::Http;
use super::target::{Target, show, without_query};
use crate::readiness::Probe;
use crate::util::text::printable;

/// Length of the longest head of an answer, in bytes.
const HEAD: usize = 256 * 1024;
/// Limits for reading an answer's body. Without this read, a server would be cut off in the middle
/// of a short body.
const BODY: u64 = 64 * 1024;
const BODY_TIME: Duration = Duration::from_millis(50);

impl Http {
    /// The method and the path, without the query.
    fn request(&self, target: &Target) -> String {
        format!("{} {}", self.method, printable(without_query(&target.path), 200))
    }

    pub(super) fn ask(&mut self, target: &Target, cx: &Probe<'_>) -> io::Result<bool> {
        // Without this minimum, the last request before the end could not succeed.
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
        self.answers = true;
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
            ureq::Error::LargeResponseHeader(..) => (
                ErrorKind::InvalidData,
                format!("the head of the answer to {request} is longer than {HEAD} bytes"),
            ),
            // This error's type cannot be named here, so its text decides.
            ureq::Error::Protocol(error) if error.to_string().contains("too many headers") => (
                ErrorKind::InvalidData,
                format!("the answer to {request} has more headers than mirakuru reads; use a URL with fewer"),
            ),
            ureq::Error::Protocol(_) => {
                let seen = self.first_bytes.get_or_insert_with(|| first_bytes(addr, limit));
                (
                    ErrorKind::InvalidData,
                    format!("the answer to {request} on {addr} is not HTTP{seen}"),
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
                        "closed the connection without an answer to {request} (a port that speaks TLS may do \
                            this)"
                    );
                    (error.kind(), text)
                }
                // The kind of our own error must not end the wait.
                _ => (ErrorKind::Other, format!("{request} on {addr}: {error}")),
            },
            // The error's text could show the URL. The name of the variant is enough for a case
            // that cannot happen.
            ureq::Error::BadUri(_) => (ErrorKind::Other, format!("{request} on {addr}: not a URL")),
            other => (ErrorKind::Other, format!("{request} on {addr}: {other}")),
        };
        io::Error::new(kind, text)
    }
}

struct Answer {
    status: u16,
    reason: Option<&'static str>,
    location: Option<String>,
    /// The first line of the body, if it is a short text.
    line: String,
}

/// The remedy for a port that speaks TLS, as the end of a sentence.
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
    // Each phase has a limit, and the whole request has none. With a limit for the whole, ureq
    // resolves names in a thread of its own, even without a name to resolve. Connecting and sending
    // take no time on a local port.
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
        // This buffer is filled with zeros for each request. The longest head fits into it.
        .input_buffer_size(HEAD + 8 * 1024)
        .max_response_header_size(HEAD)
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
    // The Host header has the name; the connection goes to the address that was checked.
    let mut request = types::Request::builder()
        .method(method)
        .uri(format!("{}://{}{}", scheme(target.tls), target.addr, target.path))
        .body(())?;
    *request.headers_mut() = target.headers.clone();
    let needs_body = matches!(method, "POST" | "PUT" | "PATCH");
    let mut response = match &target.body {
        // If there is a body, ureq sends it with every method.
        Some(body) => agent.run(request.map(|()| body.as_slice()))?,
        // With no body at all, ureq would send an empty chunked body, which not every server
        // accepts.
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
    // The body is read only to be polite: a failure does not matter.
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

/// The first bytes that a port without HTTP answers to a plain request, as the end of a sentence.
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
        // These are the type of a TLS alert or handshake, then the major version.
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
