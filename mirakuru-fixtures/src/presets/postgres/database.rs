//! [`PostgresDatabase`]: a database for one test, and the template that it is copied from.

use std::io;
use std::path::Path;

use mirakuru_core::Error;

use super::EXTRAS;
use super::load::{copy_extras, create_database};
use super::protocol::{Address, Client};
use crate::presets::connection::{TIDY_WITHIN, tidied};
use crate::presets::server::read_secret;

/// The facts about the template that are needed to copy it.
#[derive(Clone, Debug)]
pub(super) struct Template {
    has_settings: bool,
    owner: Option<String>,
}

impl Template {
    /// Reads the facts that were recorded when the template was loaded.
    pub(super) fn read(dir: &Path) -> Result<Template, Error> {
        let text = read_secret(dir, EXTRAS)?;
        let (has_settings, owner) = text.split_once(' ').unwrap_or_default();
        Ok(Template {
            has_settings: has_settings == "true",
            owner: (!owner.is_empty()).then(|| owner.to_owned()),
        })
    }
}

/// Creates a database: a copy of the template, or an empty one if there is no template.
pub(super) fn copy(
    client: &mut Client,
    address: &Address,
    template: Option<&Template>,
    name: &str,
) -> io::Result<()> {
    let version = client.version;
    let Some(template) = template else {
        let statement = create_database(address, name, "template0", None, version);
        return client.query(&statement).map(drop);
    };
    let owner = template.owner.as_deref();
    let from = address.template();
    client.query(&create_database(address, name, &from, owner, version))?;
    if template.has_settings {
        client.query(&copy_extras(&from, name))?;
    }
    Ok(())
}

/// A database of a [`Postgres`](super::Postgres) for one test. Dropping the value closes the
/// connections to the database and drops the database. If that takes more than a second, mirakuru
/// stops waiting, and the database is removed with the server at the latest.
#[derive(Debug)]
pub struct PostgresDatabase {
    pub(super) name: String,
    pub(super) url: String,
    pub(super) address: Address,
}

impl PostgresDatabase {
    /// The URL: `postgresql://postgres:PASSWORD@127.0.0.1:PORT/NAME`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// The name, which is unique on the server.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for PostgresDatabase {
    fn drop(&mut self) {
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        // The server completes the statement even if this wait times out.
        let dropped = self
            .address
            .connect_within(self.address.shared(), TIDY_WITHIN)
            .and_then(|mut client| client.query(&statement));
        tidied(&format!("drop the database {}", self.name), dropped.map(drop));
    }
}
