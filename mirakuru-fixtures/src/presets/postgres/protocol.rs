//! PostgreSQL's protocol, version 3, as far as it takes to run a statement at the Unix socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use mirakuru_core::Executor;

use super::{SHARED, USER};
use crate::presets::Answers;
use crate::presets::connection::Connection;

/// How long a statement may take.
const STATEMENT_WITHIN: Duration = Duration::from_secs(120);
/// How long the server may take to recover after one of its processes has crashed.
const RECOVERS_WITHIN: Duration = Duration::from_secs(10);

/// The Unix socket of a server, at which it asks for no password.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(crate) dir: PathBuf,
    pub(crate) port: u16,
}

impl Address {
    pub(crate) fn of(executor: &Executor<Answers>) -> Address {
        Address {
            dir: executor.dir(),
            port: executor.port(),
        }
    }

    pub(crate) fn connect(&self, database: &str) -> io::Result<Client> {
        self.connect_within(database, STATEMENT_WITHIN)
    }

    /// Does something on a new connection, and again on another while the server recovers from a
    /// crash of one of its processes: it then ends all connections, and refuses new ones.
    pub(crate) fn retry<T>(
        &self,
        database: &str,
        mut run: impl FnMut(&mut Client) -> io::Result<T>,
    ) -> io::Result<T> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, ResourceBusy, UnexpectedEof};
        let begun = Instant::now();
        loop {
            match self.connect(database).and_then(|mut client| run(&mut client)) {
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

    /// A connection on which no answer takes longer than this.
    pub(crate) fn connect_within(&self, database: &str, limit: Duration) -> io::Result<Client> {
        let stream = UnixStream::connect(self.dir.join(format!(".s.PGSQL.{}", self.port)))?;
        let mut client = Client { stream, version: 0 };
        client.within(limit)?;
        client.stream.write_all(&startup(database))?;
        client.until_ready("")?;
        Ok(client)
    }
}

/// A connection of ours.
pub(super) struct Client {
    stream: UnixStream,
    /// As 150000.
    pub(crate) version: u32,
}

impl Client {
    pub(crate) fn within(&self, limit: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(limit))?;
        self.stream.set_write_timeout(Some(limit))
    }

    /// Runs statements. Several are one transaction. Gives the first value of each row.
    pub(crate) fn query(&mut self, sql: &str) -> io::Result<Vec<String>> {
        self.send(b'Q', sql.as_bytes())?;
        self.until_ready(sql)
    }

    fn send(&mut self, kind: u8, text: &[u8]) -> io::Result<()> {
        let mut message = vec![kind];
        message.extend_from_slice(&length(text.len() + 5)?);
        message.extend_from_slice(text);
        message.push(0);
        self.stream.write_all(&message)
    }

    /// Reads until the server waits for the next query. Gives the first error that it reports.
    fn until_ready(&mut self, sql: &str) -> io::Result<Vec<String>> {
        let mut result = Ok(Vec::new());
        loop {
            let (kind, body) = read_message(&mut self.stream)?;
            match kind {
                b'Z' => return result,
                b'E' => {
                    let fields = Fields(&body);
                    let severity = fields.get(b'V').or(fields.get(b'S'));
                    let error = match fields.get(b'C').as_deref() {
                        // It ends connections, or refuses them for a while.
                        Some("57P01" | "57P02" | "57P03") => {
                            io::Error::new(io::ErrorKind::ResourceBusy, fields.report(sql))
                        }
                        _ => io::Error::other(fields.report(sql)),
                    };
                    // After it the server hangs up.
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
                // It waits for the data of a `COPY .. FROM stdin`.
                b'G' => self.send(b'f', b"that takes `psql`, which is not installed")?,
                // Zero means authenticated. Anything else is a question that has no answer here.
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

/// The first column of a row: two bytes of the number of columns, four of a length, a text.
fn first_value(row: &[u8]) -> Option<String> {
    let length = i32::from_be_bytes(row.get(2..6)?.try_into().ok()?);
    let value = row.get(6..6 + usize::try_from(length).ok()?)?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// "15.18 (Debian 15.18-0+deb12u1)" and "18beta1" as 150000 and 180000: the part that matters here.
fn version_number(text: &str) -> u32 {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse::<u32>().unwrap_or(0).saturating_mul(10_000)
}

/// The first message of a connection.
fn startup(database: &str) -> Vec<u8> {
    const VERSION_3: u32 = 3 << 16;
    let parameters = format!("user\0{USER}\0database\0{database}\0application_name\0mirakuru\0\0");
    let size = (parameters.len() + 8) as u32;
    let mut message = size.to_be_bytes().to_vec();
    message.extend_from_slice(&VERSION_3.to_be_bytes());
    message.extend_from_slice(parameters.as_bytes());
    message
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
    let mut body = Vec::new();
    let expected = u64::from(size.saturating_sub(4));
    // No more memory than really comes.
    if stream.take(expected).read_to_end(&mut body)? as u64 != expected {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((head[0], body))
}

/// Whether the server has begun to ask for our name. While it starts up it accepts, and refuses.
pub(super) fn takes_clients(mut connection: Connection) -> io::Result<bool> {
    connection.send(&startup(SHARED))?;
    match read_message(&mut connection.0)? {
        (b'R', _) => Ok(true),
        (b'E', body) => Err(io::Error::other(Fields(&body).report(""))),
        _ => Ok(false),
    }
}

/// The fields of an error: a letter, a text and a zero each.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn get(&self, letter: u8) -> Option<String> {
        let mut fields = self.0.split(|byte| *byte == 0);
        let found = fields.find(|field| field.first() == Some(&letter))?;
        Some(String::from_utf8_lossy(&found[1..]).into_owned())
    }

    /// The message, its details, and its line in the query.
    fn report(&self, sql: &str) -> String {
        let severity = self.get(b'S').unwrap_or_else(|| "ERROR".to_owned());
        let mut text = format!("{severity}: {}", self.get(b'M').unwrap_or_default());
        let position = self.get(b'P').and_then(|position| position.parse::<usize>().ok());
        if let Some(position) = position.filter(|_| sql.contains('\n')) {
            let before = sql.chars().take(position.saturating_sub(1));
            text = format!("line {}: {text}", before.filter(|c| *c == '\n').count() + 1);
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
