//! `mirakuru-odd-service`: a service for the tests, with every bad habit of real services behind a
//! flag. The file is long because one program has all flags.
//!
//! Flags can be combined. Every process of the program ends by itself, so a failed test leaves
//! nothing behind for long. A kernel timer sends each process SIGKILL, even if it is stopped or
//! ignores signals. The time is `--lifetime`, at most 120 s, or 20 s for `--keep-forking`.
//!
//! The program depends on the standard library alone. `sys` below declares the few system calls
//! that it lacks.
//!
//! Order of events: arm the timer, print the requested lines, `--daemonise`, fork,
//! `--flood-before`, `--delay`, the early deaths, bind and listen, pid file, stamp, ready line,
//! `--flood-after`, then serve until a signal or `--exit-after`.

use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::exit;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

const HELP: &str = "\
mirakuru-odd-service: a service with bad habits, for the tests of mirakuru

Where it listens (each may be given several times; a port 0 is chosen by the kernel and printed)
  --listen ADDR            TCP: answers `PING` with `PONG <pid>`, echoes every other line
  --unix PATH              the same on a Unix stream socket
  --seqpacket PATH         a Unix SOCK_SEQPACKET socket that listens
  --dgram PATH             a Unix datagram socket
  --http ADDR              HTTP/1.1; prints each request to stdout as `request:`, `header:` and `body:` lines
  --accept-never-answer A  TCP: accepts, and never says a word
  --bind-only ADDR         TCP: binds and never listens
  --no-reuseaddr           bind TCP without SO_REUSEADDR (std always sets it)
  --reuse-port             bind TCP with SO_REUSEPORT: several processes may listen on one port
  --inherited              the sockets of $LISTEN_FDS, as --listen; prints their number and $LISTEN_FDNAMES \
  as `inherited:`
  --http-status CODE       the status of HTTP answers (200)
  --http-status-after N:C  status C from the request number N + 1 on

Getting ready
  --delay MS               time until it is ready (0)
  --until PATH             it is not ready before this file is there
  --pid-file PATH          written when ready
  --ready-line TEXT        printed to stdout when ready
  --ready-line-err TEXT    printed to stderr when ready
  --ready-line-times N     print the ready lines N times (1)
  --ready-line-partial     print them without a newline
  --sd-notify              send READY=1 to $NOTIFY_SOCKET when ready
  --line TEXT              printed to stdout at the very start
  --line-err TEXT          printed to stderr at the very start
  --print-env              prints its environment at the very start, as `env: KEY=VALUE`
  --stamp FILE             appends `EVENT NANOSECONDS` (CLOCK_MONOTONIC): start, ready, flooded, signal, exit

Output
  --flood-before BYTES     prints that much before it is ready, half to stdout and half to stderr
  --flood-after BYTES      prints that much after it is ready, then the line `flooded`

Ending
  --exit-before-ready CODE ends instead of getting ready
  --die-before-ready SIG   kills itself with the signal of that number instead of getting ready
  --exit-after MS[:CODE]   ends that long after it was ready (code 0)
  --stop-delay MS          takes that long to end after SIGTERM, SIGINT or SIGQUIT
  --exit-on-term CODE      ends with that code then; without it, it dies by the very signal
  --leave-files            does not remove its sockets and its pid file at the end
  --ignore-term            deaf: ignores or blocks every signal that can be
  --stop-self              stops itself (SIGSTOP) once ready
  --lifetime S             ends by itself after that many seconds, at most (120)
  (SIGHUP, SIGUSR1 and SIGUSR2 are printed as `got SIGHUP` and so on, and survived)

Forking (all are there before it is ready)
  --daemonise              double-forks and goes on in a session of its own; the first process exits 0 at once
  --fork N                 N children, each with a child of its own, in the same process group
  --stopped N              N children that stop themselves (SIGSTOP)
  --deaf-daemons N         N double-forked daemons: own session, empty environment, deaf to all signals
  --keep-forking N         N chains (at most 8) that fork and exit as fast as they can, for at most 20 s
  --pids FILE              each process of the tree appends its pid as a line, the main process first
                           (the links of --keep-forking excepted)
";

/// Seconds after which every process of this program is dead.
const MAX_LIFETIME: u64 = 120;
/// Seconds after which every process of `--keep-forking` is dead.
const MAX_FORKING: u64 = 20;
const MAX_CHAINS: usize = 8;
/// The number of unreaped dead links at which a chain pauses. Eight chains with at most ten zombies
/// and a living link each have fewer than 100 processes.
const MAX_UNREAPED: usize = 10;

/// The socket option with which TCP ports are bound.
#[derive(Clone, Copy, Default, PartialEq)]
enum Reuse {
    #[default]
    Addr,
    Port,
    Nothing,
}

#[derive(Default)]
struct Options {
    listen: Vec<String>,
    unix: Vec<PathBuf>,
    seqpacket: Vec<PathBuf>,
    dgram: Vec<PathBuf>,
    http: Vec<String>,
    never_answer: Vec<String>,
    bind_only: Vec<String>,
    reuse: Reuse,
    inherited: bool,
    http_status: u16,
    http_status_after: Option<(usize, u16)>,
    delay: Duration,
    until: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    ready_line: Option<String>,
    ready_line_err: Option<String>,
    ready_line_times: usize,
    ready_line_partial: bool,
    sd_notify: bool,
    line: Vec<String>,
    line_err: Vec<String>,
    print_env: bool,
    stamp: Option<PathBuf>,
    flood_before: u64,
    flood_after: u64,
    exit_before_ready: Option<i32>,
    die_before_ready: Option<i32>,
    exit_after: Option<(Duration, i32)>,
    stop_delay: Duration,
    exit_on_term: Option<i32>,
    leave_files: bool,
    ignore_term: bool,
    stop_self: bool,
    lifetime: u64,
    daemonise: bool,
    fork: usize,
    stopped: usize,
    deaf_daemons: usize,
    keep_forking: usize,
    pids: Option<PathBuf>,
    /// Internal: this process is a deaf daemon, executed again with an empty environment. It writes
    /// to this descriptor once it is set up.
    deaf_daemon: Option<i32>,
}

fn main() {
    let o = options();
    sys::die_after(o.lifetime);
    if let Some(settled) = o.deaf_daemon {
        deaf_daemon(&o, settled);
    }
    if o.ignore_term {
        sys::be_deaf();
    }
    stamp(&o, "start");
    for line in &o.line {
        println!("{line}");
    }
    for line in &o.line_err {
        eprintln!("{line}");
    }
    if o.print_env {
        let mut vars: Vec<_> = std::env::vars_os().collect();
        vars.sort();
        for (key, value) in vars {
            println!("env: {}={}", key.to_string_lossy(), value.to_string_lossy());
        }
    }
    if o.daemonise {
        if sys::fork() != 0 {
            sys::exit_now(0);
        }
        sys::setsid();
        if sys::fork() != 0 {
            sys::exit_now(0);
        }
        // A fork does not inherit the timer.
        sys::die_after(o.lifetime);
    }
    record_pid(&o);
    fork_all(&o);

    let stopping = if o.ignore_term {
        None
    } else {
        Some(sys::catch_signals())
    };
    flood(o.flood_before);
    pause(&stopping, o.delay, &o);
    while o.until.as_ref().is_some_and(|path| !path.exists()) {
        pause(&stopping, Duration::from_millis(2), &o);
    }
    if let Some(code) = o.exit_before_ready {
        stamp(&o, "exit");
        exit(code);
    }
    if let Some(signal) = o.die_before_ready {
        stamp(&o, "exit");
        sys::die_by(signal);
    }

    let o = Arc::new(o);
    listen(&o);
    if let Some(path) = &o.pid_file {
        // The file appears in one step, so that no reader sees half a number.
        let half = path.with_extension("half");
        or_die(
            fs::write(&half, format!("{}\n", std::process::id())),
            &half.display(),
        );
        or_die(fs::rename(&half, path), &path.display());
    }
    stamp(&o, "ready");
    let end = if o.ready_line_partial { "" } else { "\n" };
    for _ in 0..o.ready_line_times {
        if let Some(line) = &o.ready_line {
            print!("{line}{end}");
            let _ = io::stdout().flush();
        }
        if let Some(line) = &o.ready_line_err {
            eprint!("{line}{end}");
        }
    }
    if o.sd_notify {
        sd_notify();
    }
    if o.stop_self {
        sys::stop_self();
    }
    if o.flood_after > 0 {
        flood(o.flood_after);
        println!("flooded");
        stamp(&o, "flooded");
    }
    match o.exit_after {
        Some((after, code)) => {
            pause(&stopping, after, &o);
            finish(&o);
            exit(code);
        }
        None => {
            pause(&stopping, Duration::from_secs(MAX_LIFETIME), &o);
            finish(&o);
        }
    }
}

/// Sleeps for this time, and handles signals that arrive in the meantime.
fn pause(signals: &Option<UnixStream>, time: Duration, o: &Options) {
    let end = sys::monotonic() + time;
    loop {
        let left = end.saturating_sub(sys::monotonic());
        if left.is_zero() {
            return;
        }
        let Some(stream) = signals else {
            thread::sleep(left);
            continue;
        };
        let mut byte = [0];
        // A read time-out of zero would be an error.
        let _ = stream.set_read_timeout(Some(left.max(Duration::from_millis(1))));
        let mut reader: &UnixStream = stream;
        if reader.read(&mut byte).unwrap_or(0) == 1 {
            obey(i32::from(byte[0]), o);
        }
    }
}

fn obey(signal: i32, o: &Options) {
    let name = match signal {
        sys::SIGTERM => "SIGTERM",
        sys::SIGINT => "SIGINT",
        sys::SIGQUIT => "SIGQUIT",
        sys::SIGHUP => "SIGHUP",
        sys::SIGUSR1 => "SIGUSR1",
        _ => "SIGUSR2",
    };
    println!("got {name}");
    let _ = io::stdout().flush();
    if !matches!(signal, sys::SIGTERM | sys::SIGINT | sys::SIGQUIT) {
        return;
    }
    stamp(o, "signal");
    thread::sleep(o.stop_delay);
    finish(o);
    match o.exit_on_term {
        Some(code) => exit(code),
        None => sys::die_by(signal),
    }
}

/// Removes files and takes the last stamp, before a regular end.
fn finish(o: &Options) {
    if !o.leave_files {
        for path in o
            .unix
            .iter()
            .chain(&o.seqpacket)
            .chain(&o.dgram)
            .chain(&o.pid_file)
        {
            let _ = fs::remove_file(path);
        }
    }
    stamp(o, "exit");
}

// ---- forking ------------------------------------------------------------------------------------

/// Forks all requested processes. Returns when each of them is set up and has recorded its pid.
fn fork_all(o: &Options) {
    let (reader, writer) = sys::pipe();
    let settled = writer.as_raw_fd();
    let mut expected = 0;
    for _ in 0..o.fork {
        expected += 2;
        if sys::fork() == 0 {
            sys::fork();
            sys::die_after(o.lifetime);
            record_pid(o);
            sys::write_byte(settled);
            sleep_to_death();
        }
    }
    for _ in 0..o.stopped {
        expected += 1;
        if sys::fork() == 0 {
            sys::die_after(o.lifetime);
            record_pid(o);
            sys::write_byte(settled);
            sys::stop_self();
            sleep_to_death();
        }
    }
    for _ in 0..o.deaf_daemons {
        expected += 1;
        if sys::fork() == 0 {
            sys::be_deaf();
            sys::setsid();
            if sys::fork() != 0 {
                sys::exit_now(0);
            }
            // `/proc` shows the environment of the last exec, so only another exec can empty it.
            let exe = or_die(std::env::current_exe(), &"current_exe");
            let mut args = vec![
                "--lifetime".to_owned(),
                o.lifetime.to_string(),
                "--deaf-daemon".to_owned(),
                settled.to_string(),
            ];
            if let Some(pids) = &o.pids {
                args.push("--pids".to_owned());
                args.push(pids.display().to_string());
            }
            sys::exec_with_empty_environment(&exe, &args);
        }
        // Reaps the daemon's parent, which exits at once.
        sys::wait_for_a_child();
    }
    let end = sys::monotonic() + Duration::from_secs(o.lifetime.min(MAX_FORKING));
    for _ in 0..o.keep_forking.min(MAX_CHAINS) {
        expected += 1;
        if sys::fork() == 0 {
            // Each link must be an orphan. If it were a child of this process, nothing would reap
            // it.
            if sys::fork() != 0 {
                sys::exit_now(0);
            }
            sys::die_after(MAX_FORKING);
            sys::write_byte(settled);
            chain(end);
        }
        sys::wait_for_a_child();
    }
    drop(writer);
    let mut bytes = Vec::new();
    let _ = reader.take(expected).read_to_end(&mut bytes);
}

/// Forks and exits as fast as possible. By the time a killer sees a process, another one has
/// replaced it.
///
/// The chain pauses only while its last ten links are zombies that no process has reaped. A proper
/// supervisor reaps them, so the chain does not pause. After a failed test, the pause keeps zombies
/// from filling the process table.
fn chain(end: Duration) -> ! {
    let mut links = [0; MAX_UNREAPED];
    for turn in 0.. {
        let oldest = links[turn % MAX_UNREAPED];
        while oldest != 0 && sys::exists(oldest) {
            if sys::monotonic() > end {
                sys::exit_now(0);
            }
            thread::sleep(Duration::from_micros(200));
        }
        links[turn % MAX_UNREAPED] = sys::pid();
        // The chain also ends if a fork fails.
        if sys::monotonic() > end || sys::fork() != 0 {
            break;
        }
    }
    sys::exit_now(0)
}

fn deaf_daemon(o: &Options, settled: i32) -> ! {
    sys::be_deaf();
    record_pid(o);
    sys::write_byte(settled);
    sys::close(settled);
    sleep_to_death()
}

fn sleep_to_death() -> ! {
    loop {
        thread::sleep(Duration::from_secs(MAX_LIFETIME));
    }
}

/// Appends the pid with a single `write`, so that lines of several processes do not mix.
fn record_pid(o: &Options) {
    if let Some(path) = &o.pids {
        append(path, &format!("{}\n", sys::pid()));
    }
}

// ---- listening ----------------------------------------------------------------------------------

fn listen(o: &Arc<Options>) {
    for addr in &o.bind_only {
        // The socket stays open and bound until the process ends.
        let _ = or_die(sys::bind_tcp(resolve(addr), o.reuse), addr).into_raw_fd();
    }
    let own = o.listen.iter().map(|addr| bind(addr, o.reuse));
    let inherited = if o.inherited { inherited() } else { Vec::new() };
    for listener in own.chain(inherited) {
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || echo(stream.try_clone(), stream));
            }
        });
    }
    for addr in &o.never_answer {
        let listener = bind(addr, o.reuse);
        thread::spawn(move || {
            let silent: Vec<TcpStream> = listener.incoming().flatten().collect();
            drop(silent);
        });
    }
    let requests = Arc::new(AtomicUsize::new(0));
    for addr in &o.http {
        let listener = bind(addr, o.reuse);
        let (o, requests) = (o.clone(), requests.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (o, requests) = (o.clone(), requests.clone());
                thread::spawn(move || {
                    let _ = answer_http(stream, &o, &requests);
                });
            }
        });
    }
    for path in &o.unix {
        let listener = or_die(UnixListener::bind(path), &path.display());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || echo(stream.try_clone(), stream));
            }
        });
    }
    for path in &o.seqpacket {
        let _ = or_die(sys::listen_seqpacket(path), &path.display()).into_raw_fd();
    }
    for path in &o.dgram {
        let _ = or_die(UnixDatagram::bind(path), &path.display()).into_raw_fd();
    }
}

fn bind(addr: &str, reuse: Reuse) -> TcpListener {
    let wanted = resolve(addr);
    let listener = if reuse != Reuse::Addr {
        let socket = or_die(sys::bind_tcp(wanted, reuse), &addr);
        or_die(sys::listen(&socket), &addr);
        TcpListener::from(socket)
    } else {
        or_die(TcpListener::bind(wanted), &addr)
    };
    if wanted.port() == 0 {
        println!("listening on {}", or_die(listener.local_addr(), &addr));
    }
    listener
}

/// The sockets that systemd's protocol passes to this process.
fn inherited() -> Vec<TcpListener> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    if variable("LISTEN_PID") != std::process::id().to_string() {
        eprintln!(
            "mirakuru-odd-service: LISTEN_PID is `{}`, which is not this process",
            variable("LISTEN_PID")
        );
        exit(1);
    }
    println!(
        "inherited: {} {}",
        variable("LISTEN_FDS"),
        variable("LISTEN_FDNAMES")
    );
    let count: i32 = variable("LISTEN_FDS").parse().unwrap_or(0);
    // SAFETY: by the protocol, these descriptors are sockets that nothing else in this process
    // owns.
    (3..3 + count)
        .map(|fd| unsafe { TcpListener::from_raw_fd(fd) })
        .collect()
}

fn resolve(addr: &str) -> SocketAddr {
    or_die(addr.parse().map_err(io::Error::other), &addr)
}

fn echo<S: Read + Write>(reader: io::Result<S>, mut writer: S) {
    let Ok(reader) = reader else { return };
    for line in BufReader::new(reader).lines() {
        let Ok(line) = line else { return };
        let answer = match line.trim() {
            "PING" => format!("PONG {}\n", std::process::id()),
            other => format!("{other}\n"),
        };
        if writer.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Answers one request, and closes the connection.
fn answer_http(mut stream: TcpStream, o: &Options, requests: &AtomicUsize) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        // A TCP probe connects without sending a request.
        return Ok(());
    }
    let number = requests.fetch_add(1, Ordering::SeqCst);
    let status = match o.http_status_after {
        Some((n, status)) if number >= n => status,
        _ => o.http_status,
    };
    let mut words = first.split_whitespace();
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let mut seen = format!("request: {method} {target} -> {status}\n");
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        seen += &format!("header: {line}\n");
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if length > 0 {
        seen += &format!("body: {}\n", String::from_utf8_lossy(&body));
    }
    print!("{seen}");
    io::stdout().flush()?;
    let text = if method == "HEAD" || status == 204 {
        ""
    } else {
        seen.as_str()
    };
    // The answer is a single write. The kernel would delay the small writes that `write!` makes.
    let answer = format!(
        "HTTP/1.1 {status} Odd\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: \
            close\r\n\r\n{text}",
        text.len()
    );
    stream.write_all(answer.as_bytes())
}

fn sd_notify() {
    let Ok(path) = std::env::var("NOTIFY_SOCKET") else {
        eprintln!("--sd-notify: NOTIFY_SOCKET is not set");
        exit(2);
    };
    let socket = or_die(UnixDatagram::unbound(), &"socket");
    #[cfg(target_os = "linux")]
    if let Some(name) = path.strip_prefix('@') {
        use std::os::linux::net::SocketAddrExt;
        let addr = or_die(std::os::unix::net::SocketAddr::from_abstract_name(name), &path);
        or_die(socket.send_to_addr(b"READY=1\n", &addr), &path);
        return;
    }
    or_die(socket.send_to(b"READY=1\n", &path), &path);
}

// ---- output -------------------------------------------------------------------------------------

/// Prints this many bytes, in lines of 64 and in blocks that alternate between stdout and stderr.
fn flood(bytes: u64) {
    const LINE: &[u8; 64] = b"flood: the quick brown fox jumps over the lazy dog, and again..\n";
    let block: Vec<u8> = LINE.iter().copied().cycle().take(64 * 1024).collect();
    let mut left = bytes;
    let mut to_stdout = true;
    while left > 0 {
        let part = &block[..left.min(block.len() as u64) as usize];
        let done = if to_stdout {
            io::stdout().write_all(part)
        } else {
            io::stderr().write_all(part)
        };
        or_die(done, &"flood");
        left -= part.len() as u64;
        to_stdout = !to_stdout;
    }
    let _ = io::stdout().flush();
}

fn stamp(o: &Options, event: &str) {
    if let Some(path) = &o.stamp {
        append(path, &format!("{event} {}\n", sys::monotonic().as_nanos()));
    }
}

fn append(path: &PathBuf, line: &str) {
    let file = OpenOptions::new().append(true).create(true).open(path);
    or_die(
        file.and_then(|mut f| f.write_all(line.as_bytes())),
        &path.display(),
    );
}

fn or_die<T>(result: io::Result<T>, what: &dyn std::fmt::Display) -> T {
    result.unwrap_or_else(|e| {
        eprintln!("mirakuru-odd-service: {what}: {e}");
        exit(1)
    })
}

// ---- options ------------------------------------------------------------------------------------

fn options() -> Options {
    let mut o = Options {
        http_status: 200,
        ready_line_times: 1,
        lifetime: MAX_LIFETIME,
        ..Options::default()
    };
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let mut value = || {
            args.next().unwrap_or_else(|| {
                eprintln!("mirakuru-odd-service: {flag} needs a value; see --help");
                exit(2)
            })
        };
        match flag.as_str() {
            "--help" => {
                print!("{HELP}");
                exit(0);
            }
            "--listen" => o.listen.push(value()),
            "--unix" => o.unix.push(value().into()),
            "--seqpacket" => o.seqpacket.push(value().into()),
            "--dgram" => o.dgram.push(value().into()),
            "--http" => o.http.push(value()),
            "--accept-never-answer" => o.never_answer.push(value()),
            "--bind-only" => o.bind_only.push(value()),
            "--no-reuseaddr" => o.reuse = Reuse::Nothing,
            "--reuse-port" => o.reuse = Reuse::Port,
            "--inherited" => o.inherited = true,
            "--http-status" => o.http_status = number(&flag, &value()),
            "--http-status-after" => o.http_status_after = Some(pair(&flag, &value(), None)),
            "--delay" => o.delay = Duration::from_millis(number(&flag, &value())),
            "--until" => o.until = Some(value().into()),
            "--pid-file" => o.pid_file = Some(value().into()),
            "--ready-line" => o.ready_line = Some(value()),
            "--ready-line-err" => o.ready_line_err = Some(value()),
            "--ready-line-times" => o.ready_line_times = number(&flag, &value()),
            "--ready-line-partial" => o.ready_line_partial = true,
            "--sd-notify" => o.sd_notify = true,
            "--line" => o.line.push(value()),
            "--line-err" => o.line_err.push(value()),
            "--print-env" => o.print_env = true,
            "--stamp" => o.stamp = Some(value().into()),
            "--flood-before" => o.flood_before = number(&flag, &value()),
            "--flood-after" => o.flood_after = number(&flag, &value()),
            "--exit-before-ready" => o.exit_before_ready = Some(number(&flag, &value())),
            "--die-before-ready" => o.die_before_ready = Some(number(&flag, &value())),
            "--exit-after" => {
                let (after, code) = pair(&flag, &value(), Some(0));
                o.exit_after = Some((Duration::from_millis(after), code));
            }
            "--stop-delay" => o.stop_delay = Duration::from_millis(number(&flag, &value())),
            "--exit-on-term" => o.exit_on_term = Some(number(&flag, &value())),
            "--leave-files" => o.leave_files = true,
            "--ignore-term" => o.ignore_term = true,
            "--stop-self" => o.stop_self = true,
            "--lifetime" => o.lifetime = number::<u64>(&flag, &value()).clamp(1, MAX_LIFETIME),
            "--daemonise" => o.daemonise = true,
            "--fork" => o.fork = number(&flag, &value()),
            "--stopped" => o.stopped = number(&flag, &value()),
            "--deaf-daemons" => o.deaf_daemons = number(&flag, &value()),
            "--keep-forking" => o.keep_forking = number(&flag, &value()),
            "--pids" => o.pids = Some(value().into()),
            "--deaf-daemon" => o.deaf_daemon = Some(number(&flag, &value())),
            _ => {
                eprintln!("mirakuru-odd-service: unknown option {flag}; see --help");
                exit(2);
            }
        }
    }
    // These limits keep the number of processes below 100, not counting the links of the chains.
    o.fork = o.fork.min(20);
    o.stopped = o.stopped.min(20);
    o.deaf_daemons = o.deaf_daemons.min(20);
    o
}

fn number<T: FromStr>(flag: &str, text: &str) -> T {
    text.parse().unwrap_or_else(|_| {
        eprintln!("mirakuru-odd-service: {flag} needs a number, not `{text}`");
        exit(2)
    })
}

fn pair<A: FromStr, B: FromStr>(flag: &str, text: &str, default: Option<B>) -> (A, B) {
    match (text.split_once(':'), default) {
        (Some((a, b)), _) => (number(flag, a), number(flag, b)),
        (None, Some(b)) => (number(flag, text), b),
        (None, None) => {
            eprintln!("mirakuru-odd-service: {flag} needs two numbers with a colon between, not `{text}`");
            exit(2)
        }
    }
}

/// System calls that the standard library lacks. All forks happen before the first thread starts,
/// so a child may use the whole standard library.
mod sys {
    use super::*;
    use std::ffi::CString;
    use std::os::raw::{c_char, c_int, c_long, c_uint, c_void};
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    pub(crate) const SIGHUP: c_int = 1;
    pub(crate) const SIGINT: c_int = 2;
    pub(crate) const SIGQUIT: c_int = 3;
    pub(crate) const SIGTERM: c_int = 15;
    #[cfg(target_os = "linux")]
    const SIGKILL: c_int = 9;
    const SIGALRM: c_int = 14;
    #[cfg(target_os = "linux")]
    mod numbers {
        pub(crate) const SIGUSR1: i32 = 10;
        pub(crate) const SIGUSR2: i32 = 12;
        pub(crate) const SIGCHLD: i32 = 17;
        pub(crate) const SIGSTOP: i32 = 19;
        pub(crate) const CLOCK_MONOTONIC: i32 = 1;
        pub(crate) const SIG_BLOCK: i32 = 0;
        pub(crate) const SIG_UNBLOCK: i32 = 1;
    }
    #[cfg(not(target_os = "linux"))]
    mod numbers {
        // The values on macOS.
        pub(crate) const SIGUSR1: i32 = 30;
        pub(crate) const SIGUSR2: i32 = 31;
        pub(crate) const SIGCHLD: i32 = 20;
        pub(crate) const SIGSTOP: i32 = 17;
        pub(crate) const CLOCK_MONOTONIC: i32 = 6;
        pub(crate) const SIG_BLOCK: i32 = 1;
        pub(crate) const SIG_UNBLOCK: i32 = 2;
    }
    pub(crate) use numbers::*;

    const SIG_DFL: usize = 0;
    const SIG_IGN: usize = 1;

    #[repr(C)]
    struct Timespec {
        sec: c_long,
        nsec: c_long,
    }

    /// At least as large as `sigset_t` on any platform.
    #[repr(C, align(16))]
    struct SigSet([u8; 128]);

    unsafe extern "C" {
        #[link_name = "fork"]
        fn c_fork() -> c_int;
        #[link_name = "setsid"]
        fn c_setsid() -> c_int;
        #[link_name = "close"]
        fn c_close(fd: c_int) -> c_int;
        #[link_name = "pipe"]
        fn c_pipe(fds: *mut c_int) -> c_int;
        fn getpid() -> c_int;
        fn _exit(code: c_int) -> !;
        fn kill(pid: c_int, signal: c_int) -> c_int;
        fn signal(signal: c_int, handler: usize) -> usize;
        fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
        fn write(fd: c_int, bytes: *const c_void, count: usize) -> isize;
        fn execve(path: *const c_char, argv: *const *const c_char, envp: *const *const c_char) -> c_int;
        fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int;
        fn sigfillset(set: *mut SigSet) -> c_int;
        fn sigdelset(set: *mut SigSet, signal: c_int) -> c_int;
        fn sigprocmask(how: c_int, set: *const SigSet, old: *mut SigSet) -> c_int;
        fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
        fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, length: c_uint) -> c_int;
        #[link_name = "bind"]
        fn c_bind(fd: c_int, addr: *const c_void, length: c_uint) -> c_int;
        #[link_name = "listen"]
        fn c_listen(fd: c_int, backlog: c_int) -> c_int;
        fn alarm(seconds: c_uint) -> c_uint;
    }

    pub(crate) fn fork() -> c_int {
        // SAFETY: the process has only one thread at this time.
        unsafe { c_fork() }
    }

    pub(crate) fn setsid() {
        // SAFETY: `setsid` accesses no memory.
        unsafe { c_setsid() };
    }

    pub(crate) fn close(fd: c_int) {
        // SAFETY: nothing else owns the descriptor that the caller passes.
        unsafe { c_close(fd) };
    }

    /// The process id. The standard library could return one that was cached before a fork.
    pub(crate) fn pid() -> c_int {
        // SAFETY: `getpid` accesses no memory.
        unsafe { getpid() }
    }

    /// Exits without the clean-up that belongs to the parent process.
    pub(crate) fn exit_now(code: c_int) -> ! {
        // SAFETY: `_exit` accesses no memory and does not return.
        unsafe { _exit(code) }
    }

    /// Whether a process has this id, even as a zombie.
    pub(crate) fn exists(pid: c_int) -> bool {
        // SAFETY: `kill` accesses no memory, and signal 0 is never delivered.
        unsafe { kill(pid, 0) == 0 }
    }

    pub(crate) fn stop_self() {
        // SAFETY: `kill` accesses no memory.
        unsafe { kill(getpid(), SIGSTOP) };
    }

    pub(crate) fn wait_for_a_child() {
        // SAFETY: `waitpid` accepts a null pointer for the status.
        unsafe { waitpid(-1, std::ptr::null_mut(), 0) };
    }

    pub(crate) fn write_byte(fd: c_int) {
        // SAFETY: `write` reads one byte from a live buffer.
        unsafe { write(fd, [1u8].as_ptr().cast(), 1) };
    }

    /// A pipe that children inherit, even across an exec.
    pub(crate) fn pipe() -> (fs::File, fs::File) {
        let mut fds = [0; 2];
        // SAFETY: `pipe` writes two numbers to a live buffer, and nothing else owns these
        // descriptors.
        unsafe {
            if c_pipe(fds.as_mut_ptr()) != 0 {
                or_die::<()>(Err(io::Error::last_os_error()), &"pipe");
            }
            (fs::File::from_raw_fd(fds[0]), fs::File::from_raw_fd(fds[1]))
        }
    }

    pub(crate) fn monotonic() -> Duration {
        let mut now = Timespec { sec: 0, nsec: 0 };
        // SAFETY: `clock_gettime` writes to a live buffer.
        unsafe { clock_gettime(CLOCK_MONOTONIC, &mut now) };
        Duration::new(now.sec as u64, now.nsec as u32)
    }

    /// Makes the kernel send SIGKILL to this process after this many seconds. `alarm` would not do:
    /// SIGALRM does not end a process that is stopped or ignores it.
    #[cfg(target_os = "linux")]
    pub(crate) fn die_after(seconds: u64) {
        #[repr(C)]
        struct SigEvent {
            value: usize,
            signal: c_int,
            notify: c_int,
            rest: [u8; 64],
        }
        #[repr(C)]
        struct TimerSpec {
            interval: Timespec,
            value: Timespec,
        }
        unsafe extern "C" {
            fn timer_create(clock: c_int, event: *mut SigEvent, timer: *mut *mut c_void) -> c_int;
            fn timer_settime(
                timer: *mut c_void,
                flags: c_int,
                new: *const TimerSpec,
                old: *mut TimerSpec,
            ) -> c_int;
        }
        let mut event = SigEvent {
            value: 0,
            signal: SIGKILL,
            notify: 0,
            rest: [0; 64],
        };
        let mut timer = std::ptr::null_mut();
        let spec = TimerSpec {
            interval: Timespec { sec: 0, nsec: 0 },
            value: Timespec {
                sec: seconds as c_long,
                nsec: 0,
            },
        };
        // SAFETY: all pointers are to live values with the layout of the C types. The event is at
        // least as large as its C type.
        let failed = unsafe {
            timer_create(CLOCK_MONOTONIC, &mut event, &mut timer) != 0
                || timer_settime(timer, 0, &spec, std::ptr::null_mut()) != 0
        };
        if failed {
            or_die::<()>(Err(io::Error::last_os_error()), &"timer_create");
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn die_after(seconds: u64) {
        // SAFETY: `alarm` accesses no memory.
        unsafe { alarm(seconds as c_uint) };
    }

    /// Ignores and blocks every signal that can be ignored or blocked. SIGALRM is excepted on
    /// systems where it ends the process after its lifetime.
    pub(crate) fn be_deaf() {
        // SAFETY: the set is live and at least as large as `sigset_t`; SIG_IGN installs no handler.
        unsafe {
            for number in 1..32 {
                // If SIGCHLD were ignored, the kernel would reap children by itself.
                if number != SIGCHLD && (cfg!(target_os = "linux") || number != SIGALRM) {
                    signal(number, SIG_IGN);
                }
            }
            let mut all = SigSet([0; 128]);
            sigfillset(&mut all);
            if cfg!(not(target_os = "linux")) {
                sigdelset(&mut all, SIGALRM);
                alarm(MAX_LIFETIME as c_uint);
            }
            sigprocmask(SIG_BLOCK, &all, std::ptr::null_mut());
        }
    }

    static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

    extern "C" fn on_signal(number: c_int) {
        let byte = number as u8;
        // SAFETY: `write` is async-signal-safe, and reads one byte from a live buffer.
        unsafe { write(SIGNAL_PIPE.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
    }

    /// From now on, each signal is one byte to read from the returned stream.
    pub(crate) fn catch_signals() -> UnixStream {
        let (reader, writer) = or_die(UnixStream::pair(), &"socketpair");
        SIGNAL_PIPE.store(writer.into_raw_fd(), Ordering::Relaxed);
        let handler = on_signal as extern "C" fn(c_int) as usize;
        for number in [SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2] {
            // SAFETY: the handler only makes async-signal-safe calls.
            unsafe { signal(number, handler) };
        }
        reader
    }

    /// Dies by this signal, like a process that does not handle it.
    pub(crate) fn die_by(number: c_int) -> ! {
        // SAFETY: the set is live and at least as large as `sigset_t`.
        unsafe {
            signal(number, SIG_DFL);
            let mut all = SigSet([0; 128]);
            sigfillset(&mut all);
            sigprocmask(SIG_UNBLOCK, &all, std::ptr::null_mut());
            kill(getpid(), number);
        }
        // The kernel may take a moment to deliver the signal to another thread.
        thread::sleep(Duration::from_secs(5));
        exit(1)
    }

    pub(crate) fn exec_with_empty_environment(program: &Path, args: &[String]) -> ! {
        let c = |bytes: &[u8]| CString::new(bytes).unwrap_or_default();
        let program = c(program.as_os_str().as_bytes());
        let mut words = vec![program.clone()];
        words.extend(args.iter().map(|a| c(a.as_bytes())));
        let mut argv: Vec<*const c_char> = words.iter().map(|w| w.as_ptr()).collect();
        argv.push(std::ptr::null());
        let envp = [std::ptr::null()];
        // SAFETY: the path and all strings are live and NUL-terminated, and both arrays end with a
        // null pointer.
        unsafe { execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
        or_die::<()>(Err(io::Error::last_os_error()), &"execve");
        exit_now(127)
    }

    const AF_UNIX: c_int = 1;
    const AF_INET: c_int = 2;
    #[cfg(target_os = "linux")]
    const AF_INET6: c_int = 10;
    #[cfg(not(target_os = "linux"))]
    const AF_INET6: c_int = 30;
    const SOCK_STREAM: c_int = 1;
    const SOCK_SEQPACKET: c_int = 5;

    /// The first two bytes of a `sockaddr`. On BSD, the first byte is the length.
    fn family(family: c_int, length: u8) -> Vec<u8> {
        if cfg!(any(target_os = "linux", target_os = "android")) {
            (family as u16).to_ne_bytes().to_vec()
        } else {
            vec![length, family as u8]
        }
    }

    fn open(domain: c_int, kind: c_int, addr: &[u8], reuse: Reuse) -> io::Result<OwnedFd> {
        // SAFETY: all pointers are to live buffers of the given lengths, and nothing else owns the
        // new descriptor.
        unsafe {
            let fd = socket(domain, kind, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let fd = OwnedFd::from_raw_fd(fd);
            let linux = cfg!(target_os = "linux");
            let option = match reuse {
                Reuse::Addr if linux => Some((1, 2)),
                Reuse::Addr => Some((0xffff, 4)),
                Reuse::Port if linux => Some((1, 15)),
                Reuse::Port => Some((0xffff, 0x200)),
                Reuse::Nothing => None,
            };
            if let Some((level, name)) = option {
                let one: c_int = 1;
                setsockopt(fd.as_raw_fd(), level, name, (&raw const one).cast(), 4);
            }
            if c_bind(fd.as_raw_fd(), addr.as_ptr().cast(), addr.len() as c_uint) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(fd)
        }
    }

    /// A TCP socket that is bound but does not listen.
    pub(crate) fn bind_tcp(addr: SocketAddr, reuse: Reuse) -> io::Result<OwnedFd> {
        match addr {
            SocketAddr::V4(v4) => {
                let mut bytes = family(AF_INET, 16);
                bytes.extend(v4.port().to_be_bytes());
                bytes.extend(v4.ip().octets());
                bytes.extend([0; 8]);
                open(AF_INET, SOCK_STREAM, &bytes, reuse)
            }
            SocketAddr::V6(v6) => {
                let mut bytes = family(AF_INET6, 28);
                bytes.extend(v6.port().to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend(v6.ip().octets());
                bytes.extend(v6.scope_id().to_ne_bytes());
                open(AF_INET6, SOCK_STREAM, &bytes, reuse)
            }
        }
    }

    pub(crate) fn listen(socket: &OwnedFd) -> io::Result<()> {
        // SAFETY: `listen` accesses no memory.
        match unsafe { c_listen(socket.as_raw_fd(), 128) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(crate) fn listen_seqpacket(path: &Path) -> io::Result<OwnedFd> {
        let mut bytes = family(AF_UNIX, 0);
        bytes.extend(path.as_os_str().as_bytes());
        bytes.push(0);
        let socket = open(AF_UNIX, SOCK_SEQPACKET, &bytes, Reuse::Nothing)?;
        listen(&socket)?;
        Ok(socket)
    }
}
