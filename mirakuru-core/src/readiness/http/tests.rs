//! Tests of [`Http`] with small servers on threads of this process.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use super::target::{Parts, basic};
use super::*;
use crate::readiness::harness::Harness;
use crate::sys::tests::in_time;
use crate::util::own_process::{run_alone, test_name};

/// A server that reads each request and calls a function to answer it.
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
        // The thread owns nothing but the listener, so it may run until the test process ends.
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

/// Reads the head of a request, and the body that the head announces.
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
    prepare_for_one(&harness, &mut http);
    harness.probe(&mut http)
}

/// Prepares a condition whose first request has enough time even on a busy machine. After a
/// time-out, the server would receive a second request.
fn prepare_for_one(harness: &Harness, http: &mut Http) {
    harness.prepare(http).unwrap();
    http.limit = Duration::from_secs(20);
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
    prepare_for_one(&harness, &mut http);
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
    assert_eq!(harness.locked(), [server.addr]);
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
    // The pattern must match the whole code.
    assert!(probe(Http::get(server.url("")).status("50")).is_err());
    assert!(probe(Http::get(server.url("")).status("0|5")).is_err());
    assert!(probe(Http::get(server.url("")).status("50|503")).unwrap());
    assert!(probe(Http::get(server.url("")).status(503)).unwrap());
    assert!(probe(Http::get(server.url("")).status(503_u16)).unwrap());
    assert!(probe(Http::get(server.url("")).status(r"5\d\d".to_owned())).unwrap());
}

#[test]
fn what_the_body_says_is_shown_when_it_is_plain() {
    let server =
        Server::answering("HTTP/1.1 500 Oops\r\nContent-Length: 24\r\n\r\n\nno database\u{1b}[1m here\r\n");
    let text = error(Http::get(server.url("/")));
    assert_eq!(
        text,
        "answered 500 Internal Server Error to GET /, wanted 2xx: no database here"
    );
    let server =
        Server::answering("HTTP/1.1 500 Oops\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>");
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
    // The end of the wait cuts this request short, so the error of the previous request is
    // returned.
    harness.remaining(Duration::from_millis(50));
    let begun = Instant::now();
    let text = harness.probe(&mut http).unwrap_err().to_string();
    assert!(begun.elapsed() < http.limit);
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
    prepare_for_one(&harness, &mut http);
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
    // An early poll, which another condition may cause, returns the same result without a request.
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
    let harness = Harness::new();
    let mut http = Http::head(server.url("/"));
    harness.prepare(&mut http).unwrap();
    let begun = Instant::now();
    let text = harness.probe(&mut http).unwrap_err().to_string();
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
    // Servers with TLS answer a plain request with a fatal alert.
    let server = Server::new(|stream| {
        let _ = stream.write_all(&[0x15, 0x03, 0x01, 0x00, 0x02, 0x02, 0x16]);
    });
    let text = error(Http::get(server.url("/")));
    assert!(text.contains("is not HTTP: it speaks TLS"), "{text}");
    let server =
        Server::answering("HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.");
    let text = error(Http::get(server.url("/")));
    assert!(text.contains("(the port speaks TLS; use "), "{text}");
}

#[test]
fn a_head_may_be_long_and_an_endless_one_is_called_so() {
    let long = format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\n\r\n", "x".repeat(200_000));
    let server = Server::new(move |stream| stream.write_all(long.as_bytes()).unwrap());
    assert!(probe(Http::get(server.url("/"))).unwrap());
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X-Many: 1\r\n".repeat(1000));
    let server = Server::new(move |stream| {
        let _ = stream.write_all(many.as_bytes());
    });
    let text = error(Http::get(server.url("/")));
    assert!(
        text.starts_with("the answer to GET / has more headers than mirakuru reads"),
        "{text}"
    );
    let endless = format!("HTTP/1.1 200 OK\r\nX-Endless: {}", "x".repeat(400_000));
    let server = Server::new(move |stream| {
        let _ = stream.write_all(endless.as_bytes());
    });
    let text = error(Http::get(server.url("/")));
    assert!(
        text.starts_with("the head of the answer to GET / is longer than"),
        "{text}"
    );
}

#[test]
fn a_server_that_answers_is_asked_rarely() {
    let server = Server::answering("HTTP/1.1 503 Odd\r\nContent-Length: 0\r\n\r\n");
    let harness = Harness::new();
    let mut http = Http::get(server.url("/"));
    harness.prepare(&mut http).unwrap();
    // Simulates the polls of an executor during ten seconds, without real pauses.
    let (mut now, mut requests) = (Duration::from_secs(1), 0);
    while now < Duration::from_secs(11) {
        harness.elapsed(now);
        harness.probe(&mut http).unwrap_err();
        requests += 1;
        let mut wake = Wake::new(now);
        http.wakes(&mut wake);
        now += wake.pause.max(Duration::from_micros(1));
    }
    assert!(requests < 160, "{requests} requests");
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
    // Clients of the service need the secrets, so `url` keeps them.
    assert_eq!(http.url(), Some(url.as_str()));
    let text = harness.refusal(&mut Http::get("https://me:sesame@h/"));
    assert!(!text.contains("sesame"), "{text}");
    let text = harness.refusal(&mut Http::get("http://h/").header("X-Key", "sesame\n"));
    assert!(!text.contains("sesame") && text.contains("X-Key"), "{text}");
}

#[test]
fn localhost_is_asked_where_the_service_is() {
    // Finds a port that no process of this machine uses on `::1`.
    let listener = loop {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        match TcpListener::bind(("::1", port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            _ => break listener,
        }
    };
    let server = Server::on(listener, |stream| stream.write_all(OK.as_bytes()).unwrap());
    let mut http = Http::get(format!("http://localhost:{}/", server.addr.port()));
    let harness = Harness::new();
    prepare_for_one(&harness, &mut http);
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
        return; // This machine has no IPv6.
    };
    let server = Server::on(listener, |stream| stream.write_all(OK.as_bytes()).unwrap());
    assert!(probe(Http::get(server.url("/"))).unwrap());
    let mut http = Http::get(format!("http://[::]:{}", server.addr.port()));
    let harness = Harness::new();
    prepare_for_one(&harness, &mut http);
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
        ("http://[::1]80/", "a colon and the port"),
        ("http://127.0.0.1/a b", "cannot contain ' '; percent-encode it"),
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
    // The environment is shared by all tests, so this one needs a process of its own. No process
    // listens on the proxy's port.
    let proxy = |name| (name, "http://127.0.0.1:1");
    run_alone(
        test_name!(a_success_is_ready_and_the_request_is_as_given),
        &["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"].map(proxy),
    );
}
