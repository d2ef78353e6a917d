//! A RabbitMQ server at `MIRAKURU_RABBITMQ_URL`. Names of virtual hosts that tests create begin
//! with the run's `Owner`. The virtual hosts are created through the HTTP API of the management
//! plugin.

use std::io;

use crate::presets::connection::{ANSWER_WITHIN, Connection};
use crate::presets::digest::to_base64;
use crate::presets::external::{External, MANAGEMENT_PORT, Protocol, owners_of};
use crate::presets::{http, percent_encoded};

pub(super) const PROTOCOL: Protocol = Protocol {
    schemes: &["amqp"],
    port: 5672,
    check,
    owners: |external| Ok(owners_of(&virtual_hosts(external)?)),
    renew: Protocol::NO_RENEWAL,
    remove,
};

/// Default port of the management plugin. `?management_port=..` in the URL overrides it.
const MANAGEMENT: u16 = 15_672;
/// The default user name, which is also the default password.
const GUEST: &str = "guest";

pub(super) fn user(external: &External) -> &str {
    external.user.as_deref().unwrap_or(GUEST)
}

pub(super) fn password(external: &External) -> &str {
    external.password.as_deref().unwrap_or(GUEST)
}

fn connect(external: &External) -> io::Result<Connection> {
    let given = external.parameter(MANAGEMENT_PORT);
    let port = given.map_or(Ok(MANAGEMENT), str::parse);
    let port =
        port.map_err(|_| io::Error::other("the URL's `management_port` must be a number up to 65535"))?;
    external
        .connect_to(port, ANSWER_WITHIN)
        .map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => io::Error::other(format!(
                "its management plugin does not answer on port {port}: enable it \
             (`rabbitmq-plugins enable rabbitmq_management`), or set its port with `?management_port=..`"
            )),
            _ => error,
        })
}

fn call(external: &External, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
    let login = to_base64(format!("{}:{}", user(external), password(external)));
    let authorization = format!("Basic {login}");
    let connection = connect(external)?;
    let (status, answer) = http::request(
        connection,
        method,
        &format!("/api/{path}"),
        Some(&authorization),
        body,
    )?;
    let reason = match status {
        200..300 | 404 => return Ok((status, answer)),
        401 => "it refuses the user of the URL, who needs the tag `administrator`".to_owned(),
        _ => format!("{method} /api/{path}: status {status}: {}", answer.trim()),
    };
    Err(io::Error::other(reason))
}

fn check(external: &External) -> io::Result<()> {
    let (_, answer) = call(external, "GET", "whoami", "")?;
    match answer.contains("administrator") {
        true => Ok(()),
        false => Err(io::Error::other(
            "the user of the URL needs the tag `administrator`",
        )),
    }
}

fn virtual_hosts(external: &External) -> io::Result<Vec<String>> {
    let (_, answer) = call(external, "GET", "vhosts?columns=name", "")?;
    let mut names = Vec::new();
    for name in http::texts(&answer, "name") {
        names.push(name.to_owned());
    }
    Ok(names)
}

/// Creates a virtual host in which the URL's user has all rights.
pub(super) fn add(external: &External, name: &str) -> io::Result<()> {
    call(external, "PUT", &format!("vhosts/{name}"), "{}")?;
    let path = format!("permissions/{name}/{}", percent_encoded(user(external)));
    let all = r#"{"configure":".*","write":".*","read":".*"}"#;
    call(external, "PUT", &path, all).map(drop)
}

pub(super) fn delete(external: &External, name: &str) -> io::Result<()> {
    call(external, "DELETE", &format!("vhosts/{name}"), "").map(drop)
}

fn remove(external: &External, owner: &str) -> io::Result<()> {
    let begin = format!("{owner}_");
    for name in virtual_hosts(external)? {
        if name.starts_with(&begin) {
            delete(external, &name)?;
        }
    }
    Ok(())
}
