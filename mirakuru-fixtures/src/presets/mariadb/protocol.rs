//! Implements enough of the MySQL protocol, which MariaDB also speaks, to run statements.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::OURS;
use crate::presets::connection::{Connection, Stream, read_exactly};
use crate::presets::digest::{Sha256, sha1, xor};
use crate::presets::external::External;

/// Values of a packet's first byte.
const OK: u8 = 0;
const MORE: u8 = 1;
const END: u8 = 0xfe;
const ERROR: u8 = 0xff;

/// Error numbers for missing rights: on a database, on the whole server, and on a table.
const DENIED: [u16; 3] = [1044, 1227, 1142];

/// A server, and the user of mirakuru's connections.
#[derive(Clone, Debug)]
pub(super) enum Address {
    /// The Unix socket of a server that mirakuru started. The user needs no password there.
    Socket(PathBuf),
    External(Box<External>),
}

/// A connection to a server.
pub(super) struct Client {
    stream: Stream,
    /// Sequence number of the next packet.
    next: u8,
    /// The version in the server's greeting.
    pub(crate) version: String,
}

impl Client {
    /// Connects and logs in. `within` limits the wait for each answer.
    pub(crate) fn connect(address: &Address, within: Duration) -> io::Result<Client> {
        // `CLIENT_PROTOCOL_41`, `CLIENT_SECURE_CONNECTION` and `CLIENT_PLUGIN_AUTH`.
        const CAPABILITIES: u32 = 0x0200 | 0x8000 | 0x0008_0000;
        const UTF8MB4: u8 = 45;
        let (stream, user, password) = match address {
            Address::Socket(path) => (Stream::Unix(UnixStream::connect(path)?), OURS, ""),
            Address::External(external) => (
                external.stream(within)?,
                external.user.as_deref().unwrap_or("root"),
                external.password.as_deref().unwrap_or_default(),
            ),
        };
        stream.within(within)?;
        let mut client = Client {
            stream,
            next: 0,
            version: String::new(),
        };
        let greeting = client.read()?;
        if greeting.first() == Some(&ERROR) {
            return Err(report(&greeting));
        }
        // The greeting's fields: protocol, version, thread, 8 bytes of salt, 19 other bytes, 12
        // more bytes of salt, plugin.
        let end = greeting.iter().position(|byte| *byte == 0).unwrap_or(0);
        client.version = String::from_utf8_lossy(greeting.get(1..end).unwrap_or_default()).into_owned();
        let rest = greeting.get(end + 1..).unwrap_or_default();
        let mut salt = rest.get(4..12).unwrap_or_default().to_vec();
        salt.extend_from_slice(rest.get(31..43).unwrap_or_default());
        let plugin = text(rest.get(44..).unwrap_or_default());
        let first = proof(&plugin, password, &salt).unwrap_or_default();
        let mut response = CAPABILITIES.to_le_bytes().to_vec();
        response.extend_from_slice(&(16_u32 << 20).to_le_bytes());
        response.push(UTF8MB4);
        response.extend_from_slice(&[0; 23]);
        response.extend_from_slice(user.as_bytes());
        response.push(0);
        response.push(first.len() as u8);
        response.extend_from_slice(&first);
        response.extend_from_slice(plugin.as_bytes());
        response.push(0);
        client.write(&response)?;
        loop {
            let answer = client.read()?;
            match *answer {
                [OK, ..] => return Ok(client),
                // The server asks for a login with another plugin.
                [END, ref rest @ ..] => {
                    let plugin = text(rest);
                    let salt = rest.get(plugin.len() + 1..).unwrap_or_default();
                    let salt = salt.strip_suffix(&[0]).unwrap_or(salt);
                    let problem = || {
                        io::Error::other(format!(
                            "its user logs in with `{plugin}`, which the preset does not support; give it a \
                             password for `mysql_native_password`"
                        ))
                    };
                    let proof = proof(&plugin, password, salt).ok_or_else(problem)?;
                    client.write(&proof)?;
                }
                // The server has the proof in its cache, and sends an `OK` packet next.
                [MORE, 3, ..] => {}
                [MORE, ..] => {
                    return Err(io::Error::other(
                        "its user logs in with `caching_sha2_password`, which needs TLS; give it a password \
                         for `mysql_native_password`",
                    ));
                }
                _ => return Err(report(&answer)),
            }
        }
    }

    /// Runs a statement. Returns the first value of each row.
    pub(crate) fn query(&mut self, sql: &str) -> io::Result<Vec<String>> {
        const QUERY: u8 = 3;
        self.next = 0;
        self.write(&[&[QUERY], sql.as_bytes()].concat())?;
        let mut rows = Vec::new();
        let answer = self.read()?;
        match answer.first() {
            Some(&OK) => return Ok(rows),
            Some(&ERROR) => return Err(report(&answer)),
            _ => {}
        }
        // The answer: column descriptions, an end packet, the rows, and another end packet.
        let mut ends = 0;
        while ends < 2 {
            let packet = self.read()?;
            match packet.first() {
                Some(&ERROR) => return Err(report(&packet)),
                Some(&END) if packet.len() < 9 => ends += 1,
                // A short string is sent as a length byte, followed by the string.
                Some(length) if ends == 1 => {
                    let value = packet.get(1..1 + usize::from(*length)).unwrap_or_default();
                    rows.push(String::from_utf8_lossy(value).into_owned());
                }
                _ => {}
            }
        }
        Ok(rows)
    }

    fn write(&mut self, payload: &[u8]) -> io::Result<()> {
        // A packet's header consists of three bytes of length and the sequence number.
        let mut packet = (payload.len() as u32).to_le_bytes().to_vec();
        packet[3] = self.next;
        packet.extend_from_slice(payload);
        self.next = self.next.wrapping_add(1);
        self.stream.write_all(&packet)
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        let (number, packet) = read_packet(&mut self.stream)?;
        self.next = number.wrapping_add(1);
        Ok(packet)
    }
}

/// Decodes a string, up to its terminating zero byte.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The proof of the password for an authentication plugin. `None` if the plugin is not supported.
fn proof(plugin: &str, password: &str, salt: &[u8]) -> Option<Vec<u8>> {
    match plugin {
        _ if password.is_empty() => Some(Vec::new()),
        "mysql_native_password" => {
            let once = sha1(password.as_bytes());
            Some(xor(once, sha1(&[salt, &sha1(&once)].concat())).to_vec())
        }
        "caching_sha2_password" => {
            let sha256 = Sha256::new();
            let once = sha256.of(password.as_bytes());
            let twice = sha256.of(&once);
            Some(xor(once, sha256.of(&[&twice, salt].concat())).to_vec())
        }
        _ => None,
    }
}

fn read_packet(stream: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let length = u32::from_le_bytes([head[0], head[1], head[2], 0]);
    Ok((head[3], read_exactly(stream, length as usize)?))
}

/// Decodes an error packet: a number, an optional SQLSTATE (`#` and five characters), and a
/// message.
fn report(packet: &[u8]) -> io::Error {
    let text = packet.get(3..).unwrap_or_default();
    let text = text
        .strip_prefix(b"#")
        .map_or(text, |rest| &rest[5.min(rest.len())..]);
    let kind = match packet.get(1..3) {
        Some(code) if DENIED.contains(&u16::from_le_bytes([code[0], code[1]])) => {
            io::ErrorKind::PermissionDenied
        }
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, String::from_utf8_lossy(text))
}

/// Whether the server's first packet is its greeting. The server sends the greeting only after it
/// has run the init file.
pub(super) fn is_greeted(mut connection: Connection) -> io::Result<bool> {
    const PROTOCOL: u8 = 10;
    let (_, packet) = read_packet(&mut connection.0)?;
    match packet.first() {
        Some(&PROTOCOL) => Ok(true),
        Some(&ERROR) => Err(report(&packet)),
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_packet_is_its_text() {
        assert_eq!(
            report(b"\xff\x28\x04#42000Access denied").to_string(),
            "Access denied"
        );
        assert_eq!(
            report(b"\xff\x10\x04Too many connections").to_string(),
            "Too many connections"
        );
        assert_eq!(report(b"\xff").to_string(), "");
    }
}
