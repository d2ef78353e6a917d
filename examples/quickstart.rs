//! Shows mirakuru at work, without any server installed:
//!
//! ```text
//! cargo run --example quickstart
//! ```
//!
//! The server is this program, run again with an argument. Like a real server, it takes 300 ms
//! before it listens. The example starts, uses and stops the server, and shows that nothing is left
//! of it. Then one start fails, and two test processes are killed. If `redis-server` is on the
//! PATH, the example starts Redis as well.

use std::env;
use std::error::Error;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, exit};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use mirakuru::{Banner, Executor, ExecutorBuilder, Tcp, TcpExecutor};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => tour(&Screen::new()),
        ["serve", addr] => serve(addr),
        ["serve", _, menu] => serve_from(menu),
        ["hold"] => hold(),
        ["hold-daemon"] => hold_daemon(),
        _ => Err("the quickstart takes no arguments".into()),
    }
}

/// The recipe for the server: its command and its readiness condition.
fn teahouse() -> io::Result<ExecutorBuilder<Tcp>> {
    Ok(Executor::builder([env::current_exe()?])
        .args(["serve", "127.0.0.1:{port}"])
        .name("teahouse")
        .wait_for(Tcp::addr("127.0.0.1:{port}"))
        .timeout(Duration::from_secs(20)))
}

fn tour(screen: &Screen) -> Result<(), Box<dyn Error>> {
    screen.title("A small server, which takes 300 ms to get ready");
    let server = screen.wait("start", || Ok(teahouse()?.start()?))?;
    screen.row(
        "ready",
        &format!("pid {}, on {}, a port that was free", server.pid(), server.addr()),
    );
    act(screen, server, |addr| get(addr, "/tea"))?;

    screen.title("A start that fails says why");
    let begin = Instant::now();
    match teahouse()?.arg("menu.txt").start() {
        Ok(_) => return Err("a teahouse without a menu must not open".into()),
        Err(error) => {
            screen.timed(
                "failed",
                begin.elapsed(),
                "at once; nobody waits for a dead process",
            );
            screen.quote(&error.to_string());
        }
    }

    screen.title("A test process that is killed (SIGKILL) leaves nothing either");
    let mut test = Command::new(env::current_exe()?)
        .arg("hold")
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(test.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let pid: u32 = line.trim().parse()?;
    screen.row(
        "running",
        &format!("a test, pid {}, and its server, pid {pid}", test.id()),
    );
    let begin = Instant::now();
    test.kill()?;
    test.wait()?;
    until("the server is gone", || gone(pid))?;
    screen.timed("gone", begin.elapsed(), "the server went with the test");
    daemon(screen)?;

    screen.title("The same with Redis");
    if on_path("redis-server") {
        let redis = screen.wait("start", || {
            Ok(
                Executor::builder("redis-server --port {port} --bind 127.0.0.1 --save ''")
                    .current_dir("{dir}")
                    .wait_for(Tcp::addr("127.0.0.1:{port}"))
                    .timeout(Duration::from_secs(20))
                    .start()?,
            )
        })?;
        screen.row("ready", &format!("pid {}, on {}", redis.pid(), redis.addr()));
        act(screen, redis, |addr| redis_says(addr, "PING"))?;
    } else {
        screen.row("skipped", "redis-server is not on the PATH");
    }

    println!("\nNow a test of your own: see README.md");
    Ok(())
}

/// Kills a test process whose service has left a daemon behind. The output of `ps`, which knows
/// nothing of mirakuru, proves that the daemon was running and is gone.
fn daemon(screen: &Screen) -> Result<(), Box<dyn Error>> {
    screen.title("A test that is killed takes a daemon along, too: ask `ps`");
    if !cfg!(target_os = "linux") || !on_path("setsid") || !on_path("ps") {
        screen.row("skipped", "it takes Linux, and `setsid` and `ps` on the PATH");
        return Ok(());
    }
    let mut test = Command::new(env::current_exe()?)
        .arg("hold-daemon")
        .stdout(Stdio::piped())
        .spawn()?;
    let mut pid = String::new();
    BufReader::new(test.stdout.take().ok_or("no output")?).read_line(&mut pid)?;
    let ps = || -> io::Result<String> {
        let output = Command::new("ps")
            .args(["-o", "pid=,ppid=,sid=,args=", "-p", pid.trim()])
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let before = ps()?;
    if !before.contains("sleep") {
        return Err("the daemon does not run".into());
    }
    screen.row("ps says", &format!("{before}   (pid, parent, session, command)"));
    let begin = Instant::now();
    test.kill()?;
    test.wait()?;
    until("the daemon is gone", || ps().is_ok_and(|text| text.is_empty()))?;
    screen.timed("ps says", begin.elapsed(), "there is no such process");
    Ok(())
}

/// Uses a running service, stops it, and checks that nothing of it is left.
fn act(
    screen: &Screen,
    mut server: TcpExecutor,
    ask: impl Fn(SocketAddr) -> io::Result<String>,
) -> Result<(), Box<dyn Error>> {
    let (pid, addr, dir) = (server.pid(), server.addr(), server.dir());

    let begin = Instant::now();
    let answer = ask(addr)?;
    screen.timed("answered", begin.elapsed(), &format!("\u{201c}{answer}\u{201d}"));

    // Simulates an outage: the service is down while the closure runs, and is started again even if
    // the closure panics.
    let begin = Instant::now();
    server.stopped(|| TcpStream::connect(addr).expect_err("nobody is there"))?;
    let text = format!(
        "refused connections, and is back on port {} as pid {}",
        addr.port(),
        server.pid()
    );
    screen.timed("stopped", begin.elapsed(), &text);
    ask(addr)?;

    let second = server.pid();
    let begin = Instant::now();
    server.stop()?;
    let took = begin.elapsed();
    drop(server);
    if !gone(pid) || !gone(second) || TcpStream::connect(addr).is_ok() || dir.exists() {
        return Err("something is left; please report it".into());
    }
    let text = format!(
        "no process {second}, nobody on port {}, no directory",
        addr.port()
    );
    screen.timed("gone", took, &text);
    Ok(())
}

/// Acts as a test process that is killed before it can stop its service.
fn hold() -> Result<(), Box<dyn Error>> {
    let server = teahouse()?.start()?;
    println!("{}", server.pid());
    thread::sleep(Duration::from_secs(60));
    Ok(())
}

/// Acts as a test process whose service has started a daemon, in a session of its own and without a
/// parent.
fn hold_daemon() -> Result<(), Box<dyn Error>> {
    let script = "(setsid sleep 3600 > {dir}/out 2>&1 & echo daemon $!); exec sleep 3600";
    let service = Executor::builder(script)
        .shell(true)
        .wait_for(Banner::matching(r"^daemon (?<pid>\d+)$"))
        .start()?;
    println!("{}", service.captured("pid").ok_or("no pid")?);
    thread::sleep(Duration::from_secs(60));
    Ok(())
}

// ---- the server ---------------------------------------------------------------------------------

fn serve(addr: &str) -> Result<(), Box<dyn Error>> {
    println!("heating the water");
    thread::sleep(Duration::from_millis(300));
    let listener = TcpListener::bind(addr)?;
    println!("open");
    for (guest, stream) in listener.incoming().enumerate() {
        let mut stream = stream?;
        // Reads the whole head. If data were left unread, closing the connection would reset it,
        // and the client might lose the response.
        let lines = BufReader::new(&stream).lines().map_while(Result::ok);
        let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        let Some(request) = head.first() else { continue };
        let body = format!("a cup of tea, from pid {}", std::process::id());
        println!("guest {guest}: {request}");
        write!(
            stream,
            "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
    }
    Ok(())
}

/// A server with a configuration mistake: it exits if it cannot read its menu.
fn serve_from(menu: &str) -> Result<(), Box<dyn Error>> {
    println!("reading {menu}");
    if let Err(error) = std::fs::read_to_string(menu) {
        eprintln!("cannot read {menu}: {error}");
        exit(3);
    }
    Ok(())
}

// ---- its clients --------------------------------------------------------------------------------

/// Sends an HTTP request, and returns the body of the response.
fn get(addr: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => Err(io::Error::other(answer)),
    }
}

/// Sends Redis a command, and returns the reply.
fn redis_says(addr: SocketAddr, command: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    write!(stream, "{command}\r\n")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer.trim_end().trim_start_matches('+').to_owned())
}

// ---- checks of the system -----------------------------------------------------------------------

/// Whether no process has this id, not even a zombie.
fn gone(pid: u32) -> bool {
    if Path::new("/proc/self").exists() {
        return !Path::new("/proc").join(pid.to_string()).exists();
    }
    let answer = Command::new("kill")
        .args(["-0", &pid.to_string()])
        .stderr(Stdio::null())
        .status();
    answer.is_ok_and(|status| !status.success())
}

fn until(what: &str, condition: impl Fn() -> bool) -> Result<(), Box<dyn Error>> {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        if Instant::now() > end {
            return Err(format!("waited 20 s until {what}, in vain").into());
        }
        thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

fn on_path(program: &str) -> bool {
    let dirs: Vec<PathBuf> = env::var_os("PATH")
        .map(|path| env::split_paths(&path).collect())
        .unwrap_or_default();
    dirs.iter().any(|dir| dir.join(program).is_file())
}

// ---- the screen ---------------------------------------------------------------------------------

/// Prints rows of a label, a time and a text, in colour if standard output is a terminal and
/// NO_COLOR is not set.
struct Screen {
    live: bool,
    colour: bool,
}

impl Screen {
    fn new() -> Screen {
        let live = io::stdout().is_terminal();
        let colour = live && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Screen { live, colour }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn title(&self, text: &str) {
        println!("\n{}", self.paint("1", text));
    }

    fn line(&self, label: &str, time: &str, text: &str) {
        // The label is padded before it is coloured, because the colour codes would count as width.
        let colour = if label == "failed" { "31" } else { "32" };
        let label = self.paint(colour, &format!("{label:<9}"));
        let time = self.paint("2", &format!("{time:>8}"));
        println!("  {label} {time}   {text}");
    }

    fn row(&self, label: &str, text: &str) {
        self.line(label, "", text);
    }

    fn timed(&self, label: &str, time: Duration, text: &str) {
        self.line(label, &milliseconds(time), text);
    }

    fn quote(&self, text: &str) {
        for line in text.lines() {
            println!("    {} {line}", self.paint("31", "\u{2502}"));
        }
    }

    /// Runs a slow function. On a terminal, shows how long it has taken so far.
    fn wait<T>(
        &self,
        label: &str,
        work: impl FnOnce() -> Result<T, Box<dyn Error>>,
    ) -> Result<T, Box<dyn Error>> {
        let begin = Instant::now();
        let (done, is_done) = mpsc::channel::<()>();
        let result = thread::scope(|scope| {
            scope.spawn(|| {
                let is_done = is_done;
                // The loop ends when the sender is dropped, even by a panic.
                while self.live
                    && is_done.recv_timeout(Duration::from_millis(30)) == Err(mpsc::RecvTimeoutError::Timeout)
                {
                    print!("\r  waiting   {:>8}", milliseconds(begin.elapsed()));
                    let _ = io::stdout().flush();
                }
            });
            let _done = done;
            work()
        });
        if self.live {
            print!("\r\x1b[K");
        }
        if result.is_ok() {
            self.timed(
                label,
                begin.elapsed(),
                "returned when the server was ready, not before and not much later",
            );
        }
        result
    }
}

fn milliseconds(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1000.0;
    if ms < 10.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.0} ms")
    }
}
