//! Builds a program of the workspace with cargo, once per run.
//!
//! The result must be the same as that of a build by hand, and the user's own builds must not be
//! disturbed:
//!
//! - The build uses the profile, the target and the flags of this crate. A build script has
//!   recorded them, because cargo does not pass them to a test process.
//! - The build gets the environment of the cargo or nextest process that runs the tests. Cargo sets
//!   more variables for tests, and many build scripts run again if one of these changes. Each of
//!   the two builds would then undo the other's work.
//! - The build shares the *build directory* of the tests, which contains the compiled crates.
//! - The build has its own *target directory*, which receives the finished programs. So
//!   `target/debug/NAME` and cargo's records about it stay unchanged.
//! - The finished file is linked into a directory of the run, because a later build may replace the
//!   file while tests still use it.
//!
//! ```text
//! <build directory of the tests>/mirakuru/
//!     debug/shop-server                the program as cargo built it
//!     run-812-99120-5f0c-4026531836/   of one run and pid namespace; removed by a later run
//!         6f0a91c2d3e4b5a6/shop-server a link to the program, below a hash of the file's identity
//! <directory of the run>/program-KEY.lock       held by the process that calls cargo
//! <directory of the run>/program-KEY.built      the outcome of the build
//! ```

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use once_cell::sync::Lazy;

use crate::error::Error;
use crate::observe::progress::{Progress, short};
use crate::recipe::program::file_identity;
use crate::run::{self, Run, hash};
use crate::service_dir;
use crate::sys;
use crate::sys::procfs;
use crate::util::backoff::Pauses;
use crate::util::insert_sorted;
use crate::util::say::say;
use crate::util::text::distance;
use crate::workspace::Bin;
use crate::workspace::json::Json;

/// Cargo prints this message if another cargo process uses the same directory.
const BLOCKED: &str = "Blocking waiting for file lock";
/// The age at which a directory of links is removed if its run belongs to another pid namespace,
/// where this process cannot tell whether the run has ended.
const FOREIGN_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// The settings with which this crate, and so the test, was built.
#[derive(Debug, PartialEq, Eq)]
struct Built {
    build_dir: PathBuf,
    profile: String,
    /// The target given to cargo, if any.
    target: Option<String>,
    /// The flags in the format of `CARGO_ENCODED_RUSTFLAGS`.
    flags: &'static str,
}

impl Built {
    fn baked() -> Option<Built> {
        Some(Built {
            flags: env!("MIRAKURU_BUILT_WITH_CARGO_ENCODED_RUSTFLAGS"),
            ..Built::of(Path::new(env!("OUT_DIR")), env!("MIRAKURU_BUILT_WITH_TARGET"))?
        })
    }

    /// Derives the settings from the path of a build script's output directory:
    /// `BUILD_DIR/[TARGET/]PROFILE/build/..`.
    fn of(out_dir: &Path, target: &str) -> Option<Built> {
        let build = out_dir.ancestors().find(|dir| dir.ends_with("build"))?;
        let profile_dir = build.parent()?;
        let profile = profile_dir.file_name()?.to_str()?;
        let parent = profile_dir.parent()?;
        // A build directory may have the same name as a target, but only a build directory contains
        // this file.
        let given = parent.ends_with(target) && !parent.join(".rustc_info.json").exists();
        Some(Built {
            build_dir: if given { parent.parent()? } else { parent }.to_owned(),
            profile: if profile == "debug" { "dev" } else { profile }.to_owned(),
            target: given.then(|| target.to_owned()),
            flags: "",
        })
    }
}

/// The process id and the start time of the test runner: the nearest ancestor that is cargo or a
/// similar program.
fn runner() -> Option<(u32, u64)> {
    static RUNNER: Lazy<Option<(u32, u64)>> = Lazy::new(|| {
        let mut ancestors = procfs::ancestors(std::process::id()).skip(1);
        let (pid, stat) = ancestors.find(|(_, stat)| run::is_cargo(stat))?;
        Some((pid, stat.start()))
    });
    *RUNNER
}

/// The working directory of the runner, in which cargo has looked for its configuration. `None` if
/// this test was started by hand.
pub(crate) fn runner_dir() -> Option<PathBuf> {
    runner().and_then(|(pid, _)| procfs::current_dir(pid))
}

/// The path of the list of skipped tests, and the first line that this run writes to it. `None` if
/// the build directory does not exist.
#[must_use]
pub fn skipped_list() -> Option<(PathBuf, String)> {
    let dir = Built::baked()?.build_dir;
    if !dir.is_dir() {
        return None;
    }
    let dir = dir.join("mirakuru");
    fs::create_dir_all(&dir).ok()?;
    let (pid, started) = runner().unwrap_or_else(service_dir::this_process);
    Some((
        dir.join("skipped.tsv"),
        format!("# run {pid}-{started}: test, missing, install"),
    ))
}

/// Builds the program and returns its path. Only one process of a run calls cargo, and only once.
///
/// # Errors
///
/// [`Error::System`]: see [`Bin::path`].
pub(crate) fn built(bin: &Bin) -> Result<PathBuf, Error> {
    static KNOWN: Mutex<Vec<(Bin, Result<PathBuf, String>)>> = Mutex::new(Vec::new());
    // The lock makes other threads wait for the build. (A file lock does so for other processes.)
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let outcome = match known.iter().find(|(other, _)| other == bin) {
        Some((_, outcome)) => outcome.clone(),
        None => {
            let outcome = built_in_run(bin);
            known.push((bin.clone(), outcome.clone()));
            outcome
        }
    };
    outcome.map_err(|reason| bin.error(reason))
}

fn built_in_run(bin: &Bin) -> Result<PathBuf, String> {
    let built = Built::baked().ok_or_else(|| {
        let out_dir = env!("OUT_DIR");
        by_variable(
            bin,
            &format!("mirakuru was built in `{out_dir}`, which is not a build directory of cargo"),
        )
    })?;
    check_is_beside(&built).map_err(|reason| by_variable(bin, &reason))?;
    let (run_dir, _) = Run::dir_or_own(Run::current().filter(|run| run.runner().0 != 0));
    let key = hash(0, &format!("{built:?} {bin:?}"));
    let record = Record {
        file: run_dir.join(format!("program-{key:016x}.built")),
        runner: runner().unwrap_or_else(service_dir::this_process),
    };
    let in_run_dir = |e: io::Error| format!("`{}`: {e}", run_dir.display());
    run::make_dir(&run_dir).map_err(in_run_dir)?;
    let lock = run_dir.join(format!("program-{key:016x}.lock"));
    let lock = sys::files::open_lock(&lock, true).map_err(in_run_dir)?;
    let mut pauses = Pauses::new();
    let mut progress = Progress::new();
    loop {
        if let Some(outcome) = record.read() {
            return outcome;
        }
        if sys::files::try_flock(lock.as_fd()).map_err(in_run_dir)? {
            break;
        }
        progress.tell(&|elapsed| {
            format!(
                "{}: this test has been waiting for another test's `cargo build` for {elapsed}",
                bin.name
            )
        });
        pauses.sleep(Duration::MAX);
    }
    // Another test may have written the outcome after the first check and before this test got the
    // lock.
    if let Some(outcome) = record.read() {
        return outcome;
    }
    let run_name = run_dir.file_name().unwrap_or_default();
    let outcome = build(bin, &built).and_then(|file| link(&file, &built, Path::new(run_name)));
    record.write(&outcome).map_err(in_run_dir)?;
    outcome
}

/// Adds a remedy to the reason: the variable that the user can set to the program's path.
fn by_variable(bin: &Bin, reason: &str) -> String {
    format!("{reason}; set {} to the program's path", bin.variable())
}

/// Checks that this test runs from its build directory. For a test that comes from an archive,
/// cargo could not build the matching program.
fn check_is_beside(built: &Built) -> Result<(), String> {
    let exe = own_file(std::env::current_exe().ok(), std::env::args_os().next());
    let build_dir = fs::canonicalize(&built.build_dir).unwrap_or_default();
    // A doctest is compiled into a temporary directory and runs from there.
    let is_doctest = || {
        let mut ancestors = procfs::ancestors(std::process::id()).take(4);
        ancestors.any(|(_, stat)| stat.comm == "rustdoc")
    };
    if build_dir.is_absolute() && (exe.starts_with(&build_dir) || is_doctest()) {
        return Ok(());
    }
    Err(format!(
        "this test was built in `{}`, but runs as `{}`, like a test from an archive: cargo cannot build \
            the same program",
        built.build_dir.display(),
        exe.display()
    ))
}

/// The executable of this process. If the system cannot tell (Linux without `/proc`), the path is
/// taken from the first argument, where cargo and nextest pass it.
fn own_file(told: Option<PathBuf>, first_arg: Option<OsString>) -> PathBuf {
    let path = told.or_else(|| first_arg.map(PathBuf::from));
    path.and_then(|path| fs::canonicalize(path).ok())
        .unwrap_or_default()
}

/// The file that tells the other processes of the run whether the build succeeded.
struct Record {
    file: PathBuf,
    /// The runner of the tests that this build was for. If another runner has started since, the
    /// sources may have changed.
    runner: (u32, u64),
}

impl Record {
    fn read(&self) -> Option<Result<PathBuf, String>> {
        let text = fs::read_to_string(&self.file).ok()?;
        let (runner, rest) = text.split_once('\n')?;
        let (outcome, text) = rest.split_once('\n')?;
        if runner != self.head() {
            return None;
        }
        match outcome {
            // The target directory may have been cleaned.
            "built" => Some(PathBuf::from(text)).filter(|path| path.is_file()).map(Ok),
            _ => Some(Err(text.to_owned())),
        }
    }

    fn write(&self, outcome: &Result<PathBuf, String>) -> io::Result<()> {
        let (word, text) = match outcome {
            Ok(path) => ("built", path.to_string_lossy().into_owned()),
            Err(reason) => ("failed", reason.clone()),
        };
        // The file is written completely before it is renamed, because other processes read it
        // without the lock.
        let new = self.file.with_extension(format!("new-{}", std::process::id()));
        fs::write(&new, format!("{}\n{word}\n{text}", self.head()))?;
        fs::rename(&new, &self.file)
    }

    fn head(&self) -> String {
        let (pid, started) = self.runner;
        format!("{pid} {started}")
    }
}

/// Calls `cargo build`, and returns the path of the program that cargo reports.
fn build(bin: &Bin, built: &Built) -> Result<PathBuf, String> {
    let manifest = manifest(bin)?;
    let package = package(bin, built, &manifest)?;
    let mut cargo = cargo(built, &manifest);
    cargo
        .args([
            "build",
            "--locked",
            "--message-format=json-render-diagnostics",
            "--color=never",
            "--manifest-path",
        ])
        .arg(&manifest)
        .args(["--package", &package, &format!("--{}", bin.kind()), &bin.name])
        .args(["--profile", bin.profile.as_deref().unwrap_or(&built.profile)])
        .arg("--target-dir")
        .arg(built.build_dir.join("mirakuru"));
    if let Some(dir) = build_dir(&built.build_dir, cargo.get_current_dir())? {
        cargo.args(["--config", &format!("build.build-dir={dir}")]);
    }
    if let Some(target) = &built.target {
        cargo.args(["--target", target]);
    }
    if !bin.features.is_empty() {
        cargo.args(["--features", &bin.features.join(",")]);
    }
    let said = run_cargo(cargo, bin)?;
    let mut executable = said.out.lines().filter_map(Json::parse).filter_map(|message| {
        let target = message.get("target")?;
        let is_it = message.text("reason")? == "compiler-artifact"
            && target.text("name")? == bin.name
            && target.list("kind").contains(&Json::Text(bin.kind().to_owned()));
        message.text("executable").filter(|_| is_it).map(PathBuf::from)
    });
    executable.next_back().ok_or_else(|| {
        format!(
            "cargo built it, but did not report its path\n{}",
            said.err.trim_end()
        )
    })
}

/// Returns the manifest of the test's package, or another one of the same workspace.
fn manifest(bin: &Bin) -> Result<PathBuf, String> {
    let exe = std::env::current_exe().ok();
    let given = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let working = std::env::current_dir().ok();
    let mut dirs = Vec::new();
    for dir in [
        given.as_deref(),
        bin.compiled_in.map(Path::new),
        working.as_deref(),
    ] {
        dirs.extend(dir);
    }
    // If the test was started by hand, its executable is usually below the workspace's directory.
    dirs.extend(exe.as_deref().unwrap_or(Path::new("")).ancestors());
    for dir in dirs {
        let manifest = dir.join("Cargo.toml");
        if manifest.is_file() {
            return Ok(manifest);
        }
    }
    let reason = "cannot tell which workspace this test belongs to: it was not started by cargo, and \
        there is no `Cargo.toml` in its working directory";
    Err(by_variable(bin, reason))
}

/// Returns cargo's id of the package that contains the program.
fn package(bin: &Bin, built: &Built, manifest: &Path) -> Result<String, String> {
    let mut metadata = cargo(built, manifest);
    metadata.args([
        "metadata",
        "--no-deps",
        "--format-version=1",
        "--color=never",
        "--manifest-path",
    ]);
    metadata.arg(manifest);
    let said = run_cargo(metadata, bin)?;
    let metadata = Json::parse(&said.out).ok_or("cargo's metadata is not JSON")?;
    let mut all: Vec<(&str, &str, &str)> = Vec::new();
    for package in metadata.list("packages") {
        let of_kind = |target: &&Json| target.list("kind").contains(&Json::Text(bin.kind().to_owned()));
        for target in package.list("targets").iter().filter(of_kind) {
            if let (Some(id), Some(name), Some(program)) =
                (package.text("id"), package.text("name"), target.text("name"))
            {
                all.push((id, name, program));
            }
        }
    }
    let full_name = |(_, package, name): &(&str, &str, &str)| format!("`{package}:{name}`");
    let is_wanted = |package: &str| bin.package.as_deref().is_none_or(|wanted| wanted == package);
    let mut found = all.clone();
    found.retain(|(_, package, name)| *name == bin.name && is_wanted(package));
    let mut names = Vec::new();
    match found.as_slice() {
        [(id, _, _)] => Ok((*id).to_owned()),
        [] => {
            // The most similar names come first. Equally similar ones keep cargo's order.
            let mut near = Vec::new();
            for (at, (_, package, name)) in all.iter().enumerate() {
                insert_sorted(&mut near, (distance(name, &bin.name), !is_wanted(package), at));
            }
            for (_, _, at) in near {
                names.push(full_name(&all[at]));
            }
            Err(format!(
                "there is none with this name; {}",
                listed(&names, bin.kind())
            ))
        }
        several => {
            for found in several {
                names.push(full_name(found));
            }
            let names = names.join(" and ").replacen(" and ", " or ", 1);
            Err(format!("there is more than one with this name: write {names}"))
        }
    }
}

/// Lists at most ten of the names for a message.
fn listed(names: &[String], kind: &str) -> String {
    let kind = if kind == "bin" { "programs" } else { "examples" };
    match names.len() {
        0 => format!("the workspace has no {kind}"),
        count => {
            let more = if count > 10 { ", .." } else { "" };
            format!(
                "the workspace's {kind} are {}{more}",
                names[..count.min(10)].join(", ")
            )
        }
    }
}

/// Returns the build directory as a TOML string, for a cargo process that is started in `dir`.
///
/// In this setting, cargo replaces certain names in braces, and rejects any other braces. So a path
/// with braces is written relative to `dir`. If it still contains braces, the result is `None`, and
/// cargo compiles all crates again.
fn build_dir(path: &Path, dir: Option<&Path>) -> Result<Option<String>, String> {
    let text = path
        .to_str()
        .ok_or("the build directory's path is not UTF-8, which cargo needs here")?;
    let has_braces = |text: &str| text.contains(['{', '}']);
    let text = match has_braces(text) {
        false => text,
        true => {
            let below = dir.and_then(|dir| path.strip_prefix(dir).ok()?.to_str());
            match below.filter(|text| !text.is_empty() && !has_braces(text)) {
                Some(below) => below,
                None => return Ok(None),
            }
        }
    };
    Ok(Some(format!(
        "\"{}\"",
        text.replace("\\", "\\\\").replace("\"", "\\\"")
    )))
}

/// Creates a cargo command with the runner's environment and working directory. If there is no
/// runner, cargo starts in the directory of the manifest, because cargo and rustup search for their
/// configuration from there upwards.
fn cargo(built: &Built, manifest: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let of_runner = runner().and_then(|(pid, _)| procfs::environment(pid));
    let environment = match of_runner.filter(|text| !text.is_empty()) {
        Some(text) => variables(&text),
        None => std::env::vars_os().collect::<Vec<_>>(),
    };
    cargo.env_clear().envs(environment.iter().cloned());
    let dir = runner_dir().or_else(|| manifest.parent().map(Path::to_owned));
    cargo.current_dir(dir.unwrap_or_default());
    // These variables refer to descriptors that this process does not have.
    for name in ["MAKEFLAGS", "MFLAGS", "CARGO_MAKEFLAGS"] {
        cargo.env_remove(name);
    }
    let given = |name: &str| {
        let (_, value) = environment.iter().find(|(key, _)| key == name)?;
        value.to_str().map(str::to_owned)
    };
    let given = given("CARGO_ENCODED_RUSTFLAGS").or_else(|| {
        let flags = given("RUSTFLAGS")?;
        Some(flags.split_ascii_whitespace().collect::<Vec<_>>().join("\u{1f}"))
    });
    // Cargo itself reads the flags from the environment or from a file. Build scripts may depend on
    // the variable, so it is set only if the flags differ.
    if given.unwrap_or_default() != built.flags {
        cargo.env("CARGO_ENCODED_RUSTFLAGS", built.flags);
    }
    cargo
}

/// Parses an environment as the kernel shows it.
fn variables(environment: &[u8]) -> Vec<(OsString, OsString)> {
    let text = |bytes| OsStr::from_bytes(bytes).to_owned();
    let mut variables = Vec::new();
    for entry in procfs::entries(environment) {
        match entry.iter().position(|byte| *byte == b'=') {
            None | Some(0) => {}
            Some(at) => variables.push((text(&entry[..at]), text(&entry[at + 1..]))),
        }
    }
    variables
}

struct Said {
    out: String,
    err: String,
}

/// Runs cargo until it exits. Cargo inherits none of this process's streams: a runner that reads
/// such a stream would also wait for cargo.
fn run_cargo(mut cargo: Command, bin: &Bin) -> Result<Said, String> {
    cargo
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let program = cargo.get_program().to_string_lossy().into_owned();
    let mut child = cargo
        .spawn()
        .map_err(|e| by_variable(bin, &format!("failed to execute `{program}`: {e}")))?;
    let said = listen(&mut child, bin);
    let status = child
        .wait()
        .map_err(|e| format!("failed to wait for cargo: {e}"))?;
    let said = said?;
    match status.success() {
        true => Ok(said),
        false => Err(format!("cargo ended with {status}\n{}", said.err.trim_end())),
    }
}

/// Reads all output of cargo, and reports its progress if it takes long.
fn listen(child: &mut Child, bin: &Bin) -> Result<Said, String> {
    let (Some(mut stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("cargo has no output".to_owned());
    };
    let out = thread::spawn(move || {
        let mut out = Vec::new();
        stdout
            .read_to_end(&mut out)
            .map(|_| String::from_utf8_lossy(&out).into_owned())
    });
    let mut progress = Progress::new();
    let (mut err, mut last) = (String::new(), String::new());
    let mut stderr = BufReader::new(stderr);
    loop {
        let fd = stderr.get_ref().as_raw_fd();
        if !stderr.buffer().is_empty() || !sys::readable(&[fd], progress.patience()).is_empty() {
            let mut line = Vec::new();
            if stderr.read_until(b'\n', &mut line).unwrap_or_default() == 0 {
                break;
            }
            let line = String::from_utf8_lossy(&line);
            let line = line.strip_suffix('\n').unwrap_or(&line);
            err.extend([line, "\n"]);
            match line.contains(BLOCKED) {
                true => say(&format!("{}: {}", bin.name, line.trim())),
                false => last = line.to_owned(),
            }
        }
        progress.tell(&|elapsed| {
            format!(
                "{}: cargo has been building it for {elapsed}, and says: {}",
                bin.name,
                short(last.trim())
            )
        });
    }
    let out = out.join().map_err(|_| "a thread panicked")?;
    let out = out.map_err(|e| format!("failed to read cargo's output: {e}"))?;
    Ok(Said { out, err })
}

/// Links the file to a path that no later build replaces during this run.
fn link(file: &Path, built: &Built, run_name: &Path) -> Result<PathBuf, String> {
    let base = built.build_dir.join("mirakuru");
    sweep(&base);
    let link = || -> io::Result<PathBuf> {
        let namespace = procfs::pid_namespace();
        let identity = hash(0, &file_identity(file)?);
        let dir = base
            .join(format!("{}-{namespace}", run_name.display()))
            .join(format!("{identity:016x}"));
        fs::create_dir_all(&dir)?;
        let link = dir.join(file.file_name().unwrap_or_default());
        if link.exists() {
            return Ok(link);
        }
        // If the file system does not support hard links, the file is copied.
        fs::hard_link(file, &link).or_else(|_| {
            let new = dir.join("new");
            fs::copy(file, &new)?;
            fs::rename(new, &link)
        })?;
        Ok(link)
    };
    link().map_err(|e| {
        format!(
            "failed to link `{}` into `{}`: {e}",
            file.display(),
            base.display()
        )
    })
}

/// Removes the links of runs that have ended.
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((run, namespace)) = name.to_str().and_then(|name| name.rsplit_once('-')) else {
            continue;
        };
        let Some((pid, started)) = run::runner_of(run) else {
            continue;
        };
        let is_over = match namespace.parse() == Ok(procfs::pid_namespace()) {
            true => !service_dir::is_alive(pid, started),
            false => {
                let modified = entry.metadata().and_then(|metadata| metadata.modified());
                modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > FOREIGN_FOR))
            }
        };
        if is_over {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_directory_as_cargo_takes_it() {
        let given = |path: &str, dir: &str| build_dir(Path::new(path), Some(Path::new(dir)));
        let is = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(given("/shop/target", "/shop"), is("\"/shop/target\""));
        assert_eq!(given("/a \"b\\/target", "/"), is("\"/a \\\"b\\\\/target\""));
        // Cargo would replace a name in braces.
        assert_eq!(given("/{shop}/target", "/{shop}"), is("\"target\""));
        assert_eq!(given("/{shop}/target", "/other"), Ok(None));
        assert_eq!(given("/{shop}", "/{shop}"), Ok(None));
        assert_eq!(given("/shop/{target}", "/shop"), Ok(None));
    }

    #[test]
    fn without_proc_the_first_argument_tells_the_own_file() {
        let file = std::env::current_exe().unwrap();
        let real = fs::canonicalize(&file).unwrap();
        assert_eq!(own_file(None, Some(file.clone().into())), real);
        assert_eq!(own_file(Some(file), Some("/nowhere".into())), real);
        assert_eq!(own_file(None, Some("no-such-file".into())), Path::new(""));
    }

    #[test]
    fn how_a_build_directory_tells_profile_and_target() {
        let of = |out_dir: &str| {
            let built = Built::of(Path::new(out_dir), "x86_64-unknown-linux-gnu").expect("it is cargo's");
            (built.build_dir, built.profile, built.target.is_some())
        };
        let triple = "/t/x86_64-unknown-linux-gnu";
        assert_eq!(
            of("/t/debug/build/core-1/out"),
            ("/t".into(), "dev".into(), false)
        );
        assert_eq!(of("/t/ci/build/core-1/out"), ("/t".into(), "ci".into(), false));
        assert_eq!(
            of("/build/t/release/build/core/1/out"),
            ("/build/t".into(), "release".into(), false)
        );
        assert_eq!(
            of(&format!("{triple}/debug/build/core-1/out")),
            ("/t".into(), "dev".into(), true)
        );
        assert_eq!(Built::of(Path::new("/usr/lib/out"), "x"), None);
    }
}
