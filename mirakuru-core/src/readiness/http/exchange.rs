//! Sends an HTTP request, reads the response, and explains failures.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ureq::http as types;

use super::Http;
use super::target::{Target, show, without_query};
use crate::readiness::Probe;
use crate::util::text::printable;

/// Maximum length of a response's head, in bytes.
const HEAD: usize = 256 * 1024;
/// Limits for reading the body of a response. A short body is read to its end, so that the
/// connection is not closed while the server is still sending it.
const BODY: u64 = 64 * 1024;
const BODY_TIME: Duration = Duration::from_millis(50);

impl Http {
    /// The method and the path, without the query.
    fn request(&self, target: &Target) -> String {
        format!("{} {}", self.method, printable(without_query(&target.path), 200))
    }

    pub(super) fn ask(&mut self, target: &Target, cx: &Probe<'_>) -> io::Result<bool> {
        // The last request before the end of the wait gets at least 1 ms.
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
            // The type of this error cannot be named here, so its text is compared.
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
                format!("the TLS handshake with {addr} for {request} failed: {error}"),
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
                // The kind is `Other`, because the original kind could end the wait.
                _ => (ErrorKind::Other, format!("{request} on {addr}: {error}")),
            },
            // This cannot happen, because the URL has been parsed before. The error's own text
            // could reveal secrets in the URL.
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
    /// The first line of the body, if the body is text.
    line: String,
}

/// Advice about a port that speaks TLS, as the end of a sentence.
const TLS_REMEDY: &str = if cfg!(feature = "tls") {
    "; use `https://`, or the port for plain HTTP"
} else {
    "; use the port for plain HTTP, or `https://` with mirakuru's feature `tls`"
};

fn scheme(tls: bool) -> &'static str {
    if tls { "https" } else { "http" }
}

/// Sends the request to the target's address, on a new connection.
fn send(method: &str, target: &Target, limit: Duration) -> Result<Answer, ureq::Error> {
    // Each phase of the request has a time limit, but the whole request has none. With a limit on
    // the whole, ureq would start a thread to resolve names, even if there is no name to resolve.
    // Connecting and sending take almost no time on a local port.
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
        // ureq fills this buffer with zeros for each request, so it is only just large enough for
        // the longest head.
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
    // The Host header contains the name, but the connection goes to the address that was checked.
    let mut request = types::Request::builder()
        .method(method)
        .uri(format!("{}://{}{}", scheme(target.tls), target.addr, target.path))
        .body(())?;
    *request.headers_mut() = target.headers.clone();
    let needs_body = matches!(method, "POST" | "PUT" | "PATCH");
    let mut response = match &target.body {
        // If there is a body, ureq sends it with any method.
        Some(body) => agent.run(request.map(|()| body.as_slice()))?,
        // The body is empty but present. Without one, ureq sends an empty chunked body, which some
        // servers refuse.
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
    // The status counts even if the body cannot be read.
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

/// Describes the first bytes received from a port that does not speak HTTP, as the end of a
/// sentence.
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
        // A TLS record begins with its type (alert or handshake) and its major version.
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
