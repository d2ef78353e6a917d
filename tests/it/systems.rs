//! Services that need each other: stacked attributes, structs, statics, plain code.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use mirakuru::{Banner, Executor, ExecutorBuilder, OutputExecutor, SimpleExecutor};

/// Says that it is there after so many milliseconds.
fn ready_after(milliseconds: u32) -> ExecutorBuilder<Banner> {
    Executor::builder(format!(
        "sleep {}; echo ready; exec sleep 60",
        f64::from(milliseconds) / 1000.0
    ))
    .shell(true)
    .wait_for(Banner::matching("ready"))
}

/// What the service has in its variable `NEEDS`.
fn needs(executor: &Executor<impl mirakuru::Readiness>) -> String {
    executor.envs()["NEEDS".as_ref() as &std::ffi::OsStr]
        .to_string_lossy()
        .into_owned()
}

#[mirakuru::fixture(ready_after(50).name("the database"))]
#[mirakuru::fixture(cmd = "sleep 60", env = ("NEEDS", format!("{}/{}", db.name(), db.pid())))]
#[test]
fn a_fixture_that_stands_above_is_in_scope_below(db: &OutputExecutor, app: &SimpleExecutor) {
    assert_eq!(needs(app), format!("the database/{}", db.pid()));
}

#[mirakuru::fixture(ready_after(0), name = db)]
#[mirakuru::fixture(cmd = "sleep 60", env = ("NEEDS", db.pid().to_string()))]
#[test]
fn a_fixture_without_a_parameter_has_the_name_that_its_attribute_gives(app: &SimpleExecutor) {
    let pid: u32 = needs(app).parse().unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
}

/// When the recipe was made.
fn now() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_millis().to_string()
}

#[mirakuru::fixture(ready_after(1500))]
#[mirakuru::fixture(ready_after(20))]
#[mirakuru::fixture(ready_after(20).env("NEEDS", { let _ = quick; now() }))]
#[mirakuru::fixture(ready_after(0).env("NEEDS", { let _ = (slow, quick); now() }))]
#[test]
fn a_service_starts_when_those_that_it_names_are_ready(
    slow: &OutputExecutor,
    quick: &OutputExecutor,
    second: &OutputExecutor,
    last: &OutputExecutor,
) {
    let _ = (slow, quick);
    let made = |executor| needs(executor).parse::<u128>().unwrap();
    // The last waited for the slow one, and the second did not.
    let between = made(last).saturating_sub(made(second));
    assert!(between > 700, "{between} ms");
}

/// Writes its name into the file when it is asked to end.
fn notes_its_end(name: &str, file: &Path) -> ExecutorBuilder<Banner> {
    let script = "trap 'echo $0 >> \"$1\"; exit 0' TERM; echo ready; while :; do sleep 0.01; done";
    Executor::builder(["sh", "-c", script, name])
        .arg(file)
        .wait_for(Banner::matching("ready"))
}

struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("mirakuru-systems-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }

    fn file(&self) -> std::path::PathBuf {
        self.0.join("ends")
    }

    fn ends(&self) -> String {
        std::fs::read_to_string(self.file()).unwrap_or_default()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn who_needs_others_ends_before_them() {
    fn run(file: &Path) {
        let file = file.to_owned();
        FILE.set(file);
        #[mirakuru::fixture(notes_its_end("database", &FILE.take()), name = db)]
        #[mirakuru::fixture(notes_its_end("server", &file_of(db)), name = server)]
        #[mirakuru::fixture(notes_its_end("worker", &file_of(server)))]
        #[test]
        fn test(worker: &OutputExecutor) {
            assert!(worker.is_running());
        }
        test();
    }
    let scratch = Scratch::new("ends");
    run(&scratch.file());
    assert_eq!(scratch.ends(), "worker\nserver\ndatabase\n");
}

thread_local! {
    static FILE: std::cell::RefCell<std::path::PathBuf> = std::cell::RefCell::default();
}

fn file_of(executor: &OutputExecutor) -> std::path::PathBuf {
    executor.command().rsplit(' ').next().unwrap().into()
}
