//! Decides whether two services of a run are the same: they are if their recipes have the same key.
//!
//! The key is a hash of the recipe's data. Each type in a recipe is destructured into all its
//! fields, so a new field does not compile until its author decides whether it counts.
//!
//! | counts | does not count |
//! | --- | --- |
//! | the fixture's name, the types of the recipe and of its condition, without their modules | the modules: a file that many test binaries include is another module in each |
//! | every setter of the recipe and of its condition | `queue`, `optional`: they only decide whether this process waits, or skips its test |
//! | the value of `{env:VAR}` | the variables that the service inherits |
//! | the program's file: path, inode, size and time of change | files that the service reads |
//! | the working directory, unless the recipe sets an absolute one or `"{dir}"` | ports, `{dir}`, `{id}`: they are chosen at the start |
//! | the network namespace | |

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::readiness::Readiness;
use crate::recipe::builder::{ExecutorBuilder, Spec, Stdio, StdioKind};
use crate::recipe::program::{candidates, file_identity};
use crate::sys;
use crate::util::hash::{self, Fnv1a};

/// The key of a recipe, for use in file names. Two services with the same key are the same service.
/// `kind` is the type of the recipe.
pub fn recipe_key<R: Readiness>(name: &str, kind: &str, recipe: &ExecutorBuilder<R>) -> String {
    let ExecutorBuilder { spec, readiness } = recipe;
    let mut key = Key([Fnv1a(0xcbf2_9ce4_8422_2325), Fnv1a(0x6c62_272e_07bb_0142)]);
    hash::text(&mut key, name.as_ref());
    hash::text(&mut key, without_paths(kind).as_ref());
    hash::text(&mut key, without_paths(std::any::type_name::<R>()).as_ref());
    fingerprint(spec, &mut key);
    readiness.fingerprint(&mut key);
    hash::number(&mut key, sys::proc::net_namespace());
    let Key([one, other]) = key;
    format!("{:016x}{:016x}", one.finish(), other.finish())
}

/// Two hashes of the same data, so that it is practically impossible for two recipes of a run to
/// have the same key by chance.
struct Key([Fnv1a; 2]);

impl Hasher for Key {
    fn write(&mut self, bytes: &[u8]) {
        self.0.iter_mut().for_each(|hash| hash.write(bytes));
    }
    fn finish(&self) -> u64 {
        self.0[0].finish()
    }
}

fn fingerprint(spec: &Spec, key: &mut dyn Hasher) {
    let Spec {
        command,
        env,
        env_clear,
        current_dir,
        stdin,
        stdout,
        stderr,
        shell,
        name,
        timeout,
        stop_signal,
        stop_timeout,
        kill_signal,
        expected_exit,
        fail_on,
        log_limit,
        log_files,
        files,
        listen,
        queue: _,
        low_ports,
        optional: _,
        uid,
        gid,
        groups,
        umask,
        on_end,
        not_ours,
        label: _,
        program_variable: _,
    } = spec;
    command.fingerprint(key);
    option(key, on_end.as_ref(), |key, command| command.fingerprint(key));
    hash::number(key, env.len() as u64);
    for (name, value) in env {
        hash::text(key, name.as_ref());
        option(key, value.as_ref(), |key, value| hash::text(key, value.as_ref()));
    }
    hash::number(key, u64::from(*env_clear));
    match current_dir {
        Some(dir) => hash::path(key, dir),
        // A service without `current_dir` runs in this process's directory, and its arguments may
        // depend on that directory.
        None => hash::text(key, std::env::current_dir().unwrap_or_default().as_os_str()),
    }
    for Stdio(stream) in [stdin, stdout, stderr] {
        match stream {
            StdioKind::Null => hash::number(key, 0),
            StdioKind::Inherit => hash::number(key, 1),
            StdioKind::Piped => hash::number(key, 2),
            // The file itself is hashed, not the number of its descriptor in this process.
            StdioKind::File(file) => {
                let file = file.metadata().map_or((0, 0), |file| (file.dev(), file.ino()));
                hash::number(key, file.0);
                hash::number(key, file.1);
            }
        }
    }
    hash::number(key, u64::from(*shell));
    option(key, name.as_ref(), |key, name| hash::text(key, name.as_ref()));
    for time in [timeout, stop_timeout] {
        hash::number(key, time.as_nanos() as u64);
    }
    for signal in [stop_signal, kill_signal] {
        hash::number(key, signal.number() as u64);
    }
    option(key, expected_exit.as_ref(), |key, code| {
        hash::number(key, *code as u64)
    });
    hash::number(key, fail_on.len() as u64);
    fail_on
        .iter()
        .for_each(|pattern| hash::text(key, pattern.as_ref()));
    hash::number(key, *log_limit);
    hash::number(key, log_files.len() as u64);
    log_files.iter().for_each(|path| hash::path(key, path));
    hash::number(key, files.len() as u64);
    for (path, text) in files {
        hash::text(key, path.as_ref());
        hash::text(key, text.as_ref());
    }
    hash::number(key, listen.len() as u64);
    for (name, addr) in listen {
        option(key, name.as_ref(), |key, name| hash::text(key, name.as_ref()));
        hash::text(key, addr.as_ref());
    }
    hash::number(key, u64::from(*low_ports));
    for number in [uid, gid, umask] {
        option(key, number.as_ref(), |key, number| {
            hash::number(key, u64::from(*number));
        });
    }
    option(key, groups.as_ref(), |key, groups| {
        hash::number(key, groups.len() as u64);
        groups
            .iter()
            .for_each(|group| hash::number(key, u64::from(*group)));
    });
    option(key, not_ours.as_ref(), |key, variable| {
        hash::text(key, variable.as_ref())
    });
    if let Some(file) = program_file(spec).filter(|_| not_ours.is_none()) {
        hash::path(key, &file);
        hash::text(key, file_identity(&file).unwrap_or_default().as_ref());
    }
}

fn option<T>(key: &mut dyn Hasher, value: Option<&T>, feed: impl FnOnce(&mut dyn Hasher, &T)) {
    hash::number(key, u64::from(value.is_some()));
    if let Some(value) = value {
        feed(key, value);
    }
}

/// The file that the service will execute, if the recipe knows it before a start.
fn program_file(spec: &Spec) -> Option<PathBuf> {
    let program = spec.command.program().filter(|_| !spec.shell)?;
    if program.as_bytes().contains(&b'{') {
        return None;
    }
    let changed = spec.env.iter().rev().find(|(name, _)| name == "PATH");
    let path = match changed {
        Some((_, value)) => value.clone(),
        None if spec.env_clear => None,
        None => std::env::var_os("PATH"),
    };
    let mut environment = BTreeMap::new();
    if let Some(path) = path {
        environment.insert("PATH".into(), path);
    }
    let dir = spec.current_dir.as_deref().unwrap_or(Path::new(""));
    candidates(&program, &environment)
        .into_iter()
        .map(|file| dir.join(file))
        .find(|file| file.is_file())
}

/// The name of a type, without its modules. If several test binaries include the same file, its
/// types have a different path in each.
fn without_paths(name: &str) -> String {
    let mut short = String::new();
    let mut word = String::new();
    for char in name.chars() {
        match char {
            ':' => word.clear(),
            char if char.is_alphanumeric() || char == '_' => word.push(char),
            char => {
                short.push_str(&word);
                word.clear();
                short.push(char);
            }
        }
    }
    short + &word
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Duration;

    use super::recipe_key as key;
    use super::*;
    use crate::executor::Executor;
    use crate::readiness::{Banner, Check, Exec, NoWait, PidFile, Tcp, Udp, UnixSocket};
    use crate::recipe::signal::Signal;

    fn key_of<R: Readiness>(recipe: &ExecutorBuilder<R>) -> String {
        key("A", "", recipe)
    }

    fn recipe() -> ExecutorBuilder<NoWait> {
        Executor::builder("server --port {port}").current_dir("{dir}")
    }

    #[test]
    fn the_key_is_the_name_the_kind_and_the_recipe() {
        assert_eq!(key_of(&recipe()), key_of(&recipe()));
        assert_ne!(key("A", "", &recipe()), key("B", "", &recipe()));
        assert_ne!(key("A", "", &recipe()), key("A", "presets::Server", &recipe()));
        assert_eq!(key("A", "a::Server", &recipe()), key("A", "b::Server", &recipe()));
    }

    #[test]
    fn every_setter_that_makes_another_service_changes_the_key() {
        let file = || File::open("/dev/null").expect("it is always there");
        let recipes = [
            recipe(),
            Executor::builder("server --port {port:A}").current_dir("{dir}"),
            Executor::builder(["server", "--port", "{port}"]).current_dir("{dir}"),
            recipe().arg("-v"),
            recipe().args(["-v", "-v"]),
            recipe().env("X", "1"),
            recipe().env("X", "2"),
            recipe().envs([("X", "1"), ("Y", "1")]),
            recipe().env_remove("X"),
            recipe().env_clear(),
            recipe().current_dir("/"),
            recipe().stdin(Stdio::inherit()),
            recipe().stdin(Stdio::piped()),
            recipe().stdin(file()),
            recipe().stdin(File::open("/dev/zero").expect("it is always there")),
            recipe().stdout(Stdio::null()),
            recipe().stderr(Stdio::null()),
            recipe().shell(true),
            recipe().name("other"),
            recipe().timeout(Duration::from_secs(1)),
            recipe().stop_timeout(Duration::from_secs(1)),
            recipe().stop_signal(Signal::Int),
            recipe().kill_signal(Signal::Int),
            recipe().expected_exit(3),
            recipe().fail_on("FATAL"),
            recipe().log_limit(1 << 20),
            recipe().file("a", "b"),
            recipe().file("ab", ""),
            recipe().listen("127.0.0.1:{port:L}"),
            recipe().listen_as("L", "127.0.0.1:{port:L}"),
            recipe().uid(1),
            recipe().gid(1),
            recipe().umask(1),
            recipe().low_ports(true),
            recipe().groups([]),
            recipe().groups([1]),
        ];
        let keys: Vec<String> = recipes.iter().map(key_of).collect();
        for (at, one) in keys.iter().enumerate() {
            for (other_at, other) in keys[..at].iter().enumerate() {
                assert_ne!(one, other, "{at} and {other_at}");
            }
        }
        assert_eq!(key_of(&recipe().queue(true)), keys[0]);
        assert_eq!(key_of(&recipe().optional()), keys[0]);
        assert_eq!(
            key_of(&recipe().stdin(file())),
            key_of(&recipe().stdin(file())),
            "a file is the same whatever number it has in this process"
        );
    }

    #[test]
    fn every_setting_of_a_condition_changes_the_key() {
        let keys = [
            key_of(&recipe()),
            key_of(&recipe().wait_for(Tcp::port(1))),
            key_of(&recipe().wait_for(Udp::addr("127.0.0.1:1"))),
            key_of(&recipe().wait_for(Tcp::port(2))),
            key_of(&recipe().wait_for(Tcp::addr("127.0.0.1:{port}"))),
            key_of(&recipe().wait_for(UnixSocket::path("{dir}/s"))),
            key_of(&recipe().wait_for(UnixSocket::path("s"))),
            key_of(&recipe().wait_for(PidFile::path("{dir}/s"))),
            key_of(&recipe().wait_for(Banner::matching("up"))),
            key_of(&recipe().wait_for(Banner::matching("up").stdout())),
            key_of(&recipe().wait_for(Banner::matching("up").stderr())),
            key_of(&recipe().wait_for(Banner::matching("up").times(2))),
            key_of(&recipe().wait_for(Exec::succeeds("true"))),
            key_of(&recipe().wait_for(Check::new("it is up", |_| Ok(true)))),
            key_of(&recipe().wait_for(Check::new("it is high", |_| Ok(true)))),
            key_of(&recipe().wait_for(NoWait.and(Tcp::port(1)))),
            key_of(&recipe().wait_for(NoWait.and(Tcp::port(2)))),
            key_of(&recipe().wait_for(NoWait.or(Tcp::port(1)))),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[..at].contains(key), "{at}");
        }
    }

    #[cfg(feature = "http")]
    #[test]
    fn every_setting_of_http_changes_the_key() {
        use crate::readiness::Http;
        let http = || Http::post("http://127.0.0.1:{port}/");
        let conditions = [
            http(),
            Http::get("http://127.0.0.1:{port}/"),
            Http::post("http://127.0.0.1:{port}/x"),
            http().status(204),
            http().status("2.."),
            http().header("A", "b"),
            http().header("Ab", ""),
            http().body("b"),
            http().form([("A", "b")]),
        ];
        let keys: Vec<String> = conditions
            .into_iter()
            .map(|http| key_of(&recipe().wait_for(http)))
            .collect();
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[..at].contains(key), "{at}");
        }
    }

    #[test]
    fn a_type_of_the_users_is_known_by_its_name_and_its_sentence() {
        struct Mine(&'static str);
        impl Readiness for Mine {
            fn describe(&self) -> String {
                self.0.to_owned()
            }
            fn probe(&mut self, _: &crate::readiness::Probe<'_>) -> std::io::Result<bool> {
                Ok(true)
            }
        }
        let key = |sentence| key_of(&recipe().wait_for(Mine(sentence)));
        assert_eq!(key("it is up"), key("it is up"));
        assert_ne!(key("it is up"), key("it is high"));
        assert_ne!(
            key("it is up"),
            key_of(&recipe().wait_for(Check::new("it is up", |_| Ok(true))))
        );
    }

    #[test]
    fn a_variable_that_the_recipe_names_counts_with_its_value() {
        fn hashed(text: &str) -> u64 {
            let mut hasher = Fnv1a(0);
            hash::text(&mut hasher, text.as_ref());
            hasher.finish()
        }
        let value = std::env::var("PATH").expect("it is set");
        let mut expected = Fnv1a(0);
        hash::bytes(&mut expected, b"{env:PATH}");
        hash::bytes(&mut expected, value.as_bytes());
        assert_eq!(hashed("{env:PATH}"), expected.finish());
    }

    #[test]
    fn the_working_directory_counts_unless_the_recipe_sets_an_absolute_one() {
        fn text(spec: &Spec) -> Vec<u8> {
            struct Record(Vec<u8>);
            impl Hasher for Record {
                fn write(&mut self, bytes: &[u8]) {
                    self.0.extend_from_slice(bytes);
                }
                fn finish(&self) -> u64 {
                    0
                }
            }
            let mut record = Record(Vec::new());
            fingerprint(spec, &mut record);
            record.0
        }
        let here = std::env::current_dir().expect("it is there");
        let has_here = |recipe: ExecutorBuilder<NoWait>| {
            let text = text(&recipe.spec);
            let here = here.as_os_str().as_bytes();
            text.windows(here.len()).any(|window| window == here)
        };
        assert!(has_here(Executor::builder("server")));
        assert!(has_here(Executor::builder("server").current_dir("data")));
        assert!(!has_here(Executor::builder("server").current_dir("/data")));
        assert!(!has_here(Executor::builder("server").current_dir("{dir}")));
    }

    #[test]
    fn another_file_of_the_program_is_another_service() {
        let dir = std::env::temp_dir().join(format!("mirakuru-unit-{}-key", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a writable directory");
        let program = dir.join("server");
        let key = |text: &str| {
            std::fs::write(&program, text).expect("a writable directory");
            key_of(&Executor::builder([&program]))
        };
        assert_eq!(
            key_of(&Executor::builder([&program])),
            key_of(&Executor::builder([&program]))
        );
        assert_ne!(key("one"), key("another"));
        assert_ne!(
            key_of(&Executor::builder("server").env("PATH", &dir)),
            key_of(&Executor::builder("server").env("PATH", "/nowhere"))
        );
        std::fs::remove_dir_all(dir).expect("it is ours");
    }

    #[test]
    fn types_are_known_without_their_crates() {
        assert_eq!(
            without_paths("core::And<first::common::Ready, core::Tcp>"),
            without_paths("core::And<second::common::Ready, core::Tcp>")
        );
        assert_eq!(without_paths("a::B<(c::D, &[e::F; 3])>"), "B<(D, &[F; 3])>");
        assert_eq!(without_paths("fn(a::b::C) -> u8"), "fn(C) -> u8");
    }
}
