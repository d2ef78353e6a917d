//! Tests of a user's workspace, in which one package tests a program of another package, under
//! cargo and nextest.
//!
//! This is a separate binary, because it runs cargo for a minute and must not run twice at the same
//! time.

mod common;
#[path = "common/fresh.rs"]
mod fresh;

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{FRESH_TARGET, Scratch};

/// A server that answers with its version and its features.
const DAEMON: &str = r#"
use std::io::{Read, Write};

fn main() {
    let addr = std::env::args().nth(1).expect("an address");
    let listener = std::net::TcpListener::bind(addr).expect("a free port");
    for stream in listener.incoming() {
        let mut stream = stream.expect("a connection");
        let _ = stream.read(&mut [0; 64]);
        let vip = if cfg!(feature = "vip") { "vip" } else { "plain" };
        let _ = write!(stream, "version {} {vip} pid {}\n", "ONE", std::process::id());
    }
}
"#;

/// Code that the tests of all workspaces use: sends the server a request and prints its answer.
const ASK: &str = r#"
use std::io::{Read, Write};

pub fn ask(shop: &mirakuru::TcpExecutor) {
    let mut stream = std::net::TcpStream::connect(shop.addr()).expect("it listens");
    stream.write_all(b"?").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    println!("answer: {answer}");
}
"#;

/// The build script of a library that both packages need. Like that of the crate `ring`, it runs
/// again if one of cargo's variables changes.
const BUILD_AGAIN: &str = r#"
fn main() {
    for name in ["CARGO_MANIFEST_DIR", "CARGO", "LD_LIBRARY_PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
}
"#;

/// A build script that runs in each build, and appends a line to a file.
const COUNT: &str = r#"
use std::io::Write;

fn main() {
    println!("cargo:rerun-if-changed=there-is-no-such-file");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/builds");
    let file = std::fs::OpenOptions::new().append(true).create(true).open(file);
    writeln!(file.expect("a writable directory"), "built").expect("a writable directory");
}
"#;

/// A test that waits for a hundred processes, which then ask for the program at the same time.
const MEET: &str = r#"
pub fn ask(n: usize) {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/met");
    std::fs::write(format!("{dir}/{n}"), "").expect("a writable directory");
    let begun = std::time::Instant::now();
    while std::fs::read_dir(dir).expect("a directory").count() < 100 {
        assert!(begun.elapsed().as_secs() < 60, "the others have not come");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(mirakuru::Bin::new("counted-server").path().expect("it is built").is_file());
}
"#;

/// The attribute as users write it. `{name}` is the name of the workspace.
const ATTRIBUTE: &str =
    r#"#[mirakuru::fixture(bin = "{name}-server", args = ["127.0.0.1:{port}"], tcp = "127.0.0.1:{port}")]"#;

struct Workspace {
    name: &'static str,
    dir: PathBuf,
    scratch: Scratch,
}

impl Workspace {
    /// Creates a workspace with these tests. Nothing in it is built yet.
    fn new(name: &'static str, tests: &str) -> Workspace {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("fresh")
            .join(format!("programs-{name}"));
        let _ = fs::remove_dir_all(&dir);
        let workspace = Workspace {
            name,
            dir,
            scratch: Scratch::new(),
        };
        let root = fresh::root();
        workspace.write(
            "Cargo.toml",
            &format!(
                "[workspace]\nmembers = [\"daemon\", \"e2e\", \"lib\"]\ndefault-members = \
                    [\"e2e\"]\nresolver = \"3\"\n\n\
                 [workspace.dependencies]\nmirakuru = {{ path = {root:?} }}\n{name}-lib = {{ path = \"lib\" \
                 }}\n\n\
                 [profile.ci]\ninherits = \"dev\"\n"
            ),
        );
        for (folder, rest) in [
            ("lib", String::new()),
            (
                "daemon",
                format!(
                    "[features]\nvip = []\n\n[dependencies]\n{name}-lib.workspace = true\n\n\
                     [[bin]]\nname = \"{name}-server\"\npath = \"src/main.rs\"\n"
                ),
            ),
            (
                "e2e",
                format!("[dependencies]\n{name}-lib.workspace = true\nmirakuru.workspace = true\n"),
            ),
        ] {
            let manifest = format!(
                "[package]\nname = \"{name}-{folder}\"\nedition = \"2024\"\npublish = false\n\n{rest}"
            );
            workspace.write(&format!("{folder}/Cargo.toml"), &manifest);
        }
        workspace.write("lib/src/lib.rs", "");
        workspace.write("lib/build.rs", BUILD_AGAIN);
        workspace.write("daemon/src/main.rs", DAEMON);
        workspace.write("e2e/src/lib.rs", ASK);
        let tests = tests.replace("ATTRIBUTE", ATTRIBUTE).replace("{name}", name);
        workspace.write(
            &format!("e2e/tests/{name}_tests.rs"),
            &format!("use {name}_e2e::ask;\nuse mirakuru::*;\n{tests}"),
        );
        fs::copy(root.join("Cargo.lock"), workspace.dir.join("Cargo.lock")).expect("our lock file");
        // The sources are new, so cargo builds them again, but a program of an earlier run could
        // remain.
        let _ = fs::remove_file(workspace.uplifted());
        workspace
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.dir.join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("the target directory");
        fs::write(path, text).expect("the target directory");
    }

    /// Edits the daemon's source.
    fn edit(&self, from: &str, to: &str) {
        let path = self.dir.join("daemon/src/main.rs");
        let text = fs::read_to_string(&path).expect("it was written");
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to)).expect("the target directory");
    }

    fn cargo(&self, args: &[&str]) -> Command {
        let mut command = fresh::cargo(&self.dir);
        command
            .args(args)
            .env("TMPDIR", self.scratch.path())
            .env_remove("XDG_RUNTIME_DIR");
        command
    }

    /// Runs `cargo test` with these arguments, and returns the output. All tests must pass.
    fn test(&self, args: &[&str]) -> String {
        let package = format!("{}-e2e", self.name);
        let mut command = self.cargo(&["test", "--package", &package]);
        fresh::succeed(command.args(args).args(["--", "--nocapture", "--test-threads=1"]))
    }

    /// The program that `cargo build` builds for the user.
    fn uplifted(&self) -> PathBuf {
        Path::new(FRESH_TARGET).join(format!("debug/{}-server", self.name))
    }
}

/// The daemon's answers in the output of a test, without process ids.
fn answers(output: &str) -> Vec<String> {
    let lines = output.lines().filter_map(|line| line.split("answer: ").nth(1));
    lines
        .filter_map(|line| line.split(" pid").next())
        .map(str::to_owned)
        .collect()
}

fn pids(output: &str) -> Vec<&str> {
    let lines = output.lines().filter(|line| line.contains("answer: "));
    lines.filter_map(|line| line.split(" pid ").nth(1)).collect()
}

#[test]
fn the_daemon_of_another_package_is_built_and_never_stale() {
    let workspace = Workspace::new(
        "edited",
        "ATTRIBUTE\n#[test]\nfn sells(shop: &TcpExecutor) { ask(shop); }\n\
         ATTRIBUTE\n#[test]\nfn buys(shop: &TcpExecutor) { ask(shop); }\n",
    );
    let output = workspace.test(&[]);
    assert_eq!(answers(&output), ["version ONE plain"; 2], "{output}");
    assert!(!workspace.uplifted().exists(), "the user has not built it");

    // The user builds the program with other features. mirakuru must not replace that file.
    fresh::succeed(&mut workspace.cargo(&["build", "--package", "edited-daemon", "--features", "vip"]));
    let before = fs::metadata(workspace.uplifted()).expect("it was built");
    workspace.edit("ONE", "TWO");
    let output = workspace.test(&[]);
    assert_eq!(answers(&output), ["version TWO plain"; 2], "{output}");
    let after = fs::metadata(workspace.uplifted()).expect("it is there still");
    assert_eq!((before.ino(), before.mtime()), (after.ino(), after.mtime()));

    // The builds of cargo and of mirakuru do not undo each other's work.
    let output = workspace.test(&[]);
    assert!(!output.contains("Compiling"), "{output}");
    let deps = || {
        let entries = fs::read_dir(Path::new(FRESH_TARGET).join("debug/deps")).expect("cargo's directory");
        let ours = entries.flatten().filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.contains("edited_") || name.contains("edited-")
        });
        let mut files: Vec<_> = ours
            .map(|entry| (entry.path(), entry.metadata().expect("it is there").mtime_nsec()))
            .collect();
        files.sort();
        files
    };
    let built = deps();
    assert!(built.len() > 3, "{built:?}");
    workspace.test(&[]);
    assert_eq!(deps(), built);
}

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn a_shared_service_of_an_older_program_is_another_one() {
    let workspace = Workspace::new(
        "shared",
        "ATTRIBUTE\nstatic SHOP: TcpExecutor;\n#[test]\nfn sells() { ask(&SHOP); }\n",
    );
    let run = || {
        let mut command = workspace.cargo(&["test", "--package", "shared-e2e", "--test", "shared_tests"]);
        // The session belongs to the nearest ancestor without the variable, which is this process.
        command
            .env("MIRAKURU_SESSION_ID", "kept")
            .args(["--", "--nocapture"]);
        fresh::succeed(&mut command)
    };
    let (first, second) = (run(), run());
    assert_eq!(answers(&first), ["version ONE plain"], "{first}");
    assert_eq!(pids(&first), pids(&second), "the session has one service");
    workspace.edit("ONE", "TWO");
    let third = run();
    assert_eq!(answers(&third), ["version TWO plain"], "{third}");
    assert_ne!(pids(&first), pids(&third));
}

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn a_hundred_processes_build_once() {
    if !fresh::nextest("programs of the workspace") {
        return;
    }
    let test = |n: usize| format!("#[test]\nfn asks_{n}() {{ ask({n}); }}\n");
    let workspace = Workspace::new("counted", &(0..100).map(test).collect::<String>());
    workspace.write("daemon/build.rs", COUNT);
    workspace.write("e2e/src/lib.rs", MEET);
    fs::create_dir(workspace.dir.join("e2e/met")).expect("the target directory");
    let output = fresh::succeed(&mut workspace.cargo(&[
        "nextest",
        "run",
        "--package",
        "counted-e2e",
        "--test-threads=100",
        "--color=never",
    ]));
    assert!(output.contains("100 passed"), "{output}");
    let builds = fs::read_to_string(workspace.dir.join("daemon/builds")).expect("it was built");
    assert_eq!(builds.lines().count(), 1, "{output}");
}

#[test]
fn everything_else_that_can_be_built() {
    let workspace = Workspace::new(
        "kinds",
        r#"
#[fixture(
    bin = "kinds-daemon:kinds-server",
    features = ["vip"],
    profile = "ci",
    args = ["127.0.0.1:{port}"],
    tcp = "127.0.0.1:{port}"
)]
#[test]
fn a_with_a_feature(shop: &TcpExecutor) { ask(shop); }
#[fixture(example = "kinds-example", args = ["127.0.0.1:{port}"], tcp = "127.0.0.1:{port}")]
#[test]
fn b_an_example(shop: &TcpExecutor) { ask(shop); }
#[test]
fn c_without_the_attribute() {
    let server = Executor::builder(Bin::new("kinds-server")).arg("127.0.0.1:{port}");
    ask(&server.wait_for(Tcp::addr("127.0.0.1:{port}")).start().unwrap());
}
"#,
    );
    workspace.write(
        "daemon/examples/kinds-example.rs",
        &DAEMON.replace("ONE", "EXAMPLE"),
    );
    let unit = format!(
        "{ASK}\n#[cfg(test)]\n{}\n#[test]\nfn in_a_unit_test(shop: &mirakuru::TcpExecutor) {{ ask(shop); }}\n\
         /// ```\n/// let bin = mirakuru::Bin::new(\"kinds-server\");\n\
         /// assert!(bin.path().unwrap().is_file());\n/// ```\n\
         pub fn documented() {{}}\n",
        ATTRIBUTE.replace("{name}", "kinds")
    );
    workspace.write("e2e/src/lib.rs", &unit);
    let output = workspace.test(&[]);
    let expected = [
        "version ONE plain",
        "version ONE vip",
        "version EXAMPLE plain",
        "version ONE plain",
    ];
    assert_eq!(answers(&output), expected, "{output}");
    assert!(output.contains("Doc-tests"), "{output}");
}

#[test]
fn a_program_that_cannot_be_had_says_why() {
    let workspace = Workspace::new(
        "failing",
        r#"
ATTRIBUTE
#[test]
fn sells(shop: &TcpExecutor) { ask(shop); }
#[test]
fn misspelt() {
    println!("error: {}", Bin::new("failing-sever").path().unwrap_err());
    println!("error: {}", Bin::new("lib:failing-server").path().unwrap_err());
}
"#,
    );
    let run = |test: &str, change: &dyn Fn(&mut Command)| {
        let mut command = workspace.cargo(&[
            "test",
            "--package",
            "failing-e2e",
            "--test",
            "failing_tests",
            test,
            "--",
            "--nocapture",
        ]);
        change(&mut command);
        fresh::text(&command.output().expect("cargo"))
    };
    let output = run("misspelt", &|_| {});
    for expected in [
        "failed to find or build the program `failing-sever` of the workspace: there is none with this name; \
            the workspace's \
         programs are `failing-daemon:failing-server`",
        "`lib:failing-server` of the workspace: there is none with this name; the workspace's programs are \
            `failing-daemon:",
    ] {
        assert!(output.contains(expected), "{output}");
    }

    workspace.edit("fn main() {", "fn main() {\n    let port: u16 = \"no\";");
    let output = run("sells", &|_| {});
    for expected in [
        "error[E0308]: mismatched types",
        "--> daemon/src/main.rs:5:21",
        "expected `u16`, found `&str`",
    ] {
        assert!(output.contains(expected), "{output}");
    }

    // The user names another program. A relative path is resolved against cargo's directory.
    workspace.edit("\n    let port: u16 = \"no\";", "");
    fresh::succeed(&mut workspace.cargo(&["build", "--package", "failing-daemon", "--features", "vip"]));
    fs::copy(workspace.uplifted(), workspace.dir.join("other")).expect("the target directory");
    let output = run("sells", &|cargo| {
        cargo.env("MIRAKURU_BIN_FAILING_SERVER", "other");
    });
    assert_eq!(answers(&output), ["version ONE vip"], "{output}");
    let output = run("sells", &|cargo| {
        cargo.env("MIRAKURU_BIN_FAILING_SERVER", "no-such-file");
    });
    assert!(
        output.contains("MIRAKURU_BIN_FAILING_SERVER points to `"),
        "{output}"
    );
    assert!(
        output.contains("no-such-file`: no such file") || output.contains("no-such-file`: No such file"),
        "{output}"
    );
}

#[test]
fn a_test_that_is_started_by_hand() {
    let workspace = Workspace::new(
        "direct",
        "ATTRIBUTE\n#[test]\nfn sells(shop: &TcpExecutor) { ask(shop); }\n",
    );
    // Cargo looks for this file in its working directory and above, so mirakuru must start cargo in
    // the workspace.
    workspace.write(".cargo/config.toml", "[env]\nDIRECT_VERSION = \"ONE\"\n");
    workspace.edit("\"ONE\"", "env!(\"DIRECT_VERSION\")");
    let messages = fresh::succeed(&mut workspace.cargo(&[
        "test",
        "--package",
        "direct-e2e",
        "--test",
        "direct_tests",
        "--no-run",
        "--message-format=json",
    ]));
    let executable = messages
        .split("\"executable\":\"")
        .filter_map(|rest| rest.split('"').next())
        .find(|path| path.contains("/direct_tests-"))
        .expect("cargo says where it is");
    let start = |executable: &Path| {
        // Starts the test as a debugger does, without cargo's variables. The shell ends before the
        // test begins, so no ancestor of the test is cargo.
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                r#"{ { read -r _; exec "$0" --nocapture 2>&1 </dev/null; } <&3 3<&- & } 3<&0"#,
            ])
            .arg(executable)
            .env_clear()
            .envs(std::env::vars_os().filter(|(key, _)| {
                ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"]
                    .iter()
                    .any(|name| key == name)
            }))
            .env("CARGO_NET_OFFLINE", "true")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("TMPDIR", workspace.scratch.path())
            .current_dir(workspace.scratch.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut shell = command.spawn().expect("there is a shell");
        let (gate, stdout) = (shell.stdin.take(), shell.stdout.take());
        shell.wait().expect("it is our child");
        drop(gate);
        let mut output = String::new();
        let read = stdout.expect("it is piped").read_to_string(&mut output);
        read.expect("text");
        output
    };
    let output = start(Path::new(executable));
    assert_eq!(answers(&output), ["version ONE plain"], "{output}");

    // In another directory, as after an archive has been unpacked, mirakuru cannot ask cargo for
    // the program.
    let copy = workspace.scratch.path().join("e2e");
    fs::copy(executable, &copy).expect("a writable directory");
    let output = start(&copy);
    assert!(output.contains("like a test from an archive"), "{output}");
    assert!(
        output.contains("set MIRAKURU_BIN_DIRECT_SERVER to the program's path"),
        "{output}"
    );
}
