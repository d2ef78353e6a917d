//! A memcached server at `MIRAKURU_MEMCACHED_URL`. Keys that tests create begin with the run's
//! `Owner`.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use percent_encoding::percent_decode_str;

use crate::presets::connection::{ANSWER_WITHIN, Connection};
use crate::presets::external::{External, Protocol, owners_of};

pub(super) const PROTOCOL: Protocol = Protocol {
    schemes: &["memcache", "memcached"],
    port: 11211,
    check: |external| keys(&mut connect(external)?).map(drop),
    owners: |external| Ok(owners_of(&keys(&mut connect(external)?)?)),
    renew: Protocol::NO_RENEWAL,
    remove,
};

const ALL_KEYS: &[u8] = b"lru_crawler metadump all\r\n";
/// Time limit for waiting while the server lists its keys for another client.
const BUSY_WITHIN: Duration = Duration::from_secs(10);

fn connect(external: &External) -> io::Result<Connection> {
    let mut connection = external.connect(ANSWER_WITHIN)?;
    if let (Some(user), Some(password)) = (&external.user, &external.password) {
        let login = format!("{user} {password}");
        connection.send(format!("set mirakuru 0 0 {}\r\n{login}\r\n", login.len()).as_bytes())?;
        match &*connection.line()? {
            "STORED" => {}
            answer => return Err(io::Error::other(answer.to_owned())),
        }
    }
    Ok(connection)
}

/// Finds the keys that begin with `mk`, as every `Owner` does. Only the command `lru_crawler` lists
/// keys.
fn keys(connection: &mut Connection) -> io::Result<Vec<String>> {
    let until = Instant::now() + BUSY_WITHIN;
    let mut keys = Vec::new();
    connection.send(ALL_KEYS)?;
    loop {
        let line = connection.line()?;
        match line.strip_prefix("key=") {
            Some(rest) => {
                let key = rest.split(' ').next().unwrap_or_default();
                if key.starts_with("mk") {
                    keys.push(percent_decode_str(key).decode_utf8_lossy().into_owned());
                }
            }
            None if line == "END" => return Ok(keys),
            // The server lists its keys for one client at a time.
            None if line.starts_with("BUSY") && Instant::now() < until => {
                thread::sleep(Duration::from_millis(20));
                connection.send(ALL_KEYS)?;
            }
            None => {
                let problem = format!(
                    "it does not list its keys ({line}): the preset needs memcached 1.4.31 or later, \
                     with its `lru_crawler`"
                );
                return Err(io::Error::other(problem));
            }
        }
    }
}

fn remove(external: &External, owner: &str) -> io::Result<()> {
    let mut connection = connect(external)?;
    let begin = format!("{owner}_");
    for key in keys(&mut connection)? {
        if key.starts_with(&begin) {
            connection.send(format!("delete {key}\r\n").as_bytes())?;
            // The answer is `DELETED`, or `NOT_FOUND` if the key has expired.
            connection.line()?;
        }
    }
    Ok(())
}
