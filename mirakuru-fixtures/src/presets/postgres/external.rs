//! A PostgreSQL server at `MIRAKURU_POSTGRES_URL`. Each run creates a template there, and each test
//! gets a copy of the template.

use std::io;
use std::thread;
use std::time::Duration;

use super::protocol::{Address, Client};
use crate::presets::connection::ANSWER_WITHIN;
use crate::presets::external::{External, Protocol};

pub(super) const PROTOCOL: Protocol = Protocol {
    schemes: &["postgresql", "postgres"],
    port: 5432,
    check,
    owners,
    renew: Protocol::NO_RENEWAL,
    remove,
};

/// The first version with `DROP DATABASE .. WITH (FORCE)`.
const OLDEST: u32 = 130_000;

/// How many times to wait 50 ms for sessions to end.
const ENDS_IN_STEPS: u32 = 100;

fn connect(external: &External) -> io::Result<Client> {
    let address = Address::External(Box::new(external.clone()), "mirakuru".to_owned());
    address.connect_within(address.shared(), ANSWER_WITHIN)
}

fn check(external: &External) -> io::Result<()> {
    let mode = external.parameter("sslmode").unwrap_or_default();
    if mode == "require" || mode.starts_with("verify") {
        let problem = format!("the URL says `sslmode={mode}`, but mirakuru's own connections have no TLS");
        return Err(io::Error::other(problem));
    }
    let mut client = connect(external)?;
    if client.version < OLDEST {
        let (major, oldest) = (client.version / 10_000, OLDEST / 10_000);
        return Err(io::Error::other(format!(
            "it is PostgreSQL {major}, but the preset needs {oldest} or later"
        )));
    }
    let rights = "SELECT quote_ident(current_user) FROM pg_roles \
                  WHERE rolname = current_user AND NOT rolcreatedb AND NOT rolsuper";
    if let [user] = &*client.query(rights)? {
        let problem = format!("its user may not create databases: `ALTER ROLE {user} CREATEDB`");
        return Err(io::Error::other(problem));
    }
    if client.query("SELECT pg_is_in_recovery()")? == ["t"] {
        return Err(io::Error::other(
            "it is a replica, on which no database can be created",
        ));
    }
    Ok(())
}

/// Fails if the recipe asks for a version other than the server's.
pub(super) fn check_version(external: &External, wanted: Option<u32>) -> io::Result<()> {
    let major = connect(external)?.version / 10_000;
    match wanted {
        Some(wanted) if wanted != major => Err(io::Error::other(format!(
            "it is PostgreSQL {major}, but the recipe says `version({wanted})`"
        ))),
        _ => Ok(()),
    }
}

/// Fails if the user may not copy the settings of a database.
pub(super) fn check_copies_settings(address: &Address, client: &mut Client) -> io::Result<()> {
    let is_super = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user";
    match address {
        Address::External(external, _) if client.query(is_super)? != ["t"] => Err(io::Error::other(format!(
            "the recipe's SQL puts settings, grants or a comment on the database itself; to copy them, the \
             user of {external} must be a SUPERUSER"
        ))),
        _ => Ok(()),
    }
}

fn owners(external: &External) -> io::Result<Vec<String>> {
    connect(external)?
        .query("SELECT DISTINCT split_part(datname, '_', 1) FROM pg_database WHERE datname ~ '^mk.*_'")
}

fn remove(external: &External, owner: &str) -> io::Result<()> {
    let mut client = connect(external)?;
    // A killed process's last statement may still be running.
    let sessions =
        format!("FROM pg_stat_activity WHERE application_name = '{owner}' AND pid <> pg_backend_pid()");
    client.query(&format!("SELECT pg_terminate_backend(pid) {sessions}"))?;
    for _ in 0..ENDS_IN_STEPS {
        if client.query(&format!("SELECT 1 {sessions}"))?.is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    let databases = format!("SELECT datname FROM pg_database WHERE starts_with(datname, '{owner}_')");
    let mut result = Ok(());
    let mut tries = ENDS_IN_STEPS;
    for name in client.query(&databases)? {
        let statement = format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)");
        let mut dropped = client.query(&statement);
        // Only a superuser may end another superuser's session, such as a dump. So wait until it
        // ends.
        while dropped.is_err() && tries > 0 {
            tries -= 1;
            thread::sleep(Duration::from_millis(50));
            dropped = client.query(&statement);
        }
        result = result.and(dropped.map(drop));
    }
    result
}
