//! A shop that counts its visits in Redis.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long the shop waits for a reply from Redis.
pub const PATIENCE: Duration = Duration::from_millis(500);

/// Counts a visit in a database of the Redis server at this address.
pub fn count_visit(redis: SocketAddr, database: u32) -> io::Result<u64> {
    let mut stream = TcpStream::connect_timeout(&redis, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "SELECT {database}\r\nINCR visits\r\n")?;
    let mut answers = BufReader::new(stream).lines();
    let (_selected, count) = (answers.next(), answers.next());
    let count = count.ok_or(io::ErrorKind::UnexpectedEof)??;
    let number = count.strip_prefix(':').and_then(|count| count.parse().ok());
    number.ok_or_else(|| io::Error::other(count))
}

/// Sends a request to an HTTP server, and returns the status and the body of the response.
pub fn get(server: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(server)?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, body.to_owned()))
}
