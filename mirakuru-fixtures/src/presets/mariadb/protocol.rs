//! The protocol of MariaDB and MySQL, as far as it takes to run a statement at the Unix socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::OURS;
use crate::presets::connection::Connection;

/// The first byte of a packet.
const OK: u8 = 0;
const END: u8 = 0xfe;
const ERROR: u8 = 0xff;

/// A connection of ours, which needs no password.
pub(super) struct Client {
    stream: UnixStream,
    /// The number of the next packet.
    next: u8,
}

impl Client {
    /// A connection on which no answer takes longer than this.
    pub(crate) fn connect(socket: &Path, within: Duration) -> io::Result<Client> {
        // Version 4.1 of the protocol, authentication by a plugin.
        const CAPABILITIES: u32 = 0x0200 | 0x8000 | 0x0008_0000;
        const UTF8MB4: u8 = 45;
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(within))?;
        stream.set_write_timeout(Some(within))?;
        let mut client = Client { stream, next: 0 };
        let greeting = client.read()?;
        if greeting.first() == Some(&ERROR) {
            return Err(report(&greeting));
        }
        let mut response = CAPABILITIES.to_le_bytes().to_vec();
        response.extend_from_slice(&(16_u32 << 20).to_le_bytes());
        response.push(UTF8MB4);
        response.extend_from_slice(&[0; 23]);
        response.extend_from_slice(OURS.as_bytes());
        // The end of the name, and a password of no bytes.
        response.extend_from_slice(&[0, 0]);
        response.extend_from_slice(b"mysql_native_password\0");
        client.write(&response)?;
        loop {
            let answer = client.read()?;
            match answer.first() {
                Some(&OK) => return Ok(client),
                // It asks for another plugin's proof. That of an empty password is empty for each.
                Some(&END) => client.write(&[])?,
                _ => return Err(report(&answer)),
            }
        }
    }

    /// Runs a statement. Gives the first value of each row.
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
        // The descriptions of the columns, an end, the rows, an end.
        let mut ends = 0;
        while ends < 2 {
            let packet = self.read()?;
            match packet.first() {
                Some(&ERROR) => return Err(report(&packet)),
                Some(&END) if packet.len() < 9 => ends += 1,
                // A short text: its length, its bytes.
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
        // Three bytes of length, and the number.
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

fn read_packet(stream: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let length = u64::from(u32::from_le_bytes([head[0], head[1], head[2], 0]));
    let mut packet = Vec::new();
    if stream.take(length).read_to_end(&mut packet)? as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((head[3], packet))
}

/// The text of an error packet: a number, perhaps `#` and a state of five letters, a text.
fn report(packet: &[u8]) -> io::Error {
    let text = packet.get(3..).unwrap_or_default();
    let text = text
        .strip_prefix(b"#")
        .map_or(text, |rest| &rest[5.min(rest.len())..]);
    io::Error::other(String::from_utf8_lossy(text).into_owned())
}

/// Whether the first packet of the server is its greeting. It sends none before it has read the
/// init file.
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
