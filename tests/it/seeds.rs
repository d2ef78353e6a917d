//! Tests users' own presets whose data is kept from one run to the next: `Recipe::seed_key` and
//! `prepare_once`.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::common::{LONG, alive, error_of};
use mirakuru::{Banner, Error, Executor, ExecutorBuilder, NoWait, OutputExecutor, Recipe};

/// A server that reads names from a pipe in its directory, keeps them in memory, and writes them to
/// a file when it ends. The pipe is left behind, as a socket might be.
const SERVER: &str = r#"
    cd "$0"
    [ -p in ] || mkfifo in
    exec 3<>in
    names=$(cat data 2>/dev/null)
    trap 'echo "$names" >data; exit 0' TERM
    echo "has:$names"
    while read -r name <&3; do names="$names $name"; echo "has:$names"; done
"#;

#[derive(Clone, Copy)]
struct Names<'a> {
    key: Option<&'a str>,
    names: &'a [&'a str],
    version: &'a str,
    prepared: &'a AtomicU32,
    set_up: &'a AtomicU32,
}

struct RunningNames(OutputExecutor);

impl Recipe for Names<'_> {
    type Readiness = Banner;
    type Handle = RunningNames;

    fn executor(&self) -> Result<ExecutorBuilder<Banner>, Error> {
        Ok(Executor::builder(["sh", "-c", SERVER, "{dir}"])
            .env("VERSION", self.version)
            .unprivileged(["nobody"])
            .wait_for(Banner::matching("^has:(?<names>.*)"))
            .timeout(LONG))
    }

    fn prepare(&self, executor: &mut Executor<Banner>) -> Result<(), Error> {
        self.prepared.fetch_add(1, Ordering::Relaxed);
        fs::write(executor.dir().join("prepared"), "").map_err(|error| Error::other("prepare it", error))
    }

    fn set_up(&self, executor: &mut Executor<Banner>) -> Result<(), Error> {
        self.set_up.fetch_add(1, Ordering::Relaxed);
        for name in self.names {
            if *name == "mallory" {
                return Err(Error::other("load the names", "mallory is not welcome"));
            }
            let mark = executor.mark();
            OpenOptions::new()
                .write(true)
                .open(executor.dir().join("in"))
                .and_then(|mut pipe| writeln!(pipe, "{name}"))
                .map_err(|error| Error::other("load the names", error))?;
            executor.wait_for_line(&mark, format!(" {name}$"), LONG)?;
        }
        Ok(())
    }

    fn seed_key(&self) -> Option<String> {
        self.key.map(str::to_owned)
    }

    fn handle(self, executor: Executor<Banner>) -> Result<RunningNames, Error> {
        Ok(RunningNames(executor))
    }
}

/// A key that no other run of these tests uses.
fn new_key(name: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    format!("{name} {} {}", std::process::id(), now.as_nanos())
}

/// How often `prepare` and `set_up` were called.
fn counts(names: &Names<'_>) -> [u32; 2] {
    [names.prepared, names.set_up].map(|count| count.load(Ordering::Relaxed))
}

#[test]
fn a_preset_of_a_user_is_set_up_once_for_a_key() {
    let (key, other_key) = (new_key("names"), new_key("other"));
    let (prepared, set_up) = (AtomicU32::new(0), AtomicU32::new(0));
    let names = Names {
        key: Some(&key),
        names: &["ada", "grace"],
        version: "1",
        prepared: &prepared,
        set_up: &set_up,
    };
    let begins_with = |names: Names<'_>| {
        let server = names.start().unwrap();
        assert!(server.0.dir().join("prepared").exists());
        // The first start with a key starts the server twice. These are the names that the second
        // start printed.
        server.0.captured("names").unwrap().to_owned()
    };
    let two = thread::scope(|scope| {
        let starts = [(); 2].map(|()| scope.spawn(|| begins_with(names)));
        starts.map(|start| start.join().unwrap())
    });
    assert_eq!(two, [" ada grace", " ada grace"]);
    assert_eq!(counts(&names), [1, 1], "two at once make one");
    assert_eq!(begins_with(names), " ada grace");
    assert_eq!(counts(&names), [1, 1], "a later start begins with the copy");

    let other = Names {
        key: Some(&other_key),
        names: &["joan"],
        ..names
    };
    assert_eq!(begins_with(other), " joan");
    assert_eq!(counts(&names), [2, 2], "another key is another seed");
    let other = Names {
        version: "2",
        ..names
    };
    assert_eq!(begins_with(other), " ada grace");
    assert_eq!(counts(&names), [3, 3], "another recipe is another seed");
    for round in 4..=5 {
        assert_eq!(begins_with(Names { key: None, ..names }), "");
        assert_eq!(counts(&names), [round, round], "nothing is kept without a key");
    }
}

#[test]
fn a_service_that_began_with_a_seed_can_be_restarted() {
    let key = new_key("restart");
    let (prepared, set_up) = (AtomicU32::new(0), AtomicU32::new(0));
    let names = Names {
        key: Some(&key),
        names: &["ada"],
        version: "1",
        prepared: &prepared,
        set_up: &set_up,
    };
    for _ in 0..2 {
        let mut server = names.start().unwrap().0;
        server.restart().unwrap();
        assert_eq!(server.captured("names"), Some(" ada"));
        server.stop().unwrap();
    }
    assert_eq!(counts(&names), [1, 1]);
}

#[test]
fn an_error_of_a_set_up_names_the_key_and_is_not_kept() {
    let key = new_key("fails");
    let (prepared, set_up) = (AtomicU32::new(0), AtomicU32::new(0));
    let names = Names {
        key: Some(&key),
        names: &["ada", "mallory"],
        version: "1",
        prepared: &prepared,
        set_up: &set_up,
    };
    for round in 1..=2 {
        let message = error_of(names.start().map(|server| server.0)).to_string();
        let expected =
            format!("failed to run the seed `{key}`: failed to load the names: mallory is not welcome");
        assert!(message.contains(&expected), "{message}");
        assert_eq!(counts(&names), [round, round]);
    }
    let well = Names {
        names: &["ada"],
        ..names
    };
    let server = well.start().unwrap().0;
    let pid = server.pid();
    drop(server);
    assert!(!alive(pid));
    assert_eq!(counts(&names), [3, 3]);
}

struct Index<'a> {
    key: &'a str,
    made: &'a AtomicU32,
    fails: bool,
}

impl Recipe for Index<'_> {
    type Readiness = NoWait;
    type Handle = Executor<NoWait>;

    fn executor(&self) -> Result<ExecutorBuilder<NoWait>, Error> {
        Ok(Executor::builder("sleep 100"))
    }

    fn prepare(&self, executor: &mut Executor<NoWait>) -> Result<(), Error> {
        mirakuru::prepare_once(executor, self.key, |dir| {
            self.made.fetch_add(1, Ordering::Relaxed);
            fs::write(dir.join("index"), "a b c")?;
            match self.fails {
                true => Err(std::io::Error::other("the disk is on fire")),
                false => Ok(()),
            }
        })
    }

    fn handle(self, executor: Executor<NoWait>) -> Result<Executor<NoWait>, Error> {
        Ok(executor)
    }
}

#[test]
fn what_a_service_is_prepared_with_is_made_once_for_a_key() {
    let (key, made) = (new_key("an/index"), AtomicU32::new(0));
    let start = |fails| {
        let index = Index {
            key: &key,
            made: &made,
            fails,
        };
        index.start()
    };
    for round in 1..=2 {
        let message = error_of(start(true)).to_string();
        assert_eq!(message, format!("failed to make `{key}`: the disk is on fire"));
        assert_eq!(made.load(Ordering::Relaxed), round);
    }
    for _ in 0..2 {
        let service = start(false).unwrap();
        assert_eq!(fs::read_to_string(service.dir().join("index")).unwrap(), "a b c");
    }
    assert_eq!(made.load(Ordering::Relaxed), 3);
}
