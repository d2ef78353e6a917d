//! Tests `presets::etcd()` in JSON with the crate `ureq`. The usual client, `etcd-client`, needs
//! `protoc` to build.

use std::io::Read;

use crate::common::{
    TinyDisk, any_server, assert_names_the_holder, assert_names_the_package, assert_nothing_is_left,
    in_a_child, is_child, own_server, require_root, test_name, without_url,
};
use mirakuru::Recipe;
use mirakuru::presets::{self, Etcd};

#[mirakuru::fixture(presets::etcd())]
static ETCD: Etcd;

/// Calls a method of etcd's JSON gateway.
fn call(server: &Etcd, method: &str, question: &str) -> String {
    let url = format!("{}/v3/{method}", server.url());
    let mut answer = ureq::post(&url).send(question).unwrap();
    let mut text = String::new();
    answer.body_mut().as_reader().read_to_string(&mut text).unwrap();
    text
}

fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let bits = chunk
            .iter()
            .fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte))
            << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 63;
            encoded.push(if digit > chunk.len() {
                '='
            } else {
                char::from(DIGITS[value as usize])
            });
        }
    }
    encoded
}

fn put(server: &Etcd, key: &str, value: &str) {
    let question = format!("{{\"key\":\"{}\",\"value\":\"{}\"}}", base64(key), base64(value));
    call(server, "kv/put", &question);
}

/// Whether the key has this value.
fn has(server: &Etcd, key: &str, value: &str) -> bool {
    let answer = call(server, "kv/range", &format!("{{\"key\":\"{}\"}}", base64(key)));
    answer.contains(&format!("\"value\":\"{}\"", base64(value)))
}

fn puts_and_gets() {
    if !any_server("etcd") {
        return;
    }
    let key = ETCD.key_prefix().join("visits");
    assert!(!has(&ETCD, &key, "0"));
    for visit in ["0", "10", "200"] {
        put(&ETCD, &key, visit);
        assert!(has(&ETCD, &key, visit));
    }
}

#[test]
fn one_test_has_its_keys() {
    puts_and_gets();
}

#[test]
fn another_test_has_others() {
    puts_and_gets();
}

#[test]
fn it_is_configured_keeps_data_over_a_restart_and_leaves_nothing() {
    if !own_server("etcd") {
        return;
    }
    let mut server = presets::etcd()
        .config("name", "other")
        .config("initial-cluster", "other=http://127.0.0.1:{port:peer}")
        .start()
        .unwrap();
    put(&server, "x", "kept");
    server.restart().unwrap();
    assert!(has(&server, "x", "kept"));
    let answer = call(&server, "cluster/member/list", "{}");
    assert!(answer.contains("\"name\":\"other\""), "{answer}");
    assert_nothing_is_left(server);
}

#[test]
fn variables_of_its_own_do_not_matter() {
    if !own_server("etcd") {
        return;
    }
    let output = in_a_child(
        test_name!(it_starts_durable),
        &[
            ("ETCD_DATA_DIR", "/nonexistent"),
            ("ETCD_UNSAFE_NO_FSYNC", "true"),
        ],
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("it has started"), "{text}");
}

#[test]
#[ignore = "for the test above"]
fn it_starts_durable() {
    if is_child() {
        let server = presets::etcd().durable(true).start().unwrap();
        put(&server, "x", "1");
        println!("it has started");
    }
}

#[test]
fn who_has_its_port_is_named() {
    if own_server("etcd") {
        assert_names_the_holder(|port| presets::etcd().port(port).start());
    }
}

#[test]
fn a_missing_program_is_named_and_its_package() {
    if !without_url("etcd") {
        return;
    }
    let error = presets::etcd().program("/no/such/program").start().unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    assert_names_the_package(test_name!(it_starts), "etcd-server");
}

#[test]
#[ignore = "for other tests"]
fn it_starts() {
    if is_child() {
        println!("{}", presets::etcd().start().unwrap_err());
    }
}

#[test]
fn what_it_says_of_a_wrong_flag_is_in_the_report() {
    if !own_server("etcd") {
        return;
    }
    let error = presets::etcd().config("no-such-flag", "1").start().unwrap_err();
    assert!(error.to_string().contains("-no-such-flag"), "{error}");
}

#[test]
fn of_a_full_disk_the_report_says_so() {
    if !own_server("etcd") || !require_root() {
        return;
    }
    let Some(disk) = TinyDisk::mount(2048) else {
        return;
    };
    let output = in_a_child(
        test_name!(it_starts),
        &[("TMPDIR", disk.path().to_str().unwrap())],
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("no space left on device"), "{text}");
    assert!(text.contains("the disk is full"), "{text}");
}
