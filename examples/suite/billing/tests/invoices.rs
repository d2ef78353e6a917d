//! This package uses the same fixture as the other one. Nextest runs each of these tests in its own
//! process, but Redis is started only once.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use fixtures::REDIS;

/// Increments Redis's counter, and returns the next number.
fn next_invoice(database: u32) -> String {
    let mut stream = TcpStream::connect(REDIS.addr()).unwrap();
    write!(stream, "SELECT {database}\r\nINCR invoice\r\n").unwrap();
    let answers = BufReader::new(stream).lines();
    answers.skip(1).next().unwrap().unwrap()
}

#[test]
fn the_first_invoice() {
    println!("Redis for billing: pid {}", REDIS.pid());
    assert_eq!(next_invoice(REDIS.database().number()), ":1");
}

#[test]
fn the_second_invoice() {
    println!("Redis for billing: pid {}", REDIS.pid());
    let database = REDIS.database();
    next_invoice(database.number());
    assert_eq!(next_invoice(database.number()), ":2");
}
