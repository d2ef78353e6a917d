//! A broker at `MIRAKURU_MOSQUITTO_URL`. Topics of tests begin with `mirakuru/OWNER_`, where
//! `OWNER` is the run's `Owner`.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use crate::presets::connection::{ANSWER_WITHIN, Connection};
use crate::presets::external::{External, Protocol, owners_of};

pub(super) const PROTOCOL: Protocol = Protocol {
    schemes: &["mqtt", "tcp"],
    port: 1883,
    check: |external| retained(external).map(drop),
    owners: |external| {
        let mut topics = retained(external)?;
        for topic in &mut topics {
            *topic = topic.strip_prefix(BEGIN).unwrap_or_default().to_owned();
        }
        Ok(owners_of(&topics))
    },
    renew: Protocol::NO_RENEWAL,
    remove,
};

/// The first level of the tests' topics.
pub(super) const BEGIN: &str = "mirakuru/";

const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const RETAINED: u8 = 0x01;
const PUBLISH_AT_LEAST_ONCE: u8 = 0x32;
const PUBACK: u8 = 0x40;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;
const PINGREQ: u8 = 0xc0;
const PINGRESP: u8 = 0xd0;
const DISCONNECT: u8 = 0xe0;

fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes(), text.as_bytes()].concat()
}

fn send(connection: &mut Connection, kind: u8, body: &[u8]) -> io::Result<()> {
    let mut packet = vec![kind];
    let mut rest = body.len();
    loop {
        let digit = (rest % 128) as u8;
        rest /= 128;
        packet.push(if rest > 0 { digit | 0x80 } else { digit });
        if rest == 0 {
            break;
        }
    }
    packet.extend(body);
    connection.send(&packet)
}

fn receive(connection: &mut Connection) -> io::Result<(u8, Vec<u8>)> {
    let mut byte = [0];
    connection.0.read_exact(&mut byte)?;
    let kind = byte[0];
    let (mut length, mut factor) = (0, 1);
    loop {
        connection.0.read_exact(&mut byte)?;
        length += usize::from(byte[0] & 0x7f) * factor;
        factor *= 128;
        if byte[0] & 0x80 == 0 {
            break;
        }
        if factor > 128 * 128 * 128 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let mut body = vec![0; length];
    connection.0.read_exact(&mut body)?;
    Ok((kind, body))
}

/// Connects with MQTT 3.1.1, logs in, and starts a new session.
fn connect(external: &External) -> io::Result<Connection> {
    let mut connection = external.connect(ANSWER_WITHIN)?;
    let mut flags = 0x02;
    let mut login = text("");
    for (flag, part) in [(0x80, &external.user), (0x40, &external.password)] {
        if let Some(part) = part {
            flags |= flag;
            login.extend(text(part));
        }
    }
    let body = [&text("MQTT")[..], &[4, flags, 0, 60], &login].concat();
    send(&mut connection, CONNECT, &body)?;
    match receive(&mut connection)? {
        (CONNACK, answer) if answer.get(1) == Some(&0) => Ok(connection),
        (CONNACK, answer) => {
            let reason = match answer.get(1) {
                Some(4) => "it refuses the user or the password of the URL",
                Some(5) => "it refuses the user of the URL as not authorized",
                Some(3) => return Err(io::ErrorKind::ResourceBusy.into()),
                _ => "it refuses MQTT 3.1.1",
            };
            Err(io::Error::other(reason))
        }
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it does not speak MQTT",
        )),
    }
}

/// Finds the topics of all retained messages below `mirakuru/`.
fn retained(external: &External) -> io::Result<Vec<String>> {
    let mut connection = connect(external)?;
    let filter = [&[0, 1], &text(&format!("{BEGIN}#"))[..], &[0]].concat();
    send(&mut connection, SUBSCRIBE, &filter)?;
    // The broker sends the retained messages before it answers the ping.
    send(&mut connection, PINGREQ, &[])?;
    let mut topics = Vec::new();
    loop {
        match receive(&mut connection)? {
            (PINGRESP, _) => break,
            (SUBACK, answer) if answer.get(2) == Some(&0x80) => {
                let reason = format!("it refuses a subscription to `{BEGIN}#`");
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
            }
            (kind, body) if kind & 0xf0 == PUBLISH && kind & RETAINED != 0 => {
                let length = body
                    .first_chunk()
                    .map_or(0, |length| usize::from(u16::from_be_bytes(*length)));
                let topic = body.get(2..2 + length).unwrap_or_default();
                topics.push(String::from_utf8_lossy(topic).into_owned());
            }
            _ => {}
        }
    }
    let _ = send(&mut connection, DISCONNECT, &[]);
    Ok(topics)
}

fn remove(external: &External, owner: &str) -> io::Result<()> {
    let begin = format!("{BEGIN}{owner}_");
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let mut ours = retained(external)?;
        ours.retain(|topic| topic.starts_with(&begin));
        // A broker limits how many retained messages it sends at once, so repeat until none is
        // left.
        if ours.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(io::Error::other(format!("messages stay below `{begin}`")));
        }
        let mut connection = connect(external)?;
        for topic in ours {
            // An empty message removes a retained message.
            let body = [&text(&topic)[..], &[0, 1]].concat();
            send(&mut connection, PUBLISH_AT_LEAST_ONCE | RETAINED, &body)?;
            while receive(&mut connection)?.0 != PUBACK {}
        }
        let _ = send(&mut connection, DISCONNECT, &[]);
    }
}
