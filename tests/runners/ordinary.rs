//! Tests that pass. Each has its own service, and all share another one.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::{env, thread};

use mirakuru::TcpExecutor;

#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "{env:RUNNERS_SERVICE} --listen 127.0.0.1:{port} --fork \
    1")]
static SHARED: TcpExecutor;

/// Asks the service for its process id.
fn who_answers(service: &TcpExecutor) -> u32 {
    let mut stream = TcpStream::connect(service.addr()).unwrap();
    stream.write_all(b"PING\n").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer.trim().strip_prefix("PONG ").unwrap().parse().unwrap()
}

fn use_both(own: &TcpExecutor) {
    assert_eq!(who_answers(own), own.pid());
    assert_eq!(who_answers(&SHARED), SHARED.pid());
    assert_ne!(own.pid(), SHARED.pid());
    println!("a test says something, and so may its service");
    let noted = format!("{} {:?}\n", SHARED.pid(), thread::current().id());
    let path = format!("{}/noted", env::var("RUNNERS_DIR").unwrap());
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(noted.as_bytes()).unwrap();
}

macro_rules! tests {
    ($($name:ident)*) => {$(
        #[mirakuru::fixture(
            tcp = "127.0.0.1:{port}",
            cmd = "{env:RUNNERS_SERVICE} --listen 127.0.0.1:{port} --line hello --line-err world --fork 1",
        )]
        #[test]
        fn $name(own: &TcpExecutor) {
            use_both(own);
        }
    )*};
}

tests! { one two three four five six seven eight }
