//! A MariaDB or MySQL server at `MIRAKURU_MARIADB_URL`. Each test has a database there.

use std::io;

use mirakuru_core::__private::Owner;

use super::protocol::{Address, Client};
use super::{CHARACTERS, drop_database};
use crate::presets::connection::ANSWER_WITHIN;
use crate::presets::external::{External, Protocol};

pub(super) const PROTOCOL: Protocol = Protocol {
    schemes: &["mysql", "mariadb"],
    port: 3306,
    check,
    owners,
    renew: Protocol::NO_RENEWAL,
    remove,
};

/// The oldest versions of MariaDB and MySQL that support all queries in this file.
const OLDEST: [(u32, u32); 2] = [(10, 3), (5, 7)];

fn connect(external: &External) -> io::Result<Client> {
    Client::connect(&Address::External(Box::new(external.clone())), ANSWER_WITHIN)
}

fn check(external: &External) -> io::Result<()> {
    let mut client = connect(external)?;
    let (name, version, oldest) = version(&client.version);
    if version < oldest {
        let problem = format!(
            "it is {name} {}.{}, but the preset needs {}.{} or later",
            version.0, version.1, oldest.0, oldest.1
        );
        return Err(io::Error::other(problem));
    }
    // These statements only test the user's rights. The database does not exist, so they change
    // nothing.
    let absent = format!("{}_absent", Owner::this_process());
    for statement in [
        format!("CREATE TABLE {absent}.a (b INT)"),
        format!("DROP DATABASE IF EXISTS {absent}"),
    ] {
        match client.query(&statement) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(io::Error::other(format!(
                    "its user may not create and drop databases whose names begin with `mk` \
                     (`GRANT ALL ON \\`mk%\\`.* TO ..`): {error}"
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Returns the server's name, its version, and the oldest usable version. MariaDB may put `5.5.5-`
/// before its version.
fn version(greeting: &str) -> (&'static str, (u32, u32), (u32, u32)) {
    let is_mariadb = greeting.contains("MariaDB");
    let (name, oldest) = match is_mariadb {
        true => ("MariaDB", OLDEST[0]),
        false => ("MySQL", OLDEST[1]),
    };
    let text = greeting.strip_prefix("5.5.5-").filter(|_| is_mariadb);
    let mut numbers = text
        .unwrap_or(greeting)
        .split('.')
        .map(|number| number.parse().unwrap_or(0));
    (
        name,
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)),
        oldest,
    )
}

fn owners(external: &External) -> io::Result<Vec<String>> {
    connect(external)?.query(
        "SELECT DISTINCT SUBSTRING_INDEX(schema_name, '_', 1) FROM information_schema.schemata \
         WHERE schema_name LIKE 'mk%\\_%'",
    )
}

fn remove(external: &External, owner: &str) -> io::Result<()> {
    let databases =
        format!("SELECT schema_name FROM information_schema.schemata WHERE schema_name LIKE '{owner}\\_%'");
    let mut result = Ok(());
    for name in connect(external)?.query(&databases)? {
        let address = Address::External(Box::new(external.clone()));
        result = result.and(drop_database(&address, &name, ANSWER_WITHIN));
    }
    result
}

/// An option file with the login for the client programs.
pub(super) fn client_file(external: &External) -> String {
    let user = quoted(external.user.as_deref().unwrap_or("root"));
    let password = quoted(external.password.as_deref().unwrap_or_default());
    let (host, port) = (quoted(&external.host), external.port);
    format!(
        "[client]\nprotocol=tcp\nhost={host}\nport={port}\nuser={user}\npassword={password}\n{CHARACTERS}"
    )
}

/// Quotes a value for an option file.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_of_their_kind() {
        assert_eq!(
            version("5.5.5-10.11.6-MariaDB-0+deb12u1"),
            ("MariaDB", (10, 11), (10, 3))
        );
        assert_eq!(version("11.4.2-MariaDB"), ("MariaDB", (11, 4), (10, 3)));
        assert_eq!(version("8.0.36"), ("MySQL", (8, 0), (5, 7)));
    }
}
