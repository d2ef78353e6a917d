//! Implements enough of PostgreSQL's protocol (version 3) to run statements.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use mirakuru_core::__private::random_id;
use mirakuru_core::Executor;

use super::{COMMON, SHARED, TEMPLATE, USER};
use crate::presets::Answers;
use crate::presets::connection::{Connection, Stream, read_exactly};
use crate::presets::digest::{Sha256, from_base64, hex, md5, to_base64, xor};
use crate::presets::external::External;

/// Time limit for one answer of the server.
const STATEMENT_WITHIN: Duration = Duration::from_secs(120);
/// Time limit for the server's recovery after a crash of one of its processes.
const RECOVERS_WITHIN: Duration = Duration::from_secs(10);

/// A server, and the user of mirakuru's connections.
#[derive(Clone, Debug)]
pub(super) enum Address {
    /// A server that mirakuru started. Its Unix socket asks for no password.
    Socket { dir: PathBuf, port: u16 },
    /// An external server, and the `Owner` of the tests' databases there.
    External(Box<External>, String),
}

impl Address {
    pub(crate) fn of(executor: &Executor<Answers>) -> Address {
        Address::Socket {
            dir: executor.dir(),
            port: executor.port(),
        }
    }

    pub(crate) fn user(&self) -> &str {
        match self {
            Address::Socket { .. } => USER,
            Address::External(external, _) => external.user.as_deref().unwrap_or(USER),
        }
    }

    pub(crate) fn template(&self) -> String {
        match self {
            Address::Socket { .. } => TEMPLATE.to_owned(),
            Address::External(_, owner) => format!("{owner}_template"),
        }
    }

    /// Name of the database that mirakuru creates for [`Postgres::url`](super::Postgres::url), if
    /// it creates one.
    pub(crate) fn common(&self, loads: bool) -> Option<String> {
        match self {
            Address::Socket { .. } => loads.then(|| COMMON.to_owned()),
            Address::External(_, owner) => Some(format!("{owner}_common")),
        }
    }

    /// Name of the database for mirakuru's own connections, which exists from the start.
    pub(crate) fn shared(&self) -> &str {
        match self {
            Address::Socket { .. } => SHARED,
            Address::External(external, _) => external.path.as_deref().unwrap_or(SHARED),
        }
    }

    pub(crate) fn connect(&self, database: &str) -> io::Result<Client> {
        self.connect_within(database, STATEMENT_WITHIN)
    }

    /// Calls `run` with a new connection. After a crash of one of its processes, the server closes
    /// all connections and refuses new ones for a while. Tries again until the server has
    /// recovered.
    pub(crate) fn retry<T>(&self, mut run: impl FnMut(&mut Client) -> io::Result<T>) -> io::Result<T> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, ResourceBusy, UnexpectedEof};
        let begun = Instant::now();
        loop {
            match self
                .connect(self.shared())
                .and_then(|mut client| run(&mut client))
            {
                Err(e)
                    if matches!(
                        e.kind(),
                        BrokenPipe | ConnectionReset | ResourceBusy | UnexpectedEof
                    ) && begun.elapsed() < RECOVERS_WITHIN =>
                {
                    thread::sleep(Duration::from_millis(5));
                }
                result => return result,
            }
        }
    }

    /// Connects and logs in. `limit` is the time limit for each answer.
    pub(crate) fn connect_within(&self, database: &str, limit: Duration) -> io::Result<Client> {
        let (stream, name) = match self {
            Address::Socket { dir, port } => {
                let stream = UnixStream::connect(dir.join(format!(".s.PGSQL.{port}")))?;
                (Stream::Unix(stream), "mirakuru")
            }
            Address::External(external, owner) => (external.stream(limit)?, &**owner),
        };
        let mut client = Client { stream, version: 0 };
        client.within(limit)?;
        client.stream.write_all(&startup(self.user(), database, name))?;
        if let Address::External(external, _) = self {
            let password = external.password.as_deref();
            client.log_in(self.user(), password)?;
        }
        client.until_ready("")?;
        Ok(client)
    }
}

/// A connection to a server.
pub(super) struct Client {
    stream: Stream,
    /// The server's major version times 10000: 150000 for version 15.
    pub(crate) version: u32,
}

impl Client {
    pub(crate) fn within(&self, limit: Duration) -> io::Result<()> {
        self.stream.within(limit)
    }

    /// Logs in with the methods that the server asks for.
    fn log_in(&mut self, user: &str, password: Option<&str>) -> io::Result<()> {
        const OK: u32 = 0;
        const CLEAR: u32 = 3;
        const MD5: u32 = 5;
        const SASL: u32 = 10;
        loop {
            let (kind, body) = read_message(&mut self.stream)?;
            let (method, rest) = match (kind, body.split_first_chunk::<4>()) {
                (b'R', Some((method, rest))) => (u32::from_be_bytes(*method), rest),
                (b'E', _) => return Err(refused(&body)),
                // Other messages are notices.
                _ => continue,
            };
            if method == OK {
                return Ok(());
            }
            let Some(password) = password else {
                return Err(io::Error::other("it asks for a password, but the URL has none"));
            };
            match method {
                CLEAR => self.send(b'p', password.as_bytes())?,
                MD5 => {
                    let inner = hex(&md5(format!("{password}{user}").as_bytes()));
                    let outer = hex(&md5(&[inner.as_bytes(), rest].concat()));
                    self.send(b'p', format!("md5{outer}").as_bytes())?;
                }
                SASL if rest.split(|byte| *byte == 0).any(|name| name == b"SCRAM-SHA-256") => {
                    self.scram(password)?;
                }
                _ => {
                    return Err(io::Error::other(
                        "it asks for a kind of login that the preset does not support",
                    ));
                }
            }
        }
    }

    /// Logs in with SCRAM-SHA-256 (RFC 5802), without channel binding.
    fn scram(&mut self, password: &str) -> io::Result<()> {
        let bad = || io::Error::other("its answer makes no sense in SCRAM-SHA-256");
        let nonce = random_id()? + &random_id()?;
        let first = format!("n=,r={nonce}");
        let mut message = b"SCRAM-SHA-256\0".to_vec();
        message.extend_from_slice(&length(3 + first.len())?);
        message.extend_from_slice(format!("n,,{first}").as_bytes());
        self.send_bytes(b'p', &message)?;
        let challenge = self.scram_answer()?;
        let part = |name: &str| challenge.split(',').find_map(|part| part.strip_prefix(name));
        let all_of_nonce = part("r=").filter(|all| all.starts_with(&nonce)).ok_or_else(bad)?;
        let salt = part("s=").and_then(from_base64).ok_or_else(bad)?;
        let rounds = part("i=")
            .and_then(|rounds| rounds.parse().ok())
            .ok_or_else(bad)?;
        let sha256 = Sha256::new();
        let salted = sha256.stretched(password.as_bytes(), &salt, rounds);
        let key = sha256.hmac(&salted, b"Client Key");
        let last = format!("c=biws,r={all_of_nonce}");
        let all = format!("{first},{challenge},{last}");
        let proof = xor(key, sha256.hmac(&sha256.of(&key), all.as_bytes()));
        self.send_bytes(b'p', format!("{last},p={}", to_base64(proof)).as_bytes())?;
        // The server must also prove that it knows the password.
        let signature = sha256.hmac(&sha256.hmac(&salted, b"Server Key"), all.as_bytes());
        match self.scram_answer()? == format!("v={}", to_base64(signature)) {
            true => Ok(()),
            false => Err(bad()),
        }
    }

    fn scram_answer(&mut self) -> io::Result<String> {
        match read_message(&mut self.stream)? {
            (b'R', body) => Ok(String::from_utf8_lossy(body.get(4..).unwrap_or_default()).into_owned()),
            (_, body) => Err(refused(&body)),
        }
    }

    /// Runs one or more statements in one transaction. Returns the first value of each row.
    pub(crate) fn query(&mut self, sql: &str) -> io::Result<Vec<String>> {
        self.send(b'Q', sql.as_bytes())?;
        self.until_ready(sql)
    }

    /// Sends a message whose body is one string, terminated by a zero byte.
    fn send(&mut self, kind: u8, text: &[u8]) -> io::Result<()> {
        self.send_bytes(kind, &[text, &[0]].concat())
    }

    fn send_bytes(&mut self, kind: u8, bytes: &[u8]) -> io::Result<()> {
        let length = length(bytes.len() + 4)?;
        self.stream.write_all(&[&[kind], &length[..], bytes].concat())
    }

    /// Reads until the server waits for the next query. Returns the first error that it reports.
    fn until_ready(&mut self, sql: &str) -> io::Result<Vec<String>> {
        let mut result = Ok(Vec::new());
        loop {
            let (kind, body) = read_message(&mut self.stream)?;
            match kind {
                b'Z' => return result,
                b'E' => {
                    let fields = Fields(&body);
                    let severity = fields.get(b'V').or(fields.get(b'S'));
                    let error = fields.error(sql);
                    // After a fatal error, the server closes the connection.
                    if matches!(severity.as_deref(), Some("FATAL" | "PANIC")) {
                        return Err(error);
                    }
                    result = result.and(Err(error));
                }
                b'D' => {
                    if let (Ok(rows), Some(value)) = (&mut result, first_value(&body)) {
                        rows.push(value);
                    }
                }
                b'S' => {
                    let mut words = body.split(|byte| *byte == 0);
                    if words.next() == Some(b"server_version") {
                        let version = String::from_utf8_lossy(words.next().unwrap_or_default());
                        self.version = version_number(&version);
                    }
                }
                // The server waits for the data of a `COPY .. FROM stdin`, which needs `psql`: make
                // the statement fail.
                b'G' => self.send(b'f', b"that takes `psql`, which is not installed")?,
                // Zero means authenticated. Any other number requests a login, which the socket
                // does not need.
                b'R' if body.as_slice() != [0; 4] => {
                    return Err(io::Error::other(
                        "the server asks for a password at its Unix socket",
                    ));
                }
                _ => {}
            }
        }
    }
}

/// Decodes the first value of a row. A row consists of a two-byte column count and, for each value,
/// a four-byte length followed by a string.
fn first_value(row: &[u8]) -> Option<String> {
    let length = i32::from_be_bytes(row.get(2..6)?.try_into().ok()?);
    let value = row.get(6..6 + usize::try_from(length).ok()?)?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// Only the major version matters: "15.18 (Debian 15.18-0+deb12u1)" gives 150000, and "18beta1"
/// gives 180000.
fn version_number(text: &str) -> u32 {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse::<u32>().unwrap_or(0).saturating_mul(10_000)
}

/// The first message of a connection.
fn startup(user: &str, database: &str, name: &str) -> Vec<u8> {
    const VERSION_3: u32 = 3 << 16;
    let parameters = format!("user\0{user}\0database\0{database}\0application_name\0{name}\0\0");
    let size = (parameters.len() + 8) as u32;
    let mut message = size.to_be_bytes().to_vec();
    message.extend_from_slice(&VERSION_3.to_be_bytes());
    message.extend_from_slice(parameters.as_bytes());
    message
}

/// Decodes the error of a refused login.
fn refused(body: &[u8]) -> io::Error {
    Fields(body).error("")
}

fn length(size: usize) -> io::Result<[u8; 4]> {
    match i32::try_from(size) {
        Ok(size) => Ok(size.to_be_bytes()),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "more than 2 GiB of SQL",
        )),
    }
}

fn read_message(stream: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let size = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    Ok((head[0], read_exactly(stream, size.saturating_sub(4) as usize)?))
}

/// Whether the server accepts a login. While the server starts up, it accepts connections but
/// refuses logins.
pub(super) fn takes_clients(mut connection: Connection) -> io::Result<bool> {
    connection.send(&startup(USER, SHARED, "mirakuru"))?;
    match read_message(&mut connection.0)? {
        (b'R', _) => Ok(true),
        (b'E', body) => Err(io::Error::other(Fields(&body).report(""))),
        _ => Ok(false),
    }
}

/// The fields of an error. Each consists of a letter and a string that ends with a zero byte.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn get(&self, letter: u8) -> Option<String> {
        let mut fields = self.0.split(|byte| *byte == 0);
        let found = fields.find(|field| field.first() == Some(&letter))?;
        Some(String::from_utf8_lossy(&found[1..]).into_owned())
    }

    /// The error, with a kind that [`Address::retry`] recognises.
    fn error(&self, sql: &str) -> io::Error {
        match self.get(b'C').as_deref() {
            // With these codes, the server closes connections or refuses them for a while.
            Some("57P01" | "57P02" | "57P03") => {
                io::Error::new(io::ErrorKind::ResourceBusy, self.report(sql))
            }
            _ => io::Error::other(self.report(sql)),
        }
    }

    /// The message, its details, and its line in the query.
    fn report(&self, sql: &str) -> String {
        let severity = self.get(b'S').unwrap_or_else(|| "ERROR".to_owned());
        let mut text = format!("{severity}: {}", self.get(b'M').unwrap_or_default());
        let position = self.get(b'P').and_then(|position| position.parse::<usize>().ok());
        if let Some(position) = position.filter(|_| sql.contains('\n')) {
            let mut line = 1;
            for (at, c) in sql.chars().enumerate() {
                if at + 1 < position && c == '\n' {
                    line += 1;
                }
            }
            text = format!("line {line}: {text}");
        }
        for (letter, name) in [(b'D', "DETAIL"), (b'H', "HINT"), (b'W', "CONTEXT")] {
            if let Some(value) = self.get(letter) {
                text.push_str(&format!("\n{name}: {value}"));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_where_it_is() {
        let body = b"SERROR\0VERROR\0C42601\0Msyntax error\0P16\0Htry again\0\0";
        let report = Fields(body).report("SELECT 1;\n\nCRAETE;");
        assert_eq!(report, "line 3: ERROR: syntax error\nHINT: try again");
    }

    #[test]
    fn versions_are_compared_by_their_first_number() {
        assert_eq!(version_number("15.18 (Debian 15.18-0+deb12u1)"), 150_000);
        assert_eq!(version_number("18beta1"), 180_000);
    }

    #[test]
    fn the_first_value_of_a_row_is_read() {
        assert_eq!(first_value(b"\0\x02\0\0\0\x01x\0\0\0\x01y").as_deref(), Some("x"));
        assert_eq!(first_value(b"\0\x01\xff\xff\xff\xff"), None);
    }
}
