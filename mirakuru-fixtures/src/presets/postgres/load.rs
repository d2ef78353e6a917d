//! Loads a recipe's SQL into the template of all databases. Copies the template's settings, which
//! `CREATE DATABASE` leaves out.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use mirakuru_core::__private::literal;
use mirakuru_core::{Error, Stdio};

use super::protocol::{Address, Client};
use crate::presets::failed;
use crate::presets::server::{clean_program, last_lines};
use crate::presets::sql::{Dialect, Script};

/// Time limit for one script.
const LOAD_WITHIN: Duration = Duration::from_secs(900);

/// Loads scripts into a database with `psql`. If there is no `psql`, sends each script as one
/// query.
pub(super) fn load(
    scripts: &[Script],
    psql: Option<&Path>,
    address: &Address,
    database: &str,
) -> Result<(), Error> {
    for script in scripts {
        let text = script.read(Dialect::Psql)?;
        match psql {
            Some(psql) => run_psql(psql, script, &text, address, database)?,
            None => {
                let run = || -> io::Result<()> {
                    let mut client = address.connect(database)?;
                    client.within(LOAD_WITHIN)?;
                    client.query(&String::from_utf8_lossy(&text)).map(drop)
                };
                run().map_err(|source| failed(script.attempt(), source))?;
            }
        }
    }
    Ok(())
}

fn run_psql(
    psql: &Path,
    script: &Script,
    text: &[u8],
    address: &Address,
    database: &str,
) -> Result<(), Error> {
    let recipe = clean_program(psql)
        .args(["--no-psqlrc", "--quiet", "--no-password"])
        .args(["--set", "ON_ERROR_STOP=1", "--dbname"])
        .arg(literal(database))
        .arg("--username")
        .arg(literal(address.user()))
        .env("PGCLIENTENCODING", "UTF8")
        .env("PGOPTIONS", "-c client_min_messages=warning");
    let (recipe, host, port) = match address {
        Address::Socket { dir, port } => (recipe, literal(dir), *port),
        Address::External(external, owner) => (
            recipe
                .env(
                    "PGPASSWORD",
                    literal(external.password.as_deref().unwrap_or_default()),
                )
                .env("PGAPPNAME", owner),
            literal(&external.host),
            external.port,
        ),
    };
    let mut recipe = recipe
        .arg("--host")
        .arg(host)
        .args(["--port", &port.to_string(), "--file"]);
    recipe = match script {
        // Given the path, `psql` can name the file in messages and find the files that `\ir`
        // includes.
        Script::File(path) => recipe.arg(literal(path)),
        Script::Text(_) => recipe.arg("-").stdin(Stdio::piped()),
    };
    let mut psql = recipe.start()?;
    if let Some(mut stdin) = psql.take_stdin() {
        // If `psql` has exited, its output says why.
        let _ = stdin.write_all(text);
    }
    match psql.wait(LOAD_WITHIN)?.success() {
        true => Ok(()),
        false => Err(Error::other(script.attempt(), last_lines(&psql))),
    }
}

/// The statement that copies a database.
pub(super) fn create_database(
    address: &Address,
    name: &str,
    template: &str,
    owner: Option<&str>,
    version: u32,
) -> String {
    // `file_copy` takes a quarter as long as a copy through the log. But it flushes all files to
    // disk, which would slow down the other users of an external server. Versions before 15 always
    // copy files.
    let strategy = match (address, version) {
        (Address::Socket { .. }, 150_000..) => " STRATEGY file_copy",
        _ => "",
    };
    let owner = owner.map_or_else(String::new, |owner| format!(" OWNER {owner}"));
    format!("CREATE DATABASE {name} TEMPLATE {template}{owner}{strategy}")
}

/// Returns the template's owner if that is not `user`, and whether the template has settings,
/// grants or a comment.
pub(super) fn extras(client: &mut Client, template: &str, user: &str) -> io::Result<(Option<String>, bool)> {
    let user = user.replace('\'', "''");
    let owner = client.query(&format!(
        "SELECT quote_ident(rolname) FROM pg_database d JOIN pg_roles r ON r.oid = datdba \
         WHERE datname = '{template}' AND rolname <> '{user}'"
    ))?;
    let found = client.query(&format!(
        "SELECT 1 FROM pg_database d WHERE datname = '{template}' AND (datacl IS NOT NULL \
         OR EXISTS (SELECT FROM pg_db_role_setting WHERE setdatabase = d.oid) \
         OR EXISTS (SELECT FROM pg_shdescription WHERE objoid = d.oid AND classoid = \
         'pg_database'::regclass))"
    ))?;
    Ok((owner.into_iter().next(), !found.is_empty()))
}

/// The SQL that gives a copy of the template the same settings, grants and comment. It writes to
/// the system catalogs, because no statement reproduces every kind of value.
pub(super) fn copy_extras(template: &str, name: &str) -> String {
    let ids = format!(
        "(SELECT oid FROM pg_database WHERE datname = '{template}') t (old), \
         (SELECT oid FROM pg_database WHERE datname = '{name}') n (new)"
    );
    let is_database = "'pg_database'::regclass";
    format!(
        "INSERT INTO pg_db_role_setting SELECT new, setrole, setconfig FROM pg_db_role_setting, {ids} \
         WHERE setdatabase = old;\n\
         UPDATE pg_database d SET datacl = o.datacl FROM pg_database o \
         WHERE o.datname = '{template}' AND d.datname = '{name}' AND o.datacl IS NOT NULL;\n\
         INSERT INTO pg_shdepend SELECT dbid, classid, new, objsubid, refclassid, refobjid, deptype \
         FROM pg_shdepend, {ids} WHERE classid = {is_database} AND objid = old AND deptype = 'a';\n\
         INSERT INTO pg_shdescription SELECT new, classoid, description FROM pg_shdescription, {ids} \
         WHERE classoid = {is_database} AND objoid = old;"
    )
}
