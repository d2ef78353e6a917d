//! `Http` requests an `https://` URL over TLS. If a server on a plain `http://` URL speaks TLS, the
//! error says so.

use std::process::Command;
use std::time::Duration;

use crate::common::{Scratch, require};
use crate::reports::{report, start};
use mirakuru::{Executor, ExecutorBuilder, Http};

/// A server that speaks TLS. `None` if openssl is not installed.
fn tls_server(scratch: &Scratch) -> Option<ExecutorBuilder> {
    let openssl = require("openssl")?;
    let (key, certificate) = (scratch.file("key"), scratch.file("certificate"));
    let made = Command::new(&openssl)
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ])
        .args(["-subj", "/CN=localhost", "-keyout", &key, "-out", &certificate])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let server = Executor::builder([&openssl]).args([
        "s_server",
        "-www",
        "-accept",
        "127.0.0.1:{port}",
        "-key",
        &key,
        "-cert",
        &certificate,
    ]);
    Some(server)
}

#[test]
fn tls_on_a_plain_port() {
    let scratch = Scratch::new();
    let Some(server) = tls_server(&scratch) else {
        return;
    };
    let recipe = server
        .wait_for(Http::get("http://127.0.0.1:{port}/"))
        .timeout(Duration::from_secs(3));
    let text = report(&start(recipe));
    assert!(
        text.lines()
            .next()
            .unwrap()
            .contains(": timed out after [time], before it answered GET http://"),
        "{text}"
    );
    let probe = text
        .lines()
        .find(|line| line.starts_with("  last probe: "))
        .unwrap();
    assert!(probe.contains("TLS"), "{text}");
}

#[cfg(feature = "tls")]
#[test]
fn https_is_asked_over_tls() {
    let scratch = Scratch::new();
    let Some(server) = tls_server(&scratch) else {
        return;
    };
    let mut server = server
        .wait_for(Http::get("https://localhost:{port}/"))
        .start()
        .unwrap();
    assert_eq!(server.url(), format!("https://localhost:{}/", server.port()));
    server.kill().unwrap();
    // This server does not speak TLS.
    let text = report(&start(
        Executor::builder("python3 -m http.server --bind 127.0.0.1 {port}")
            .wait_for(Http::get("https://127.0.0.1:{port}/"))
            .timeout(Duration::from_secs(4)),
    ));
    assert!(text.contains("the TLS handshake with "), "{text}");
}
