//! Tests external servers on which each test has its own names: etcd, memcached, Mosquitto, NATS,
//! RabbitMQ.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::common::{in_a_child, is_child, own_server, test_name};
use mirakuru::presets::{self, Etcd, Memcached, Mosquitto, Nats, Rabbitmq};
use mirakuru::{Executor, Readiness, Recipe};
use rumqttc::{Event, MqttOptions, Packet, QoS};

use super::{Subject, goes_on};

/// Calls methods that would disturb the server. Panics unless each error gives the reason.
#[track_caller]
fn verbs_are_errors<R: Readiness>(server: &mut Executor<R>, variable: &str) {
    for error in [server.stop(), server.restart(), server.kill(), server.pause()] {
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains(&format!("the server is the external one at {variable}")),
            "{error}"
        );
    }
    assert!(server.logs().to_string().contains(variable), "{}", server.logs());
}

/// Runs a child with a wrong URL. Panics unless its error has `part` and the variable, but no
/// secret.
#[track_caller]
fn says(test: &str, variable: &str, url: &str, part: &str) {
    let output = in_a_child(test, &[(variable, url)]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(part) && text.contains(variable), "{url}: {text}");
    assert!(!text.contains("secret"), "{text}");
}

// ---- etcd ---------------------------------------------------------------------------------------

fn etcd_put(url: &str, key: &str) {
    let question = format!("{{\"key\":\"{}\",\"value\":\"b25l\"}}", base64(key));
    ureq::post(&format!("{url}/v3/kv/put")).send(&question).unwrap();
}

fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = text.as_bytes().to_vec();
    // Pads the string so that base64 needs no `=`. A longer key does no harm here.
    bytes.resize(bytes.len().next_multiple_of(3), b'-');
    let digits = bytes.chunks(3).flat_map(|chunk| {
        let bits = chunk
            .iter()
            .fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        [18, 12, 6, 0].map(|shift| char::from(DIGITS[(bits >> shift & 63) as usize]))
    });
    digits.collect()
}

/// All keys and values.
fn etcd_dump(url: &str) -> String {
    let question = "{\"key\":\"AA==\",\"range_end\":\"AA==\"}";
    let mut answer = ureq::post(&format!("{url}/v3/kv/range")).send(question).unwrap();
    let mut text = String::new();
    answer.body_mut().as_reader().read_to_string(&mut text).unwrap();
    text.split_once("\"kvs\"")
        .map_or_else(String::new, |(_, rest)| rest.to_owned())
}

#[test]
fn an_etcd_that_is_there_is_used_and_left_as_it_was() {
    if !own_server("etcd") {
        return;
    }
    let server = presets::etcd().start().unwrap();
    for key in ["theirs", "mk", "mk0p1_x", "ml"] {
        etcd_put(&server.url(), key);
    }
    let dump = || etcd_dump(&server.url());
    let subject = Subject {
        variable: "MIRAKURU_ETCD_URL",
        url: server.url(),
        dump: &dump,
        busy: test_name!(etcd_is_busy),
    };
    subject.passes(test_name!(etcd_gives_each_test_its_keys));
    subject.is_as_it_was_after_kills();
    says(
        test_name!(etcd_says_why),
        "MIRAKURU_ETCD_URL",
        "redis://:secret@127.0.0.1/",
        "begin with `http://`",
    );
    says(
        test_name!(etcd_says_why),
        "MIRAKURU_ETCD_URL",
        "http://u:secret@127.0.0.1:1/",
        "refused",
    );
    let wrong = server.url().replace("://", "://u:secret@");
    says(
        test_name!(etcd_says_why),
        "MIRAKURU_ETCD_URL",
        &wrong,
        "authentication",
    );
}

#[mirakuru::fixture(presets::etcd())]
static ETCD: Etcd;

#[test]
#[ignore = "a child of another test"]
fn etcd_gives_each_test_its_keys() {
    if !is_child() {
        return;
    }
    assert_eq!(ETCD.url(), url_of("ETCD"));
    let (one, other) = (ETCD.key_prefix(), ETCD.key_prefix());
    assert_ne!(one, other);
    etcd_put(&url_of("ETCD"), &one.join("visits"));
    etcd_put(&url_of("ETCD"), &other.join("visits"));
    assert!(etcd_dump(&url_of("ETCD")).contains(&base64(&one)[..8]));
    verbs_are_errors(&mut presets::etcd().start().unwrap(), "MIRAKURU_ETCD_URL");
}

/// The URL in this variable, without a final `/`.
fn url_of(name: &str) -> String {
    let url = env::var(format!("MIRAKURU_{name}_URL")).unwrap();
    url.trim_end_matches('/').to_owned()
}

#[test]
#[ignore = "a child of another test"]
fn etcd_is_busy() {
    if !is_child() {
        return;
    }
    let server = presets::etcd().start().unwrap();
    loop {
        let prefix = server.key_prefix();
        (0..20).for_each(|key| etcd_put(&url_of("ETCD"), &prefix.join(&key.to_string())));
        if !goes_on() {
            break;
        }
    }
}

#[test]
#[ignore = "a child of another test"]
pub(super) fn etcd_says_why() {
    if is_child() {
        println!("{}", presets::etcd().optional().start().unwrap_err());
    }
}

// ---- memcached ----------------------------------------------------------------------------------

/// All keys. Fails while the server lists its keys for another client.
fn try_memcached_dump(addr: SocketAddr) -> Result<String, String> {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"lru_crawler metadump all\r\n").unwrap();
    let mut keys = Vec::new();
    for line in BufReader::new(stream).lines().map(Result::unwrap) {
        match line.strip_prefix("key=") {
            Some(key) => keys.extend(key.split(' ').next().map(str::to_owned)),
            None if line == "END" => break,
            None => return Err(line),
        }
    }
    keys.sort_unstable();
    Ok(keys.join("\n"))
}

fn memcached_dump(addr: SocketAddr) -> String {
    let mut dump = try_memcached_dump(addr);
    super::within(Duration::from_secs(10), || {
        if dump.is_err() {
            dump = try_memcached_dump(addr);
        }
        dump.is_ok()
    });
    dump.unwrap()
}

#[test]
fn a_memcached_that_is_there_is_used_and_left_as_it_was() {
    if !own_server("memcached") {
        return;
    }
    let server = presets::memcached().start().unwrap();
    let client = memcache::connect(server.url()).unwrap();
    for key in ["theirs", "mk", "mk0p1_x"] {
        client.set(key, "one", 0).unwrap();
    }
    let dump = || memcached_dump(server.addr());
    let subject = Subject {
        variable: "MIRAKURU_MEMCACHED_URL",
        url: server.url(),
        dump: &dump,
        busy: test_name!(memcached_is_busy),
    };
    subject.passes(test_name!(memcached_gives_each_test_its_keys));
    subject.is_as_it_was_after_kills();
}

#[mirakuru::fixture(presets::memcached())]
static MEMCACHED: Memcached;

#[test]
#[ignore = "a child of another test"]
fn memcached_gives_each_test_its_keys() {
    if !is_child() {
        return;
    }
    let client = memcache::connect(format!("memcache://{}", MEMCACHED.addr())).unwrap();
    let (one, other) = (MEMCACHED.key_prefix(), MEMCACHED.key_prefix());
    assert_ne!(one, other);
    client.set(&one.join("visits"), 1, 0).unwrap();
    client.set(&other.join("visits"), 2, 0).unwrap();
    assert_eq!(client.get::<u64>(&one.join("visits")).unwrap(), Some(1));
    // The dump encodes `:` as `%3A`, so leave the separator out.
    assert!(memcached_dump(MEMCACHED.addr()).contains(one.trim_end_matches(':')));
    verbs_are_errors(
        &mut presets::memcached().start().unwrap(),
        "MIRAKURU_MEMCACHED_URL",
    );
}

#[test]
#[ignore = "a child of another test"]
fn memcached_is_busy() {
    if !is_child() {
        return;
    }
    let server = presets::memcached().start().unwrap();
    let client = memcache::connect(format!("memcache://{}", server.addr())).unwrap();
    loop {
        let prefix = server.key_prefix();
        (0..20).for_each(|key| client.set(&prefix.join(&key.to_string()), key, 0).unwrap());
        if !goes_on() {
            break;
        }
    }
}

#[test]
#[ignore = "a child of another test"]
pub(super) fn memcached_says_why() {
    if is_child() {
        println!("{}", presets::memcached().optional().start().unwrap_err());
    }
}

// ---- Mosquitto ----------------------------------------------------------------------------------

/// Publishes a retained message on each topic, and waits until the broker has all messages.
fn publish(addr: SocketAddr, topics: &[String]) {
    let options = MqttOptions::new("", addr.ip().to_string(), addr.port());
    let (client, mut connection) = rumqttc::Client::new(options, 100);
    for topic in topics {
        client.publish(topic, QoS::AtLeastOnce, true, "one").unwrap();
    }
    let mut left = topics.len();
    while left > 0 {
        let event = connection
            .recv_timeout(Duration::from_secs(30))
            .expect("an answer in time");
        left -= usize::from(matches!(event.unwrap(), Event::Incoming(Packet::PubAck(_))));
    }
}

/// The topics of all retained messages.
fn mosquitto_dump(addr: SocketAddr) -> String {
    let options = MqttOptions::new("", addr.ip().to_string(), addr.port());
    let (client, mut connection) = rumqttc::Client::new(options, 100);
    client.subscribe("#", QoS::AtMostOnce).unwrap();
    client.publish("end", QoS::AtMostOnce, false, "").unwrap();
    let mut messages = Vec::new();
    loop {
        let event = connection
            .recv_timeout(Duration::from_secs(30))
            .expect("an answer in time");
        match event.unwrap() {
            Event::Incoming(Packet::Publish(message)) if message.topic == "end" => break,
            Event::Incoming(Packet::Publish(message)) if message.retain => messages.push(message.topic),
            _ => {}
        }
    }
    messages.sort();
    messages.join("\n")
}

#[test]
fn a_mosquitto_that_is_there_is_used_and_left_as_it_was() {
    if !own_server("mosquitto") {
        return;
    }
    let server = presets::mosquitto().start().unwrap();
    publish(
        server.addr(),
        &["theirs", "mirakuru/theirs", "mirakuru/mk0p1_x/y"].map(str::to_owned),
    );
    let dump = || mosquitto_dump(server.addr());
    let subject = Subject {
        variable: "MIRAKURU_MOSQUITTO_URL",
        url: server.url(),
        dump: &dump,
        busy: test_name!(mosquitto_is_busy),
    };
    subject.passes(test_name!(mosquitto_gives_each_test_its_topics));
    subject.is_as_it_was_after_kills();
}

#[mirakuru::fixture(presets::mosquitto())]
static MOSQUITTO: Mosquitto;

#[test]
#[ignore = "a child of another test"]
fn mosquitto_gives_each_test_its_topics() {
    if !is_child() {
        return;
    }
    let (one, other) = (MOSQUITTO.topic_prefix(), MOSQUITTO.topic_prefix());
    assert_ne!(one, other);
    publish(MOSQUITTO.addr(), &[one.join("visits"), other.join("visits")]);
    assert!(mosquitto_dump(MOSQUITTO.addr()).contains(&*one));
    verbs_are_errors(
        &mut presets::mosquitto().start().unwrap(),
        "MIRAKURU_MOSQUITTO_URL",
    );
}

#[test]
#[ignore = "a child of another test"]
fn mosquitto_is_busy() {
    if !is_child() {
        return;
    }
    let server = presets::mosquitto().start().unwrap();
    loop {
        let prefix = server.topic_prefix();
        let topics: Vec<String> = (0..20).map(|n| prefix.join(&n.to_string())).collect();
        publish(server.addr(), &topics);
        if !goes_on() {
            break;
        }
    }
}

// ---- NATS ---------------------------------------------------------------------------------------

/// Sends one request to JetStream, without `async-nats`, which ignores the password of a URL.
fn jetstream(url: &str, subject: &str, question: &str) -> String {
    let rest = url.strip_prefix("nats://").unwrap();
    let (login, addr) = rest.trim_end_matches('/').split_once('@').unwrap();
    let (user, password) = login.split_once(':').unwrap();
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let text = format!(
        "CONNECT {{\"verbose\":false,\"user\":\"{user}\",\"pass\":\"{password}\"}}\r\nSUB answer.{id} 1\r\n\
         PUB $JS.API.{subject} answer.{id} {}\r\n{question}\r\n",
        question.len(),
        id = super::random()
    );
    stream.write_all(text.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    lines.find(|line| line.starts_with("MSG ")).unwrap();
    lines.next().unwrap()
}

fn add_stream(url: &str, name: &str) {
    let question = format!("{{\"name\":\"{name}\",\"subjects\":[\"{name}.>\"],\"storage\":\"memory\"}}");
    let answer = jetstream(url, &format!("STREAM.CREATE.{name}"), &question);
    assert!(!answer.contains("\"error\""), "{answer}");
}

/// The names of all streams.
fn nats_dump(url: &str) -> String {
    let answer = jetstream(url, "STREAM.NAMES", "");
    let (_, names) = answer.split_once("\"streams\":").unwrap();
    let mut names: Vec<&str> = names.split('"').collect();
    names.sort_unstable();
    names.join(" ")
}

#[test]
fn a_nats_that_is_there_is_used_and_left_as_it_was() {
    if !own_server("nats-server") {
        return;
    }
    let server = presets::nats().jetstream(true).start().unwrap();
    let url = server.url();
    for name in ["theirs", "mk", "mk0p1_x", "KV_theirs"] {
        add_stream(&url, name);
    }
    let dump = || nats_dump(&url);
    let subject = Subject {
        variable: "MIRAKURU_NATS_URL",
        url: url.clone(),
        dump: &dump,
        busy: test_name!(nats_is_busy),
    };
    subject.passes(test_name!(nats_gives_each_test_its_subjects));
    subject.is_as_it_was_after_kills();
    let wrong = url.replace(server.password(), "secret");
    says(
        test_name!(nats_says_why),
        "MIRAKURU_NATS_URL",
        &wrong,
        "Authorization Violation",
    );
    let plain = presets::nats().start().unwrap();
    says(
        test_name!(nats_says_why),
        "MIRAKURU_NATS_URL",
        &plain.url(),
        "jetstream(true)",
    );
}

#[mirakuru::fixture(presets::nats().jetstream(true))]
static NATS: Nats;

#[test]
#[ignore = "a child of another test"]
fn nats_gives_each_test_its_subjects() {
    if !is_child() {
        return;
    }
    assert_eq!(NATS.user(), "everybody");
    let (one, other) = (NATS.subject_prefix(), NATS.subject_prefix());
    assert_ne!(one, other);
    add_stream(&url_of("NATS"), one.trim_end_matches('.'));
    add_stream(&url_of("NATS"), &format!("KV_{}", other.trim_end_matches('.')));
    assert!(nats_dump(&url_of("NATS")).contains(one.trim_end_matches('.')));
    let error = NATS.try_account().unwrap_err().to_string();
    assert!(
        error.contains("subject_prefix()") && error.contains("MIRAKURU_NATS_URL"),
        "{error}"
    );
    let mut server = presets::nats().jetstream(true).start().unwrap();
    verbs_are_errors(&mut server, "MIRAKURU_NATS_URL");
}

#[test]
#[ignore = "a child of another test"]
fn nats_is_busy() {
    if !is_child() {
        return;
    }
    let server = presets::nats().jetstream(true).start().unwrap();
    loop {
        let prefix = server.subject_prefix();
        for begin in ["", "KV_"] {
            add_stream(
                &url_of("NATS"),
                &format!("{begin}{}", prefix.trim_end_matches('.')),
            );
        }
        if !goes_on() {
            break;
        }
    }
}

#[test]
#[ignore = "a child of another test"]
fn nats_says_why() {
    if is_child() {
        println!(
            "{}",
            presets::nats().jetstream(true).optional().start().unwrap_err()
        );
    }
}

// ---- RabbitMQ -----------------------------------------------------------------------------------

/// All virtual hosts, and all permissions.
fn rabbitmq_dump(server: &Rabbitmq) -> String {
    let port = server.port_named("management");
    let login = base64_of(&format!("{}:{}", server.user(), server.password()));
    let mut parts: Vec<String> = ["vhosts?columns=name", "permissions"]
        .iter()
        .flat_map(|path| {
            let request = ureq::get(&format!("http://127.0.0.1:{port}/api/{path}"));
            let mut answer = request
                .header("Authorization", &format!("Basic {login}"))
                .call()
                .unwrap();
            let mut text = String::new();
            answer.body_mut().as_reader().read_to_string(&mut text).unwrap();
            text.split("},{").map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    parts.sort();
    parts.join("\n")
}

/// Encodes base64 with padding.
fn base64_of(text: &str) -> String {
    let padding = (3 - text.len() % 3) % 3;
    let mut encoded = base64(&format!("{text}{}", "\0".repeat(padding)));
    encoded.truncate(encoded.len() - padding);
    encoded + &"=".repeat(padding)
}

#[test]
fn a_rabbitmq_that_is_there_is_used_and_left_as_it_was() {
    if !own_server("rabbitmq-server") {
        return;
    }
    let server = presets::rabbitmq()
        .plugin("rabbitmq_management")
        .config("management.tcp.ip", "127.0.0.1")
        .config("management.tcp.port", "{port:management}")
        .start()
        .unwrap();
    let _theirs = server.vhost();
    let url = format!(
        "{}?management_port={}",
        server.url(),
        server.port_named("management")
    );
    let dump = || rabbitmq_dump(&server);
    let subject = Subject {
        variable: "MIRAKURU_RABBITMQ_URL",
        url: url.clone(),
        dump: &dump,
        busy: test_name!(rabbitmq_is_busy),
    };
    subject.passes(test_name!(rabbitmq_gives_each_test_a_virtual_host));
    subject.is_as_it_was_after_kills();
    let wrong = url.replace(server.password(), "secret");
    says(
        test_name!(rabbitmq_says_why),
        "MIRAKURU_RABBITMQ_URL",
        &wrong,
        "refuses the user",
    );
    let closed = format!("{}?management_port=1", server.url());
    says(
        test_name!(rabbitmq_says_why),
        "MIRAKURU_RABBITMQ_URL",
        &closed,
        "rabbitmq-plugins enable",
    );
}

#[mirakuru::fixture(presets::rabbitmq())]
static RABBITMQ: Rabbitmq;

#[test]
#[ignore = "a child of another test"]
fn rabbitmq_gives_each_test_a_virtual_host() {
    if !is_child() {
        return;
    }
    let (one, other) = (RABBITMQ.vhost(), RABBITMQ.vhost());
    assert_ne!(one.name(), other.name());
    assert!(RABBITMQ.url().contains("/%2F"), "{:?}", *RABBITMQ);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let properties = lapin::ConnectionProperties::default();
        let connection = lapin::Connection::connect(&one.url(), properties).await.unwrap();
        connection.create_channel().await.unwrap();
    });
    let plugin = presets::rabbitmq().plugin("rabbitmq_shovel").start();
    assert!(plugin.unwrap_err().to_string().contains("`plugin(..)`"));
    verbs_are_errors(&mut presets::rabbitmq().start().unwrap(), "MIRAKURU_RABBITMQ_URL");
}

#[test]
#[ignore = "a child of another test"]
fn rabbitmq_is_busy() {
    if !is_child() {
        return;
    }
    let server = presets::rabbitmq().start().unwrap();
    loop {
        let kept = server.vhost();
        drop(server.vhost());
        if !goes_on() {
            break;
        }
        std::mem::forget(kept);
    }
}

#[test]
#[ignore = "a child of another test"]
fn rabbitmq_says_why() {
    if is_child() {
        println!("{}", presets::rabbitmq().optional().start().unwrap_err());
    }
}
