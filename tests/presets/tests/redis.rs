//! `presets::redis()`, spoken to by the crate `redis`.

use mirakuru::presets::{self, Redis};
use redis::Commands;

#[mirakuru::fixture(presets::redis())]
static REDIS: Redis;

fn connect(url: &str) -> redis::Connection {
    redis::Client::open(url).unwrap().get_connection().unwrap()
}

fn counts_to_three() {
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

#[mirakuru::fixture(presets::redis().config("maxmemory", "16mb").config("requirepass", "p@ss"))]
#[test]
fn it_is_configured(server: &Redis) {
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

#[mirakuru::fixture(presets::redis())]
#[test]
fn databases_are_leased_emptied_and_given_back(server: &Redis) {
    let first = server.database();
    let number = first.number();
    connect(&first.url()).set::<_, _, ()>("x", 1).unwrap();
    let second = server.database();
    assert_ne!(second.number(), number);
    drop(first);
    let again = server.database();
    assert_eq!(again.number(), number);
    assert!(!connect(&again.url()).exists::<_, bool>("x").unwrap());
    let socket = format!("unix://{}", server.socket().display());
    assert_eq!(connect(&socket).ping::<String>().unwrap(), "PONG");
}

#[mirakuru::fixture(presets::redis().config("databases", "3"))]
#[test]
fn when_all_are_leased_it_says_so(server: &Redis) {
    let _two = [server.database(), server.database()];
    let error = server.try_database().unwrap_err().to_string();
    assert!(error.contains("all 2 are leased"), "{error}");
}
