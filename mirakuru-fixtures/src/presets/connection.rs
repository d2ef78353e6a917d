//! Connects to servers, with a time limit for each read and write.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Time limit for a server's answer to one request.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Time limit for clean-up, such as dropping a database. A paused or overloaded server must not
/// delay the end of a test. Anything left behind is removed with the server.
pub(super) const TIDY_WITHIN: Duration = Duration::from_secs(1);

/// A TCP connection to a server, with a time limit for each read and write.
pub(super) struct Connection(pub(crate) BufReader<TcpStream>);

impl Connection {
    pub(crate) fn open(addr: SocketAddr, within: Duration) -> io::Result<Connection> {
        let within = within.clamp(Duration::from_millis(10), ANSWER_WITHIN);
        let stream = TcpStream::connect_timeout(&addr, within)?;
        stream.set_read_timeout(Some(within))?;
        stream.set_write_timeout(Some(within))?;
        stream.set_nodelay(true)?;
        Ok(Connection(BufReader::new(stream)))
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    /// Reads the next line, and strips the line break.
    pub(crate) fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server closed the connection without an answer",
            ));
        }
        line.truncate(line.trim_end_matches(['\r', '\n']).len());
        Ok(line)
    }
}

/// Reads up to `most` bytes. The buffer grows only as data arrives.
pub(super) fn read(from: &mut impl Read, most: usize) -> io::Result<Vec<u8>> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 8192]);
    while bytes.len() < most {
        let room = buffer.len().min(most - bytes.len());
        match from.read(&mut buffer[..room]) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(bytes)
}

/// Reads exactly `count` bytes.
pub(super) fn read_exactly(from: &mut impl Read, count: usize) -> io::Result<Vec<u8>> {
    let bytes = read(from, count)?;
    match bytes.len() == count {
        true => Ok(bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A connection to a server: over a Unix socket if mirakuru started the server, otherwise over TCP.
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Sets the time limit for each read and write.
    pub(crate) fn within(&self, limit: Duration) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => {
                stream.set_read_timeout(Some(limit))?;
                stream.set_write_timeout(Some(limit))
            }
            Stream::Tcp(stream) => {
                stream.set_read_timeout(Some(limit))?;
                stream.set_write_timeout(Some(limit))
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(buffer),
            Stream::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write(buffer),
            Stream::Tcp(stream) => stream.write(buffer),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reports a failed clean-up, unless the server is gone and nothing is left to remove.
pub(super) fn tidied(attempt: &str, result: io::Result<()>) {
    use io::ErrorKind::{
        BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, TimedOut, UnexpectedEof, WouldBlock,
    };
    let Err(error) = result else { return };
    match error.kind() {
        BrokenPipe | ConnectionRefused | ConnectionReset | NotFound | UnexpectedEof => {}
        TimedOut | WouldBlock => eprintln!(
            "mirakuru: could not {attempt} within {} s; it is removed at the end of the run",
            TIDY_WITHIN.as_secs()
        ),
        _ => eprintln!("mirakuru: could not {attempt}: {error}; it is removed at the end of the run"),
    }
}
