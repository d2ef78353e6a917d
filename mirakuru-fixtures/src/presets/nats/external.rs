//! A NATS server at `MIRAKURU_NATS_URL`. Names of streams and buckets that tests create begin with
//! the run's `Owner`.

use std::io::{self, Read};

use super::{stream_names, until};
use crate::presets::connection::{ANSWER_WITHIN, Connection};
use crate::presets::external::{External, Protocol, owners_of};
use crate::presets::server::unique_name;

pub(super) const PROTOCOL: Protocol = Protocol {
    schemes: &["nats"],
    port: 4222,
    check: |external| connect(external).map(drop),
    owners,
    renew: Protocol::NO_RENEWAL,
    remove,
};

/// Prefixes of the streams behind key-value buckets and object stores.
const BUCKETS: [&str; 2] = ["KV_", "OBJ_"];
/// Maximum number of streams in one JetStream response.
const PAGE: usize = 1024;

/// A logged-in connection with its own subject for answers.
struct Client {
    connection: Connection,
    inbox: String,
    has_jetstream: bool,
}

fn json(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

fn connect(external: &External) -> io::Result<Client> {
    let mut connection = external.connect(ANSWER_WITHIN)?;
    let greeting = connection.line()?;
    if !greeting.starts_with("INFO ") {
        let problem = format!("it does not speak NATS: {greeting}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    if greeting.contains("\"tls_required\":true") {
        return Err(io::Error::other(
            "it requires TLS, which mirakuru's own connections do not support",
        ));
    }
    let login = match (&external.user, &external.password) {
        (Some(user), Some(password)) => format!(",\"user\":{},\"pass\":{}", json(user), json(password)),
        (Some(token), None) => format!(",\"auth_token\":{}", json(token)),
        (None, _) => String::new(),
    };
    let hello = format!("CONNECT {{\"verbose\":false,\"pedantic\":false{login}}}\r\nPING\r\n");
    connection.send(hello.as_bytes())?;
    until(&mut connection, "PONG")?;
    let inbox = format!("_INBOX.mirakuru.{}", unique_name().map_err(io::Error::other)?);
    connection.send(format!("SUB {inbox} 1\r\n").as_bytes())?;
    Ok(Client {
        connection,
        inbox,
        has_jetstream: greeting.contains("\"jetstream\":true"),
    })
}

impl Client {
    fn request(&mut self, subject: &str, question: &str) -> io::Result<String> {
        let (inbox, length) = (&self.inbox, question.len());
        let text = format!("PUB $JS.API.{subject} {inbox} {length}\r\n{question}\r\n");
        self.connection.send(text.as_bytes())?;
        // The format is `MSG <subject> <subscription> <bytes>`.
        let head = until(&mut self.connection, "MSG")?;
        let length = head.rsplit(' ').next().and_then(|length| length.parse().ok());
        let length: usize = length.ok_or(io::ErrorKind::InvalidData)?;
        let mut text = vec![0; length + "\r\n".len()];
        self.connection.0.read_exact(&mut text)?;
        text.truncate(length);
        String::from_utf8(text).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// The names of all streams in the account of the URL's user.
    fn streams(&mut self) -> io::Result<Vec<String>> {
        let mut all = Vec::new();
        while self.has_jetstream {
            let answer = self.request("STREAM.NAMES", &format!("{{\"offset\":{}}}", all.len()))?;
            if answer.contains("not enabled") {
                break;
            }
            let names = stream_names(&answer)?;
            let is_last = names.len() < PAGE;
            all.extend(names);
            if is_last {
                break;
            }
        }
        Ok(all)
    }
}

/// The stream's name, without the prefix that marks a bucket.
fn own_name(stream: &str) -> &str {
    let bucket = BUCKETS.iter().find_map(|begin| stream.strip_prefix(begin));
    bucket.unwrap_or(stream)
}

fn owners(external: &External) -> io::Result<Vec<String>> {
    let mut streams = connect(external)?.streams()?;
    for stream in &mut streams {
        *stream = own_name(stream).to_owned();
    }
    Ok(owners_of(&streams))
}

fn remove(external: &External, owner: &str) -> io::Result<()> {
    let begin = format!("{owner}_");
    let mut client = connect(external)?;
    for stream in client
        .streams()?
        .iter()
        .filter(|stream| own_name(stream).starts_with(&begin))
    {
        let answer = client.request(&format!("STREAM.DELETE.{stream}"), "")?;
        // Another process may have removed the stream in the meantime.
        if !answer.contains("\"success\":true") && !answer.contains("not found") {
            return Err(io::Error::other(format!("stream {stream}: {answer}")));
        }
    }
    Ok(())
}

/// Fails if the server has no JetStream.
pub(super) fn check_jetstream(external: &External) -> io::Result<()> {
    match connect(external)?.has_jetstream {
        true => Ok(()),
        false => Err(io::Error::other(
            "the recipe says `jetstream(true)`, but the server has no JetStream",
        )),
    }
}
