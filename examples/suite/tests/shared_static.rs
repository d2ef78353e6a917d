//! One Redis for all tests of this package, with a database for each test.
//!
//! `REDIS` is in a crate of its own, so that every test file can use it. It is started once, under
//! `cargo test` as well as under `cargo nextest run`.

use fixtures::REDIS;

#[test]
fn a_database_of_its_own() {
    let database = REDIS.database(); // Empty at first, and flushed when it is dropped.
    assert_eq!(shop::count_visit(REDIS.addr(), database.number()).unwrap(), 1);
}

#[test]
fn another_one_at_the_same_time() {
    let database = REDIS.database();
    for visit in 1..=5 {
        let counted = shop::count_visit(REDIS.addr(), database.number()).unwrap();
        assert_eq!(counted, visit);
    }
    println!("Redis for the shop: pid {}", REDIS.pid());
}

#[test]
fn nobody_is_disturbed() {
    // Both tests use the same server. A test that changes a server-wide setting needs its own
    // Redis.
    let (one, other) = (REDIS.database(), REDIS.database());
    assert_ne!(one.number(), other.number());
    println!("Redis for the shop: pid {}", REDIS.pid());
}
