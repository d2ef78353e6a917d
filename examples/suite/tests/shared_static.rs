//! One Redis for all tests of this package, with a database for each test.
//!
//! `REDIS` is in a crate of its own, so that every test file can use it. Under `cargo test` and
//! `cargo nextest run` alike, it is started once.

use fixtures::REDIS;

#[test]
fn a_database_of_its_own() {
    let database = REDIS.database(); // Empty, and emptied again when it is dropped.
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
    // A setting that belongs to no database affects every test. So a test that changes one has a
    // Redis of its own.
    let (one, other) = (REDIS.database(), REDIS.database());
    assert_ne!(one.number(), other.number());
    println!("Redis for the shop: pid {}", REDIS.pid());
}
