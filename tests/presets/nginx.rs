//! Tests `presets::nginx(..)` with the crate `ureq`.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::common::{assert_names_the_holder, assert_nothing_is_left, require};
use mirakuru::presets::{self, Nginx};
use mirakuru::{Check, Recipe, Signal};

#[mirakuru::fixture(presets::nginx(
    "server { listen 127.0.0.1:{port}; location / { return 200 'hello from ${server_port}'; } }"
))]
static NGINX: Nginx;

/// Gets a page, and returns its status and body.
fn get(url: &str) -> (u16, String) {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .build()
        .into();
    let mut answer = agent.get(url).call().unwrap();
    let text = answer.body_mut().read_to_string().unwrap();
    (answer.status().as_u16(), text)
}

fn says_hello() {
    if require("nginx") {
        let text = format!("hello from {}", NGINX.port());
        assert_eq!(get(&NGINX.url()), (200, text));
    }
}

#[test]
fn one_test_is_greeted() {
    says_hello();
}

#[test]
fn another_test_is_greeted() {
    says_hello();
}

/// A directory with a page. Only the user of the tests can read the directory, as with `tempfile`.
struct Site(PathBuf);

impl Site {
    fn new() -> Site {
        let path = env::temp_dir().join(format!("mkt site {}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(path.join("page.html"), "<p>a page").unwrap();
        Site(path)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn files_are_served_logged_and_nothing_is_left() {
    if !require("nginx") {
        return;
    }
    let site = Site::new();
    let mut server = presets::nginx("").document_root(&site.0).start().unwrap();
    let url = format!("{}/page.html", server.url());
    assert_eq!(get(&url), (200, "<p>a page".to_owned()));
    let mut answer = ureq::get(&url).call().unwrap();
    assert_eq!(answer.headers()["content-type"], "text/html");
    answer.body_mut().read_to_string().unwrap();
    assert_eq!(get(&format!("{}/no-such-page", server.url())).0, 404);
    let logs = server.logs();
    assert!(logs.stdout().contains("GET /page.html HTTP/1.1\" 200"), "{logs}");
    assert!(logs.stderr().contains("no-such-page"), "{logs}");
    server.restart().unwrap();
    assert_eq!(get(&url).0, 200);
    assert_nothing_is_left(server);
}

#[test]
fn it_reads_a_changed_configuration_at_sighup() {
    if !require("nginx") {
        return;
    }
    let mut server = presets::nginx("server { listen 127.0.0.1:{port}; include pages.conf; }")
        .file("pages.conf", "return 200 'old';")
        .start()
        .unwrap();
    let url = server.url();
    assert_eq!(get(&url).1, "old");
    fs::write(server.dir().join("pages.conf"), "return 200 'new';").unwrap();
    server.signal(Signal::Hup).unwrap();
    let new = Check::new("it answered anew", move |_| Ok(get(&url).1 == "new"));
    server.wait_until(new, Duration::from_secs(30)).unwrap();
}

#[test]
fn a_whole_file_is_taken_as_it_is() {
    if !require("nginx") {
        return;
    }
    let text = "
        pid {dir}/pid;
        error_log stderr;
        events { worker_connections 32; }
        http {
            access_log off;
            client_body_temp_path {dir}/a;
            proxy_temp_path {dir}/b;
            fastcgi_temp_path {dir}/c;
            uwsgi_temp_path {dir}/d;
            scgi_temp_path {dir}/e;
            server { listen 127.0.0.1:{port}; return 444; }
        }";
    let server = presets::nginx(text).raw().start().unwrap();
    // The server closes the connection without an answer.
    let error = ureq::get(server.url()).call().unwrap_err();
    assert!(server.is_running(), "{error}");
}

#[test]
fn the_main_context_can_be_added_to() {
    if !require("nginx") {
        return;
    }
    let server = presets::nginx("server { listen 127.0.0.1:{port}; return 200 'x'; }")
        .main("worker_processes 2;")
        .main("events { worker_connections 32; }")
        .start()
        .unwrap();
    assert_eq!(get(&server.url()).1, "x");
}

#[test]
fn who_has_its_port_is_named() {
    if require("nginx") {
        let text = "server { listen 127.0.0.1:{port}; }";
        assert_names_the_holder(|port| presets::nginx(text).port(port).start());
    }
}

#[test]
fn a_missing_program_is_named() {
    let error = presets::nginx("")
        .program("/no/such/program")
        .start()
        .unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
}

#[test]
fn what_it_says_of_a_broken_configuration_is_in_the_report() {
    if !require("nginx") {
        return;
    }
    let text = "server {\n    listen 127.0.0.1:{port};\n    no_such_directive on;\n}";
    let error = presets::nginx(text).start().unwrap_err().to_string();
    assert!(
        error.contains("unknown directive \"no_such_directive\""),
        "{error}"
    );
    // Line numbers are counted from the start of the recipe's text.
    assert!(error.contains("http.conf:3"), "{error}");
}
