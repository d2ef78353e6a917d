//! Recognises a server by its answers, if it is of another kind than its URL says.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Time that a server may take to answer one of the questions here.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// Number of bytes that are shown of an unknown answer.
const SHOWN: usize = 40;

/// Most servers answer this in their own way, or have already sent a greeting.
const HTTP: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
/// memcached takes an HTTP request for an attack.
const MEMCACHED: &[u8] = b"version\r\n";
/// The question to PostgreSQL whether it has TLS.
const TLS_REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];
/// A login with MQTT 3.1.1, without a user.
const MQTT: &[u8] = b"\x10\x0c\0\x04MQTT\x04\x02\0\x3c\0\0";

/// A kind of server.
#[derive(Debug, PartialEq)]
pub(super) enum Kind {
    /// Name of the server for people, and the presets that use such a server.
    Known(&'static str, &'static [&'static str]),
    /// The beginning of the answer.
    Unknown(String),
}

impl Kind {
    pub(super) fn is_known(&self) -> bool {
        matches!(self, Kind::Known(..))
    }

    /// Whether the preset with this name uses such a server.
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

/// The beginning of the answer, which may be empty.
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
        // The first packet: three bytes of length, number 0, a greeting (10) or an error (0xff).
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
