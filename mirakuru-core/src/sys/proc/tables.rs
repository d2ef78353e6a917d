//! Reads the tables of sockets below `/proc/net`, for the calling thread's network namespace.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::read;
use crate::sys::net::{Protocol, Socket};

/// Returns the TCP listeners or the bound UDP sockets on a port, or on every port if `port` is 0.
/// Reads `/proc/net/tcp` and `tcp6`, or `udp` and `udp6`. `None` if there are none. Takes
/// milliseconds, because the kernel walks its whole table.
pub(crate) fn listeners(protocol: Protocol, port: u16) -> Option<Vec<Socket>> {
    let table = |name: &str| {
        let bytes = read(&format!("thread-self/net/{name}")).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    let (v4, v6, state) = match protocol {
        Protocol::Tcp => ("tcp", "tcp6", "0A"),
        Protocol::Udp => ("udp", "udp6", "07"),
    };
    let v4 = table(v4)?;
    let v6 = table(v6).unwrap_or_default();
    let is_wanted = |socket: &Socket| socket.listening && (port == 0 || socket.addr.port() == port);
    let mut found = Vec::new();
    for line in v4.lines().chain(v6.lines()) {
        if let Some(socket) = parse_line(line, state).filter(is_wanted) {
            found.push(socket);
        }
    }
    // Empty tables prove nothing, because in some sandboxes they are always empty.
    (!found.is_empty()).then_some(found)
}

/// Lists the connections that the owner of a local port has closed but that still linger. Returns
/// the local and the remote address of each connection. Takes milliseconds.
pub(crate) fn tcp_lingering(port: u16) -> Vec<(SocketAddr, SocketAddr)> {
    /// FIN_WAIT1, FIN_WAIT2, TIME_WAIT, LAST_ACK, CLOSING.
    const CLOSED: [&str; 5] = ["04", "05", "06", "09", "0B"];
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let local = parse_address(fields.get(1)?)?;
        let lingers = CLOSED.contains(fields.get(3)?) && local.port() == port;
        let canonical = |addr: SocketAddr| SocketAddr::new(addr.ip().to_canonical(), addr.port());
        Some((canonical(local), canonical(parse_address(fields.get(2)?)?))).filter(|_| lingers)
    };
    let mut found = Vec::new();
    for table in ["thread-self/net/tcp", "thread-self/net/tcp6"] {
        let table = read(table).unwrap_or_default();
        for line in String::from_utf8_lossy(&table).lines() {
            if let Some(lingering) = parse(line) {
                found.push(lingering);
            }
        }
    }
    found
}

/// One line of `/proc/net/tcp`: number, local address, remote address, state, queues, timer,
/// retransmissions, user, timeout, inode.
fn parse_line(line: &str, listening: &str) -> Option<Socket> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    Some(Socket {
        addr: parse_address(fields.get(1)?)?,
        v6_only: None,
        listening: *fields.get(3)? == listening,
        uid: fields.get(7)?.parse().ok()?,
        inode: fields.get(9)?.parse().ok()?,
    })
}

fn parse_address(field: &str) -> Option<SocketAddr> {
    let (ip, port) = field.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Each word is four bytes in network order, printed as a number in this machine's byte order.
    let mut bytes = Vec::new();
    for at in (0..ip.len()).step_by(8) {
        let word = u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The inodes of the listening Unix sockets that are bound to exactly this path (abstract:
/// `@name`).
pub(crate) fn unix_listeners(path: &Path) -> Vec<u64> {
    use std::os::unix::ffi::OsStrExt;
    let Ok(table) = read("thread-self/net/unix") else {
        return Vec::new();
    };
    parse_unix(&table, Some(path.as_os_str().as_bytes()))
}

/// The inodes of all listening Unix sockets.
pub(crate) fn unix_listening() -> Vec<u64> {
    read("thread-self/net/unix").map_or_else(|_| Vec::new(), |table| parse_unix(&table, None))
}

fn parse_unix(table: &[u8], wanted: Option<&[u8]>) -> Vec<u64> {
    const ACCEPTS: u32 = 0x10000;
    // The columns: Num RefCount Protocol Flags Type St Inode Path. The inode is padded with spaces,
    // and the path may contain spaces.
    let inode_of = |line: &[u8]| {
        let mut rest = line;
        let mut fields = [""; 7];
        for field in &mut fields {
            rest = rest.trim_ascii_start();
            let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
            *field = std::str::from_utf8(&rest[..end]).ok()?;
            rest = &rest[end..];
        }
        let accepts = u32::from_str_radix(fields[3], 16).ok()? & ACCEPTS != 0;
        let inode = fields[6].parse().ok()?;
        let is_wanted = wanted.is_none_or(|wanted| rest.strip_prefix(b" ") == Some(wanted));
        (accepts && is_wanted).then_some(inode)
    };
    let mut found = Vec::new();
    for line in table.split(|byte| *byte == b'\n') {
        if let Some(inode) = inode_of(line) {
            found.push(inode);
        }
    }
    found
}

#[cfg(all(test, target_os = "linux", not(mirakuru_portable)))]
mod tests {
    use super::*;

    #[test]
    fn unix_table_is_matched_by_the_whole_path() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01    11 /tmp/a b.sock\n\
            0000000000000000: 00000002 00000000 00010000 0001 01    12 /tmp/x /tmp/a b.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03    13 /tmp/a b.sock\n\
            0000000000000000: 00000002 00000000 00010000 0001 01    14 @name\n\
            0000000000000000: 00000002 00000000 00010000 0001 01    15\n";
        assert_eq!(parse_unix(table, Some(b"/tmp/a b.sock")), [11]);
        assert_eq!(parse_unix(table, Some(b"b.sock")), []);
        assert_eq!(parse_unix(table, Some(b"@name")), [14]);
        assert_eq!(parse_unix(table, None), [11, 12, 14, 15]);
    }
}
