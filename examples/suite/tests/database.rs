//! One PostgreSQL server for all tests. Each test gets a database that already contains the schema.

use std::process::Command;

use mirakuru::presets;

#[mirakuru::fixture(
    presets::postgres().load_sql("CREATE TABLE orders (id SERIAL PRIMARY KEY, tea TEXT NOT NULL)")
)]
static POSTGRES: presets::Postgres;

/// Sends a statement with `psql`. Any client that takes a URL would work.
fn psql(database: &presets::PostgresDatabase, statement: &str) -> String {
    let output = Command::new("psql")
        .arg(database.url())
        .args([
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "--command",
            statement,
        ])
        .output()
        .expect("psql comes with PostgreSQL");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn the_first_order() {
    let database = POSTGRES.database(); // A copy of the template, created in milliseconds.
    let id = psql(
        &database,
        "INSERT INTO orders (tea) VALUES ('sencha') RETURNING id",
    );
    assert_eq!(id, "1");
}

#[test]
fn no_order_of_anybody_else() {
    let database = POSTGRES.database();
    assert_eq!(psql(&database, "SELECT count(*) FROM orders"), "0");
    psql(
        &database,
        "INSERT INTO orders (tea) VALUES ('assam'), ('lapsang')",
    );
    assert_eq!(psql(&database, "SELECT count(*) FROM orders"), "2");
}
