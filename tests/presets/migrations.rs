//! Tests an application's migrations with sqlx and refinery. They run once, on the template of all
//! databases.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use crate::common::{any_server, new_key, own_server, require};
use mirakuru::Recipe;
use mirakuru::presets::{self, Postgres, PostgresRecipe};
use sqlx::{Connection, PgConnection};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs the migrations with sqlx, as the guide shows.
fn migrate(url: &str, dir: &Path) -> Result<(), sqlx::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut connection = PgConnection::connect(url).await?;
        let migrations = sqlx::migrate::Migrator::new(dir).await?;
        Ok(migrations.run(&mut connection).await?)
    })
}

fn migrate_by_refinery(url: &str, dir: &Path) -> Result<(), Failure> {
    let mut client = postgres::Client::connect(url, postgres::NoTls)?;
    let migrations = refinery::load_sql_migrations(dir)?;
    refinery::Runner::new(&migrations).run(&mut client)?;
    Ok(())
}

fn text(url: &str, query: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut connection = PgConnection::connect(url).await.unwrap();
        sqlx::query_scalar(query)
            .fetch_one(&mut connection)
            .await
            .unwrap()
    })
}

/// A directory of migrations, which is removed on drop.
struct Migrations(PathBuf);

impl Migrations {
    /// Creates a directory with one migration, in the file `first`.
    fn new(name: &str, first: &str) -> Migrations {
        let dir = std::env::temp_dir().join(new_key(name).replace(' ', "-"));
        fs::create_dir(&dir).unwrap();
        let migrations = Migrations(dir);
        // The SQL is unique, so that the cache cannot have a result for it.
        migrations.add(
            first,
            &format!("CREATE TABLE users (name TEXT); -- {}", new_key("")),
        );
        migrations
    }

    fn add(&self, name: &str, sql: &str) {
        fs::write(self.0.join(name), sql).unwrap();
    }

    /// A recipe that runs these migrations as a seed, and counts the runs in `runs`.
    fn recipe<E: Into<Failure> + 'static>(
        &self,
        runs: &Arc<AtomicU32>,
        migrate: fn(&str, &Path) -> Result<(), E>,
    ) -> PostgresRecipe {
        let (dir, runs) = (self.0.clone(), Arc::clone(runs));
        let key = presets::hash_of_dir(&dir).unwrap();
        presets::postgres()
            .load_sql("CREATE TABLE loaded (x INT)")
            .seed(key, move |url| {
                runs.fetch_add(1, Ordering::Relaxed);
                migrate(url, &dir)
            })
    }
}

impl Drop for Migrations {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn migrations_of_sqlx_run_once_until_they_change() {
    if !own_server("postgres") || !require("psql") {
        return;
    }
    let migrations = Migrations::new("once", "1_users.sql");
    let runs = Arc::new(AtomicU32::new(0));
    let start = || migrations.recipe(&runs, migrate).start().unwrap();
    let two: Vec<Postgres> = thread::scope(|scope| {
        let starts = [scope.spawn(start), scope.spawn(start)];
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    assert_eq!(runs.load(Ordering::Relaxed), 1, "two at once make one seed");
    drop(two);

    let server = start();
    assert_eq!(
        runs.load(Ordering::Relaxed),
        1,
        "the second run runs no migration"
    );
    let database = server.database();
    let state = "SELECT count(*) || ' ' || max(installed_on) FROM _sqlx_migrations";
    let before = text(&database.url(), state);
    assert!(before.starts_with("1 "), "{before}");
    // The application also migrates when it starts, and finds nothing to do.
    migrate(&database.url(), &migrations.0).unwrap();
    assert_eq!(text(&database.url(), state), before, "nothing is left to migrate");
    let both = "SELECT concat((SELECT count(*) FROM loaded), ' ', (SELECT count(*) FROM users))";
    assert_eq!(text(&database.url(), both), "0 0");

    migrations.add("2_more.sql", "INSERT INTO users VALUES ('ada')");
    let changed = start();
    assert_eq!(runs.load(Ordering::Relaxed), 2, "a changed migration runs");
    assert_eq!(text(&changed.database().url(), "SELECT name FROM users"), "ada");
}

#[test]
fn migrations_of_refinery_run_once_until_they_change() {
    if !own_server("postgres") || !require("psql") {
        return;
    }
    let migrations = Migrations::new("refinery", "V1__users.sql");
    let runs = Arc::new(AtomicU32::new(0));
    let start = || migrations.recipe(&runs, migrate_by_refinery).start().unwrap();
    drop(start());
    let server = start();
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    let database = server.database();
    let state = "SELECT count(*) || ' ' || max(applied_on) FROM refinery_schema_history";
    let before = text(&database.url(), state);
    assert!(before.starts_with("1 "), "{before}");
    migrate_by_refinery(&database.url(), &migrations.0).unwrap();
    assert_eq!(text(&database.url(), state), before, "nothing is left to migrate");

    migrations.add("V2__more.sql", "INSERT INTO users VALUES ('ada')");
    let changed = start();
    assert_eq!(runs.load(Ordering::Relaxed), 2, "a changed migration runs");
    assert_eq!(text(&changed.database().url(), "SELECT name FROM users"), "ada");
}

#[test]
fn a_migration_that_fails_is_named_and_runs_again() {
    if !any_server("postgres") || !require("psql") {
        return;
    }
    let migrations = Migrations::new("fails", "1_users.sql");
    migrations.add("2_wrong.sql", "INSERT INTO nowhere VALUES (1)");
    let runs = Arc::new(AtomicU32::new(0));
    for round in 1..=2 {
        let error = migrations.recipe(&runs, migrate).start().map(drop).unwrap_err();
        let message = error.to_string();
        let key = presets::hash_of_dir(&migrations.0).unwrap();
        assert!(message.contains(&format!("run the seed `{key}`: ")), "{message}");
        assert!(message.contains("\"nowhere\" does not exist"), "{message}");
        assert_eq!(runs.load(Ordering::Relaxed), round, "an error is not kept");
    }
}
