//! Tests URLs that lead to another kind of server.

use std::env;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{in_a_child, is_child, own_server, test_name};
use mirakuru::{Executor, Recipe, Tcp, presets};

/// Each preset, and a scheme of its URLs.
const PRESETS: [(&str, &str); 8] = [
    ("POSTGRES", "postgresql"),
    ("MARIADB", "mysql"),
    ("REDIS", "redis"),
    ("RABBITMQ", "amqp"),
    ("NATS", "nats"),
    ("ETCD", "http"),
    ("MEMCACHED", "memcache"),
    ("MOSQUITTO", "mqtt"),
];
/// The answer of a server that no preset knows.
const UNKNOWN: &str = "`220 mail`";
const KIND: &str = "MIRAKURU_TEST_KIND";

#[test]
#[ignore = "a child of another test"]
fn names_the_kind() {
    if !is_child() {
        return;
    }
    let kind = env::var(KIND).unwrap();
    let check = |preset: &str, error: &mirakuru::Error, took: Duration| {
        let said = match preset {
            // These presets report a more precise error of their own.
            "RABBITMQ" if kind == UNKNOWN => "its management plugin does not answer".to_owned(),
            "MEMCACHED" if kind == UNKNOWN => "it does not list its keys (220 mail)".to_owned(),
            _ => format!("another kind of server listens there: it answers {kind}"),
        };
        let (text, variable) = (error.to_string(), format!("MIRAKURU_{preset}_URL"));
        assert!(
            text.contains(&said) && text.contains(&variable),
            "{preset}: {text}"
        );
        // A silent server would be reported only after 30 s.
        assert!(took < Duration::from_secs(15), "{preset}: {took:?}");
    };
    macro_rules! each {
        ($($preset:literal, $is_own:expr, $recipe:expr;)*) => {
            thread::scope(|scope| {
                $(scope.spawn(|| {
                    if !$is_own {
                        let begun = Instant::now();
                        let error = $recipe.start().map(drop).expect_err($preset);
                        check($preset, &error, begun.elapsed());
                    }
                });)*
            })
        };
    }
    each! {
        "POSTGRES", kind == "like PostgreSQL", presets::postgres();
        "MARIADB", kind == "like MariaDB or MySQL", presets::mariadb();
        "REDIS", kind == "like Redis", presets::redis();
        "RABBITMQ", kind == "like an HTTP server", presets::rabbitmq();
        "NATS", kind == "like NATS", presets::nats();
        "ETCD", kind == "like an HTTP server", presets::etcd();
        "MEMCACHED", kind == "like memcached", presets::memcached();
        "MOSQUITTO", kind == "like an MQTT broker", presets::mosquitto();
    }
}

/// Lets each preset use the server on this port. Panics unless each error names the given kind.
#[track_caller]
fn assert_named(port: u16, kind: &str) {
    let variables = PRESETS.map(|(preset, scheme)| {
        let url = format!("{scheme}://127.0.0.1:{port}");
        (format!("MIRAKURU_{preset}_URL"), url)
    });
    let variables = variables.iter().map(|(name, url)| (name.as_str(), url.as_str()));
    let variables: Vec<(&str, &str)> = variables.chain([(KIND, kind)]).collect();
    let output = in_a_child(test_name!(names_the_kind), &variables);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains(" 1 passed"),
        "{kind}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_server_of_another_kind_is_named_at_once() {
    for (program, command, kind) in [
        (
            "redis-server",
            "redis-server --port {port} --save '' --dir {dir}",
            "Redis",
        ),
        (
            "memcached",
            "memcached -u nobody -l 127.0.0.1 -p {port}",
            "memcached",
        ),
        ("nats-server", "nats-server -a 127.0.0.1 -p {port}", "NATS"),
        ("mosquitto", "mosquitto -p {port}", "an MQTT broker"),
    ] {
        if own_server(program) {
            let server = Executor::builder(command)
                .wait_for(Tcp::addr("127.0.0.1:{port}"))
                .start()
                .unwrap();
            assert_named(server.port(), &format!("like {kind}"));
        }
    }
    if own_server("postgres") {
        assert_named(presets::postgres().start().unwrap().port(), "like PostgreSQL");
    }
    if own_server("mariadbd") {
        assert_named(
            presets::mariadb().start().unwrap().port(),
            "like MariaDB or MySQL",
        );
    }
}

#[test]
fn an_http_server_and_an_unknown_one_are_named_at_once() {
    for (answer, kind) in [
        (
            "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
            "like an HTTP server",
        ),
        ("220 mail\r\n", UNKNOWN),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // Answers each connection once, and keeps it open.
        thread::spawn(move || {
            let mut open = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(answer.as_bytes());
                open.push(stream);
            }
        });
        assert_named(port, kind);
    }
}
