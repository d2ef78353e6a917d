//! Tests `presets::redis()` with the crate `redis`.

use std::process;
use std::time::{Duration, Instant};

use crate::common::{any_server, own_server};
use mirakuru::Recipe;
use mirakuru::presets::{self, Redis};
use redis::Commands;

#[mirakuru::fixture(presets::redis())]
static REDIS: Redis;

fn connect(url: &str) -> redis::Connection {
    redis::Client::open(url).unwrap().get_connection().unwrap()
}

fn counts_to_three() {
    if !any_server("redis-server") {
        return;
    }
    let database = REDIS.database();
    let mut client = connect(&database.url());
    for visit in 1..=3 {
        assert_eq!(client.incr::<_, _, u32>("visits", 1).unwrap(), visit);
    }
}

#[test]
fn one_test_has_a_database() {
    counts_to_three();
}

#[test]
fn another_test_has_another() {
    counts_to_three();
}

#[test]
fn it_is_configured() {
    if !own_server("redis-server") {
        return;
    }
    let server = presets::redis()
        .config("maxmemory", "16mb")
        .config("requirepass", "p@ss")
        .start()
        .unwrap();
    let mut client = connect(&server.url());
    let (_, value): (String, String) = redis::cmd("CONFIG")
        .arg("GET")
        .arg("maxmemory")
        .query(&mut client)
        .unwrap();
    assert_eq!(value, (16 << 20).to_string());
    assert_eq!(server.password(), Some("p@ss"));
    let database = server.database();
    connect(&database.url()).set::<_, _, ()>("x", 1).unwrap();
}

#[test]
fn databases_are_leased_emptied_and_given_back() {
    if !own_server("redis-server") {
        return;
    }
    let server = presets::redis().config("databases", "4").start().unwrap();
    let first = server.database();
    let number = first.number();
    connect(&first.url()).set::<_, _, ()>("x", 1).unwrap();
    let second = server.database();
    assert_ne!(second.number(), number);
    let late = connect(&first.url());
    drop(first);
    // A database is leased again only after all other databases have been leased.
    let (third, again) = (server.database(), server.database());
    assert_ne!(third.number(), number);
    assert_eq!(again.number(), number);
    assert!(!connect(&again.url()).exists::<_, bool>("x").unwrap());
    drop(late);
    let socket = format!("unix://{}", server.socket().display());
    assert_eq!(connect(&socket).ping::<String>().unwrap(), "PONG");
}

#[test]
fn when_all_are_leased_it_says_so() {
    if !own_server("redis-server") {
        return;
    }
    let server = presets::redis().config("databases", "3").start().unwrap();
    let _two = [server.database(), server.database()];
    let error = server.try_database().unwrap_err().to_string();
    assert!(error.contains("all 2 are leased"), "{error}");
}

#[mirakuru::fixture(presets::redis())]
#[test]
fn a_client_that_outlives_its_lease_is_cut_off(server: &Redis) {
    let first = server.database();
    let mut late = connect(&first.url());
    late.set::<_, _, ()>("x", 1).unwrap();
    let mut other = connect(&server.url());
    drop(first);
    assert!(late.set::<_, _, ()>("late", 1).is_err());
    assert_eq!(
        other.ping::<String>().unwrap(),
        "PONG",
        "a client of another database stays"
    );
}

#[test]
fn a_directive_may_have_several_arguments() {
    if !own_server("redis-server") {
        return;
    }
    let server = presets::redis()
        .config("save", "900 1")
        .config("rename-command", "DEBUG \"\"")
        .config("user", "alice on >a{port}b ~* +@all")
        .start()
        .unwrap();
    let mut client = connect(&server.url());
    let (_, save): (String, String) = redis::cmd("CONFIG")
        .arg("GET")
        .arg("save")
        .query(&mut client)
        .unwrap();
    assert_eq!(save, "900 1");
    let error = redis::cmd("DEBUG")
        .arg("SLEEP")
        .arg(0)
        .query::<()>(&mut client)
        .unwrap_err();
    assert!(error.to_string().contains("unknown command"), "{error}");
    let url = format!("redis://alice:a%7Bport%7Db@{}/0", server.addr());
    assert_eq!(connect(&url).ping::<String>().unwrap(), "PONG");
}

#[test]
fn a_password_is_taken_as_it_is() {
    if !own_server("redis-server") {
        return;
    }
    let server = presets::redis()
        .config("requirepass", "a \"{port}\\")
        .start()
        .unwrap();
    assert_eq!(server.password(), Some("a \"{port}\\"));
    assert_eq!(connect(&server.url()).ping::<String>().unwrap(), "PONG");
}

/// By default the cluster bus listens on the port plus 10000, which is no valid port here. The port
/// is above the ephemeral ports. It differs between runs, because old connections may linger on a
/// port.
#[test]
fn a_member_of_a_cluster_starts_at_any_port() {
    if !own_server("redis-server") {
        return;
    }
    let port = 61_000 + (process::id() % 4_500) as u16;
    let server = presets::redis()
        .port(port)
        .config("cluster-enabled", "yes")
        .start()
        .unwrap();
    let mut client = connect(&server.url());
    let slots = redis::cmd("CLUSTER")
        .arg("ADDSLOTSRANGE")
        .arg(0)
        .arg(16383)
        .query::<String>(&mut client);
    assert_eq!(slots.unwrap(), "OK");
    let error = server.try_database().unwrap_err().to_string();
    assert!(error.contains("only database 0"), "{error}");
}

#[test]
fn a_paused_server_does_not_hold_up_the_end_of_a_test() {
    if !own_server("redis-server") {
        return;
    }
    let mut server = presets::redis().start().unwrap();
    let database = server.database();
    server.pause().unwrap();
    let begun = Instant::now();
    drop(database);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    server.resume().unwrap();
}
