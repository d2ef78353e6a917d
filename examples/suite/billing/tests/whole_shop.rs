//! The program under test belongs to another package. With `bin`, cargo builds it once for all
//! tests.

use std::io::{Read, Write};
use std::net::TcpStream;

use mirakuru::HttpExecutor;

#[mirakuru::fixture(bin = "shop", args = ["127.0.0.1:{port}"], http = "http://127.0.0.1:{port}/health")]
static SHOP: HttpExecutor;

#[test]
fn billing_finds_the_shop_open() {
    let mut stream = TcpStream::connect(SHOP.addr()).unwrap();
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1."), "{answer}");
}
