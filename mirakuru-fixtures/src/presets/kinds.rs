//! Recognises a server by its answers, to report a URL that leads to the wrong kind of server.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Time limit for each connection attempt and each answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// Length of the excerpt from an unknown answer, in bytes.
const SHOWN: usize = 40;

/// Most servers answer an HTTP request in a recognisable way, or send a greeting before they read
/// it.
const HTTP: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
/// memcached answers this command, but closes the connection when it gets an HTTP request.
const MEMCACHED: &[u8] = b"version\r\n";
/// PostgreSQL's `SSLRequest`, which asks whether the server supports TLS.
const TLS_REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];
/// An MQTT 3.1.1 `CONNECT` packet without a user.
const MQTT: &[u8] = b"\x10\x0c\0\x04MQTT\x04\x02\0\x3c\0\0";

#[derive(Debug, PartialEq)]
pub(super) enum Kind {
    /// The server's name for messages, and the names of the presets that use this kind of server.
    Known(&'static str, &'static [&'static str]),
    /// The beginning of an unrecognised answer.
    Unknown(String),
}

impl Kind {
    pub(super) fn is_known(&self) -> bool {
        matches!(self, Kind::Known(..))
    }

    /// Whether the preset with this name uses this kind of server.
    pub(super) fn is(&self, preset: &str) -> bool {
        matches!(self, Kind::Known(_, presets) if presets.contains(&preset))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Known(name, _) => write!(f, "it answers like {name}"),
            Kind::Unknown(text) => write!(f, "it answers `{text}`"),
        }
    }
}

/// The kind of the server at this address. `None` if it does not answer.
pub(super) fn of(addr: SocketAddr) -> Option<Kind> {
    [HTTP, MEMCACHED, TLS_REQUEST, MQTT]
        .into_iter()
        .find_map(|question| of_answer(question, &answer(addr, question)?))
}

/// Sends the question. Returns the beginning of the answer, which may be empty.
fn answer(addr: SocketAddr, question: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&addr, ANSWERS_WITHIN).ok()?;
    stream.set_read_timeout(Some(ANSWERS_WITHIN)).ok()?;
    stream.set_write_timeout(Some(ANSWERS_WITHIN)).ok()?;
    stream.write_all(question).ok()?;
    let mut buffer = [0; 256];
    let count = stream.read(&mut buffer).unwrap_or(0);
    Some(buffer[..count].to_vec())
}

fn of_answer(question: &[u8], answer: &[u8]) -> Option<Kind> {
    let kind = match answer {
        [] => return None,
        [b'H', b'T', b'T', b'P', b'/', ..] => Kind::Known("an HTTP server", &["etcd", "RabbitMQ"]),
        [b'-', b'E' | b'N' | b'D', ..] => Kind::Known("Redis", &["Redis"]),
        [b'I', b'N', b'F', b'O', b' ', ..] => Kind::Known("NATS", &["NATS"]),
        [b'V', b'E', b'R', b'S', b'I', b'O', b'N', b' ', ..] => Kind::Known("memcached", &["memcached"]),
        [b'A', b'M', b'Q', b'P', ..] => Kind::Known("RabbitMQ", &["RabbitMQ"]),
        // The server's first packet in MySQL's protocol: three bytes of length, sequence number 0,
        // and a greeting (10) or an error (0xff).
        [_, _, _, 0, 10 | 0xff, ..] => Kind::Known("MariaDB or MySQL", &["MariaDB"]),
        [b'N' | b'S' | b'E', ..] if question == TLS_REQUEST => Kind::Known("PostgreSQL", &["PostgreSQL"]),
        [0x20, 2, ..] if question == MQTT => Kind::Known("an MQTT broker", &["Mosquitto"]),
        _ if question != HTTP => return None,
        _ => {
            let text = String::from_utf8_lossy(&answer[..answer.len().min(SHOWN)]);
            let line = text.lines().next().unwrap_or_default();
            Kind::Unknown(line.chars().filter(|c| !c.is_control()).collect())
        }
    };
    Some(kind)
}
