//! An etcd server at `MIRAKURU_ETCD_URL`. Keys that tests create begin with the run's `Owner`.

use std::io;

use crate::presets::connection::ANSWER_WITHIN;
use crate::presets::digest::{from_base64, to_base64};
use crate::presets::external::{External, Protocol, owners_of};
use crate::presets::http;

pub(super) const PROTOCOL: Protocol = Protocol {
    schemes: &["http", "etcd"],
    port: 2379,
    check,
    owners,
    renew: Protocol::NO_RENEWAL,
    remove,
};

/// Sends a request to the JSON gateway. If the URL has a user, logs in first to get a token.
fn call(external: &External, method: &str, question: &str) -> io::Result<String> {
    let ask = |token: Option<&str>, method: &str, question: &str| {
        let connection = external.connect(ANSWER_WITHIN)?;
        let (status, answer) = http::request(connection, "POST", &format!("/v3/{method}"), token, question)?;
        match status {
            200 => Ok(answer),
            404 => Err(io::Error::other(
                "it has no gateway `/v3/`: the preset needs etcd 3.4 or later",
            )),
            _ => {
                let reason = http::texts(&answer, "error")
                    .first()
                    .map(|reason| (*reason).to_owned());
                Err(io::Error::other(
                    reason.unwrap_or_else(|| format!("status {status}")),
                ))
            }
        }
    };
    let (Some(user), Some(password)) = (&external.user, &external.password) else {
        return ask(None, method, question);
    };
    let login = format!("{{\"name\":{user:?},\"password\":{password:?}}}");
    let answer = ask(None, "auth/authenticate", &login)?;
    let token = http::texts(&answer, "token");
    ask(token.first().copied(), method, question)
}

/// The JSON fields that select the keys from `from` (inclusive) to `to` (exclusive).
fn range(from: &str, to: &str) -> String {
    format!(
        "\"key\":\"{}\",\"range_end\":\"{}\"",
        to_base64(from),
        to_base64(to)
    )
}

fn check(external: &External) -> io::Result<()> {
    // Tests the user's right to delete. No key is in this range, so nothing is deleted.
    call(
        external,
        "kv/deleterange",
        &format!("{{{}}}", range("mk/", "mk0")),
    )
    .map(drop)
}

fn owners(external: &External) -> io::Result<Vec<String>> {
    let question = format!("{{{},\"keys_only\":true}}", range("mk", "ml"));
    let answer = call(external, "kv/range", &question)?;
    let mut keys = Vec::new();
    for key in http::texts(&answer, "key") {
        let key = from_base64(key).unwrap_or_default();
        keys.push(String::from_utf8_lossy(&key).into_owned());
    }
    Ok(owners_of(&keys))
}

fn remove(external: &External, owner: &str) -> io::Result<()> {
    let question = range(&format!("{owner}_"), &format!("{owner}`"));
    call(external, "kv/deleterange", &format!("{{{question}}}")).map(drop)
}
