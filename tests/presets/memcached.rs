//! Tests `presets::memcached()` with the crate `memcache`.

use crate::common::{
    any_server, assert_names_the_holder, assert_names_the_package, assert_nothing_is_left, is_child,
    own_server, test_name, without_url,
};
use memcache::Client;
use mirakuru::Recipe;
use mirakuru::presets::{self, Memcached};

#[mirakuru::fixture(presets::memcached())]
static MEMCACHED: Memcached;

fn connect(server: &Memcached) -> Client {
    memcache::connect(server.url()).unwrap()
}

fn counts_to_three() {
    if !any_server("memcached") {
        return;
    }
    let prefix = MEMCACHED.key_prefix();
    let client = connect(&MEMCACHED);
    let key = prefix.join("visits");
    client.add(&key, 0, 0).unwrap();
    for visit in 1..=3 {
        assert_eq!(client.increment(&key, 1).unwrap(), visit);
    }
    assert_eq!(client.get::<u64>(&key).unwrap(), Some(3));
}

#[test]
fn one_test_has_its_keys() {
    counts_to_three();
}

#[test]
fn another_test_has_others() {
    counts_to_three();
}

#[test]
fn it_is_configured_restarts_empty_and_leaves_nothing() {
    if !own_server("memcached") {
        return;
    }
    let mut server = presets::memcached().arg("--memory-limit=16").start().unwrap();
    let client = connect(&server);
    let stats = client.stats().unwrap();
    assert_eq!(stats[0].1["limit_maxbytes"], (16 << 20).to_string());
    client.set("x", 1, 0).unwrap();
    server.restart().unwrap();
    let client = connect(&server);
    assert_eq!(client.get::<u64>("x").unwrap(), None);
    server.stop().unwrap();
    server.start().unwrap();
    assert_nothing_is_left(server);
}

#[test]
fn who_has_its_port_is_named() {
    if own_server("memcached") {
        assert_names_the_holder(|port| presets::memcached().port(port).start());
    }
}

#[test]
fn a_missing_program_is_named_and_its_package() {
    if !without_url("memcached") {
        return;
    }
    let error = presets::memcached()
        .program("/no/such/program")
        .start()
        .unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    assert_names_the_package(test_name!(the_program_is_not_on_path), "memcached");
}

#[test]
#[ignore = "for the test above"]
fn the_program_is_not_on_path() {
    if is_child() {
        println!("{}", presets::memcached().start().unwrap_err());
    }
}

#[test]
fn what_it_says_of_a_wrong_argument_is_in_the_report() {
    if !own_server("memcached") {
        return;
    }
    let error = presets::memcached().arg("--no-such-option").start().unwrap_err();
    assert!(error.to_string().contains("'--no-such-option'"), "{error}");
}
