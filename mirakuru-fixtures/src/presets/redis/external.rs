//! A Redis server at `MIRAKURU_REDIS_URL`. The leases of its databases are stored on the server, so
//! that all processes, users and machines see them.
//!
//! Two hashes in database 0 record the leases. They exist only while there is a lease:
//!
//! | key | field | value |
//! | --- | --- | --- |
//! | `mirakuru:leases` | the number of a database | its token: number, owner, process, random text |
//! | `mirakuru:runs` | the owner | the server's time at the last registration of its stand-in |

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use mirakuru_core::__private::{Owner, random_id};

use super::{ask, authenticate, bulk, disconnect_clients, texts};
use crate::presets::connection::{ANSWER_WITHIN, Connection};
use crate::presets::external::{External, Protocol};

pub(super) const PROTOCOL: Protocol = Protocol {
    schemes: &["redis", "valkey"],
    port: 6379,
    check,
    owners,
    renew,
    remove,
};

/// Oldest major version whose scripts may write after `TIME`.
const OLDEST: u32 = 5;
/// A stand-in that has not renewed its registration for this many seconds counts as ended.
/// Stand-ins renew it once a minute.
const SILENT_AFTER: u64 = 600;
/// How long to wait for another test to return a database. Most servers have only 16 databases.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(10);

/// Leases an empty database, or a database whose owner has ended.
///
/// The script takes these arguments:
///
/// 1. the offset at which the search begins;
/// 2. the new token without the database's number;
/// 3. a time: owners that have not registered since then count as ended;
/// 4. the count of databases that must not be leased;
/// 5. their numbers, as one argument each;
/// 6. the tokens whose processes have ended, as one argument each.
///
/// Returns the new token, `one` if the server has only database 0, or `all` if no database is free.
const LEASE: &str = "
local first, token, silent, kept = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local is_kept, has_ended = {}, {}
for at = 5, #ARGV do
  if at < 5 + kept then is_kept[ARGV[at]] = true else has_ended[ARGV[at]] = true end
end
local last = 0
while last < 65535 and not redis.pcall('SELECT', last + 1).err do last = last + 1 end
if last == 0 then return 'one' end
for step = 0, last - 1 do
  local number = (first + step) % last + 1
  redis.call('SELECT', 0)
  local held = redis.call('HGET', 'mirakuru:leases', number)
  local is_free = false
  if held then
    local heard = redis.call('HGET', 'mirakuru:runs', string.match(held, '^%d+ (%w+) ') or '')
    is_free = has_ended[held] or not heard or tonumber(heard) < silent
  elseif not is_kept[tostring(number)] then
    redis.call('SELECT', number)
    is_free = redis.call('DBSIZE') == 0
  end
  if is_free then
    redis.call('SELECT', number)
    redis.call('FLUSHDB')
    redis.call('SELECT', 0)
    redis.call('HSET', 'mirakuru:leases', number, number .. ' ' .. token)
    return number .. ' ' .. token
  end
end
return 'all'
";

/// Empties a database and ends its lease, if the lease still has this token.
const GIVE_BACK: &str = "
local number = string.match(ARGV[1], '^%d+')
redis.call('SELECT', 0)
if redis.call('HGET', 'mirakuru:leases', number) == ARGV[1] then
  redis.call('SELECT', number)
  redis.call('FLUSHDB')
  redis.call('SELECT', 0)
  redis.call('HDEL', 'mirakuru:leases', number)
end
return 'done'
";

/// The fields of a lease's token.
struct Token<'a> {
    number: u32,
    owner: &'a str,
    process: &'a str,
}

impl Token<'_> {
    fn parse(text: &str) -> Option<Token<'_>> {
        let mut words = text.split(' ');
        Some(Token {
            number: words.next()?.parse().ok()?,
            owner: words.next()?,
            process: words.next()?,
        })
    }

    /// Whether the lease's test process is known to have ended.
    fn has_ended(text: &str) -> bool {
        let process = Token::parse(text).and_then(|token| Owner::parse(token.process));
        process.is_some_and(|process| process.has_ended() == Some(true))
    }
}

/// The number of the database in the URL, which all tests share.
pub(super) fn own_number(external: &External) -> u32 {
    external
        .path
        .as_deref()
        .and_then(|path| path.parse().ok())
        .unwrap_or(0)
}

pub(super) fn connect(external: &External, within: Duration) -> io::Result<Connection> {
    let mut connection = external.connect(within)?;
    authenticate(
        &mut connection,
        external.user.as_deref(),
        external.password.as_deref(),
    )?;
    Ok(connection)
}

fn check(external: &External) -> io::Result<()> {
    if external
        .path
        .as_deref()
        .is_some_and(|path| path.parse::<u32>().is_err())
    {
        return Err(io::Error::other(
            "the path of the URL must be the number of a database",
        ));
    }
    let mut connection = connect(external, ANSWER_WITHIN)?;
    let info = bulk(&mut connection, &["INFO", "server"])?;
    let value = |name: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_default()
    };
    let version = value("redis_version:");
    let major = version.split('.').next().and_then(|major| major.parse().ok());
    if major.is_some_and(|major: u32| major < OLDEST) {
        let problem = format!("it is version {version}, but the preset needs {OLDEST} or later");
        return Err(io::Error::other(problem));
    }
    if value("redis_mode:") == "cluster" {
        let problem = "it is part of a cluster, which has one database; all tests would share it";
        return Err(io::Error::other(problem));
    }
    ask(&mut connection, &["SELECT", &own_number(external).to_string()])?;
    // This script fails if the user lacks the rights that a lease needs.
    let trial = "redis.call('SELECT', 0); redis.call('HSET', 'mirakuru:runs', 'trial', 1); \
                 return redis.call('HDEL', 'mirakuru:runs', 'trial')";
    ask(&mut connection, &["EVAL", trial, "0"]).map(drop)
}

fn all_tokens(connection: &mut Connection) -> io::Result<Vec<String>> {
    texts(connection, &["HVALS", "mirakuru:leases"])
}

fn server_time(connection: &mut Connection) -> io::Result<u64> {
    let time = texts(connection, &["TIME"])?;
    let seconds = time.first().and_then(|seconds| seconds.parse().ok());
    seconds.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn owners(external: &External) -> io::Result<Vec<String>> {
    let mut connection = connect(external, ANSWER_WITHIN)?;
    let silent = server_time(&mut connection)?.saturating_sub(SILENT_AFTER);
    let runs = texts(&mut connection, &["HGETALL", "mirakuru:runs"])?;
    let mut owners: Vec<String> = Vec::new();
    for run in runs.chunks(2) {
        let [owner, heard] = run else { continue };
        let has_ended = Owner::parse(owner).and_then(|owner| owner.has_ended());
        // For an owner on another machine, only the time of its registration counts.
        if has_ended.unwrap_or_else(|| heard.parse().is_ok_and(|heard: u64| heard < silent)) {
            owners.push(owner.clone());
        }
    }
    // A lease whose owner is not registered is also left over.
    for token in all_tokens(&mut connection)? {
        if let Some(token) = Token::parse(&token).filter(|token| !runs.iter().any(|run| run == token.owner)) {
            owners.push(token.owner.to_owned());
        }
    }
    Ok(owners)
}

fn renew(external: &External, owner: &str) -> io::Result<()> {
    let mut connection = connect(external, ANSWER_WITHIN)?;
    let now = server_time(&mut connection)?.to_string();
    ask(&mut connection, &["HSET", "mirakuru:runs", owner, &now]).map(drop)
}

fn remove(external: &External, owner: &str) -> io::Result<()> {
    let mut connection = connect(external, ANSWER_WITHIN)?;
    for text in all_tokens(&mut connection)? {
        if let Some(token) = Token::parse(&text).filter(|token| token.owner == owner) {
            // A killed process's last commands may still arrive, so first disconnect the database's
            // clients.
            disconnect_clients(&mut connection, token.number)?;
            give_back(&mut connection, &text)?;
        }
    }
    ask(&mut connection, &["HDEL", "mirakuru:runs", owner]).map(drop)
}

/// Leases a database. Returns its number and its token.
pub(super) fn lease(external: &External, owner: &str) -> io::Result<(u32, String)> {
    let mut connection = connect(external, ANSWER_WITHIN)?;
    let begun = Instant::now();
    loop {
        let random = random_id()?;
        // The search begins at a random number. So if a client outlives its lease, the database
        // that it still uses is seldom the next one leased.
        let mut first = 0;
        for byte in random.bytes() {
            first = first * 31 % 65_521 + u32::from(byte);
        }
        let first = first.to_string();
        let end = format!("{owner} {} {random}", Owner::this_process());
        let silent = server_time(&mut connection)?
            .saturating_sub(SILENT_AFTER)
            .to_string();
        let kept = kept(&mut connection, external)?;
        let count = kept.len().to_string();
        let tokens = all_tokens(&mut connection)?;
        let mut words: Vec<&str> = vec!["EVAL", LEASE, "0", &first, &end, &silent, &count];
        for number in &kept {
            words.push(number);
        }
        for token in &tokens {
            if Token::has_ended(token) {
                words.push(token);
            }
        }
        let answer = bulk(&mut connection, &words)?;
        let answer = answer.trim_end();
        if let Some(token) = Token::parse(answer) {
            return Ok((token.number, answer.to_owned()));
        }
        if answer == "one" {
            let problem = "the server has only database 0; give each test keys with a prefix of its own";
            return Err(io::Error::other(problem));
        }
        if begun.elapsed() > GIVEN_BACK_WITHIN {
            let problem = "all are leased or in use: drop those that are not needed, or raise \
                           `databases` in the server's configuration";
            return Err(io::Error::other(problem));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Numbers of the databases that must not be leased, even if they are empty: the URL's database,
/// and databases that clients use.
fn kept(connection: &mut Connection, external: &External) -> io::Result<Vec<String>> {
    let clients = match bulk(connection, &["CLIENT", "LIST"]) {
        // The user may not have the right to list connections.
        Err(e) if e.kind() == io::ErrorKind::Other => String::new(),
        clients => clients?,
    };
    let mut kept = vec![own_number(external).to_string()];
    for word in clients.split_ascii_whitespace() {
        let number = word.strip_prefix("db=").map(str::to_owned);
        kept.extend(number.filter(|number| !kept.contains(number)));
    }
    Ok(kept)
}

pub(super) fn give_back(connection: &mut Connection, token: &str) -> io::Result<()> {
    bulk(connection, &["EVAL", GIVE_BACK, "0", token]).map(drop)
}
