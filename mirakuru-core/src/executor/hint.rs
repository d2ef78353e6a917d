//! Finds a remedy for a failure with a known cause, from the service's output, its exit status, or
//! the process that holds its port.
//!
//! A wrong hint is worse than none. So each hint relies on text that programs print for only one
//! reason, or on a fact reported by the system, such as the process that holds the port.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use crate::ports::holder;
use crate::ports::time_wait;
use crate::recipe::command::ADD_SHELL;

/// The facts about a service that failed.
pub(crate) struct Symptoms<'a> {
    /// The first and the last lines that the service printed.
    pub(crate) tail: &'a [String],
    pub(crate) exit: Option<ExitStatus>,
    /// The name or path under which the program was executed.
    pub(crate) program: &'a str,
    /// Whether the command is a shell script.
    pub(crate) shell: bool,
    /// The hint about the part of the command that only a shell understands.
    pub(crate) shell_syntax: Option<String>,
    /// The words of the command that a shell would expand to file names.
    pub(crate) globs: Vec<String>,
    /// Whether the service's standard input is empty.
    pub(crate) reads_nothing: bool,
    /// The fixed addresses that the service needs.
    pub(crate) addrs: &'a [SocketAddr],
    /// The ports that were chosen for the service.
    pub(crate) chosen: Vec<u16>,
    /// Process id of the root of the service's process tree, or 0 if it has none.
    pub(crate) root: u32,
}

/// Returns the remedy, if the cause is known.
pub(crate) fn of(symptoms: &Symptoms<'_>) -> Option<String> {
    if symptoms.tail.iter().any(|line| says_in_use(line)) {
        if let Some(hint) = in_use(symptoms) {
            return Some(hint);
        }
    }
    if let Some(hint) = symptoms.tail.iter().find_map(|line| glob_in(line, symptoms)) {
        return Some(hint);
    }
    let from_output = symptoms.tail.iter().find_map(|line| of_line(line, symptoms));
    from_output
        .or_else(|| symptoms.shell_syntax.clone())
        .or_else(|| of_exit(symptoms))
}

/// Whether a line reports EADDRINUSE, either in the words of the C library or in those of another
/// runtime.
pub(crate) fn says_in_use(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    ["address already in use", "address in use", "addrinuse"]
        .iter()
        .any(|text| line.contains(text))
}

/// The hint for a service that mistook a pattern such as `*.conf` for a file name. Some services
/// expand patterns themselves, so a line of output must report the pattern as missing.
fn glob_in(line: &str, symptoms: &Symptoms<'_>) -> Option<String> {
    if !line.to_ascii_lowercase().contains("no such file") {
        return None;
    }
    let glob = symptoms.globs.iter().find(|glob| line.contains(*glob))?;
    Some(format!(
        "the command runs without a shell, and only a shell expands `{glob}` to file names: \
            {ADD_SHELL}"
    ))
}

/// The hint that names the process that holds a port. The output only suggests candidate ports; the
/// kernel knows which process holds each one.
fn in_use(symptoms: &Symptoms<'_>) -> Option<String> {
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut candidates = symptoms.addrs.to_vec();
    for line in symptoms.tail.iter().filter(|line| says_in_use(line)) {
        for port in ports_in(line) {
            candidates.push(loopback(port));
        }
    }
    for addr in candidates.iter().copied() {
        let Some(holder) = holder::listener_beside(addr, symptoms.root) else {
            continue;
        };
        let mut text = format!("port {} is held by {holder}", addr.port());
        if let Some(about) = holder.about() {
            text = format!("{text}, {about}");
        }
        let remedy = holder.remedy().unwrap_or_else(|| "end that process".to_owned());
        return Some(format!("{text}\n{remedy}, or use `{{port}}` to get a free port"));
    }
    for port in &symptoms.chosen {
        candidates.push(loopback(*port));
    }
    candidates.into_iter().find_map(time_wait::hint)
}

/// The numbers in a line that may be ports: those after a colon, or after the word "port".
fn ports_in(line: &str) -> Vec<u16> {
    let mut ports = Vec::new();
    for (at, separator) in line.match_indices([':', ' ']) {
        let digits: String = line[at + 1..].chars().take_while(char::is_ascii_digit).collect();
        let after_word = line[..at].to_ascii_lowercase().ends_with("port");
        match digits.parse() {
            Ok(port) if port != 0 && (separator == ":" || after_word) => ports.push(port),
            _ => {}
        }
    }
    ports
}

fn of_line(line: &str, symptoms: &Symptoms<'_>) -> Option<String> {
    let lower = line.to_ascii_lowercase();
    let has = |texts: &[&str]| texts.iter().any(|text| lower.contains(text));
    let program = Path::new(symptoms.program)
        .file_name()
        .map_or(symptoms.program.into(), |name| name.to_string_lossy());
    if has(&[
        "as root",
        "\"root\" execution",
        "by root is not",
        "with the superuser",
    ]) && has(&[
        "not", "cannot", "can't", "refus", "must", "don't", "unsafe", "please",
    ]) {
        return Some(
            "it refuses to run as root: run it as another user with `.uid(..)` and `.gid(..)`, and give \
                that user its files"
                .to_owned(),
        );
    }
    if has(&["error while loading shared libraries", "library not loaded"]) {
        let library = line
            .split("shared libraries: ")
            .nth(1)
            .and_then(|rest| rest.split(':').next())
            .map(str::trim);
        return Some(match library {
            Some(library) => format!(
                "the library `{library}` is not installed or not found: install the package that `apt-file \
                    search {library}` names, or add the library's directory to LD_LIBRARY_PATH (`ldd` \
                    lists the libraries that the program needs)"
            ),
            None => "a library that it needs is not installed, or not found: find out which one with \
                `ldd`"
                .to_owned(),
        });
    }
    if has(&[
        "no space left on device",
        "enospc",
        "disk full",
        "disk quota exceeded",
    ]) {
        return Some(
            "the disk is full: free some space (`df -h` shows where), or set TMPDIR to a directory on \
                another disk"
                .to_owned(),
        );
    }
    if has(&[
        "invalid locale",
        "cannot set locale",
        "setting locale failed",
        "cannot change locale",
        "unsupported locale",
        "failed to set locale",
        "locale::facet::_s_create_c_locale",
    ]) {
        return Some(
            "the locale of the service is not installed: set another one, for example with \
                `.env(\"LC_ALL\", \"C.UTF-8\")` (`locale -a` lists the installed ones)"
                .to_owned(),
        );
    }
    if has(&["too many open files", "emfile"]) {
        return Some("it has reached its limit of open files: raise the limit with `ulimit -n`".to_owned());
    }
    if has(&[
        "unrecognized option",
        "unrecognised option",
        "unrecognized argument",
        "unrecognised argument",
        "unrecognized parameter",
        "unrecognized configuration parameter",
        "unknown option",
        "unknown argument",
        "unknown flag",
        "unknown command line",
        "unknown command-line",
        "unknown switch",
        "invalid option",
        "illegal option",
        "invalid command-line",
        "no such option",
        "unexpected argument",
        "flag provided but not defined",
        "bad directive or wrong number of arguments",
        "bad option",
        "option not recognized",
    ]) {
        return Some(match symptoms.shell {
            true => "a program that the script runs does not know one of its arguments: check them in \
                the script"
                .to_owned(),
            false => format!("it does not know one of its arguments: see `{program} --help`"),
        });
    }
    if has(&["permission denied", "eacces", "operation not permitted"]) {
        return Some(
            "it lacks a permission: grant it to the service's user, or use another path or port \
                (`{dir}` belongs to that user, and ports below 1024 to root)"
                .to_owned(),
        );
    }
    if has(&["not found"]) && symptoms.exit.and_then(|status| status.code()) == Some(127) {
        return Some(
            "a program that the script runs is not installed, or not on PATH: install it, or use \
                its whole path"
                .to_owned(),
        );
    }
    None
}

fn of_exit(symptoms: &Symptoms<'_>) -> Option<String> {
    const SIGKILL: i32 = 9;
    const SIGILL: i32 = 4;
    let exit = symptoms.exit?;
    match (exit.code(), exit.signal()) {
        (Some(0), _) if crate::sys::LOSES_DAEMONS => Some(
            "it exited with status 0, and on this system a program that goes into the background is lost \
                and may still run: use its option to stay in the foreground"
                .to_owned(),
        ),
        (Some(0), _) => Some(format!(
            "it exited with status 0 and left no process running: if it goes into the background, use its \
             option to stay in the foreground{}",
            match symptoms.reads_nothing {
                true => {
                    "; if it ends because its input (/dev/null) is empty, keep the input open with \
                     `.stdin(Stdio::piped())`"
                }
                false => "",
            }
        )),
        (_, Some(SIGKILL)) => Some(
            "mirakuru did not send that signal: check with `dmesg` whether the kernel did, because \
                memory ran out; otherwise a person or another program did"
                .to_owned(),
        ),
        (_, Some(SIGILL)) => Some(
            "the program may be built for a newer processor than this machine has: install or build one \
                for this processor"
                .to_owned(),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(line: &str) -> Option<String> {
        let tail = [line.to_owned()];
        of(&Symptoms {
            tail: &tail,
            exit: Some(ExitStatus::from_raw(1 << 8)),
            program: "/opt/bin/server",
            shell: false,
            shell_syntax: None,
            globs: Vec::new(),
            reads_nothing: true,
            addrs: &[],
            chosen: Vec::new(),
            root: 0,
        })
    }

    #[test]
    fn what_real_programs_print_is_known() {
        for (line, part) in [
            (
                "server: error while loading shared libraries: libfoo.so.1: cannot open shared object file",
                "the library `libfoo.so.1` is not installed",
            ),
            (
                "\"root\" execution of the PostgreSQL server is not permitted.",
                "refuses to run as root",
            ),
            ("initdb: error: cannot be run as root", "refuses to run as root"),
            ("initdb: error: invalid locale name \"xx_XX\"", "the locale"),
            ("perl: warning: Setting locale failed.", "the locale"),
            ("write: No space left on device", "the disk is full"),
            ("server: unrecognized option '--prot'", "see `server --help`"),
            (
                "error: unexpected argument '--prot' found",
                "does not know one of its arguments",
            ),
            (
                "flag provided but not defined: -prot",
                "does not know one of its arguments",
            ),
            (
                "open() \"/var/log/x.log\" failed (13: Permission denied)",
                "grant it to the service's user",
            ),
        ] {
            let hint = hint(line).unwrap_or_else(|| panic!("{line}"));
            assert!(hint.contains(part), "{line}: {hint}");
        }
    }

    #[test]
    fn what_is_no_complaint_has_no_hint() {
        for line in [
            "listening on 127.0.0.1:80",
            "running as root",
            "loaded 3 options",
            "key not found",
            "FATAL: the database may be already in use",
            "bind: Address already in use",
        ] {
            assert_eq!(hint(line), None, "{line}");
        }
    }

    #[test]
    fn ports_are_found_in_complaints() {
        assert_eq!(
            ports_in("bind() to 0.0.0.0:80 failed (98: Address already in use)"),
            [80]
        );
        assert_eq!(ports_in("bind() to [::]:8080 failed"), [8080]);
        assert_eq!(ports_in("Port 3000 is already in use"), [3000]);
        assert_eq!(ports_in("OSError: [Errno 98] Address already in use"), [0_u16; 0]);
    }

    #[test]
    #[cfg_attr(
        mirakuru_portable,
        ignore = "the portable back end cannot see the owner of a socket"
    )]
    fn a_holder_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let text = hint(&format!(
            "listen tcp 127.0.0.1:{port}: bind: address already in use"
        ))
        .unwrap();
        assert!(text.starts_with(&format!("port {port} is held by ")), "{text}");
        assert!(text.contains(&format!("(pid {})", std::process::id())), "{text}");
    }
}
