//! Two hundred tests that share one Redis. `tests/runners.rs` appends the tests to this file.

use std::env;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use mirakuru::TcpExecutor;

#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port} --save ''")]
static REDIS: TcpExecutor;

/// Redis counts the visits itself. A second Redis would begin at one again.
fn visit() {
    let mut stream = TcpStream::connect(REDIS.addr()).unwrap();
    stream.write_all(b"INCR visits\r\n").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    let starts = REDIS.logs().to_string().matches("Redis is starting").count();
    assert_eq!(starts, 1, "{}", REDIS.logs());

    let noted = format!("{} {}\n", REDIS.pid(), answer.trim().trim_start_matches(':'));
    let path = format!("{}/noted", env::var("RUNNERS_DIR").unwrap());
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(noted.as_bytes()).unwrap();
}

