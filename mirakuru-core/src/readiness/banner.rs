//! [`Banner`]: a line that the service prints when it is ready.

use crate::util::hash;
use std::hash::Hasher;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::{Prepare, Probe, Readiness};
use crate::error::Error;
use crate::output::log_file::LogFile;
use crate::output::mark::Mark;
use crate::output::reader::OutputReader;
use crate::output::reader::Stream;
use crate::ports::address::{self, host_addrs, reachable};
use crate::readiness::line_watch::{Found, LineWatch, expand_pattern};
use crate::readiness::lines::Line;
use crate::util::text::{distance_within, printable};

/// Ready when the service prints a line that matches a regular expression.
///
/// ```
/// # use mirakuru_core as mirakuru;
/// use mirakuru::{Banner, Executor, OutputExecutor};
///
/// let script = "echo starting; echo 'ready for 12 clients'; exec sleep 60";
/// let mut server: OutputExecutor = Executor::builder(script)
///     .shell(true)
///     .wait_for(Banner::matching(r"ready for \d+ clients"))
///     .start()?;
/// server.stop()?;
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
///
/// Searches the output since the service's last start. By default, searches both streams and the
/// log files; [`stdout`](Banner::stdout) and [`stderr`](Banner::stderr) select one stream.
///
/// # The pattern
///
/// Patterns use the syntax of the crate [regex](https://docs.rs/regex/latest/regex/#syntax). A
/// pattern may match anywhere in a line; `^` and `$` match its beginning and end. It never matches
/// across lines, so a `\n` in it is an error. It matches bytes: `.` is one byte, and `\d`, `\w`,
/// `\s`, `\b` and `(?i)` know only ASCII.
///
/// A pattern is matched against a line as a report shows it, without escape sequences and without
/// text that a carriage return overwrites. With [`raw`](Banner::raw), it is matched against the
/// bytes as they are.
///
/// An unfinished line, such as `ready> `, may match as well. If later output could undo the match
/// (`$` needs the end of the line), the line counts once it has not changed for 50 ms. In a line
/// longer than 64 KiB, only a match of up to 32 KiB is certain to be found.
///
/// Placeholders are filled in, and their values match literally: `listening on {port}`, `socket in
/// {dir}/`. Repetition such as `a{2,3}` is not a placeholder. For `\p{greek}`, write `\p{{greek}}`,
/// because a word in braces is a placeholder.
///
/// # The service chooses its port
///
/// If the service chooses its port itself, a named group `port` gives the executor its
/// [address](crate::executor::Executor::addr). The service already holds the port when it prints
/// the number, so no other process can take it. A group `host` gives the host; without it, the host
/// is 127.0.0.1. A group `addr` may contain both, such as `10.0.0.1:8080`. If the service prints a
/// wildcard address (`0.0.0.0`, `[::]`, `*`), the executor's address is loopback.
///
/// ```
/// # use mirakuru_core as mirakuru;
/// use mirakuru::{Banner, Executor};
///
/// let mut server = Executor::builder("echo 'listening on http://0.0.0.0:40123/'; exec sleep 60")
///     .shell(true)
///     .wait_for(Banner::matching(r"listening on .*:(?<port>\d+)"))
///     .start()?;
/// assert_eq!(server.addr().to_string(), "127.0.0.1:40123");
/// server.stop()?;
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Banner {
    given: String,
    stream: Option<Stream>,
    times: usize,
    raw: bool,
    /// The pattern with its placeholders filled in.
    pattern: String,
    watch: Option<LineWatch>,
    /// The position in the log from which lines count. `None` means the start of the service.
    since: Option<Mark>,
    /// The service's log files, each with its own search. `None` until the first poll.
    files: Option<Vec<(LogFile, LineWatch)>>,
    /// Number of lines that must match: `times`, plus the matching lines that earlier waits have
    /// consumed. 0 until the first poll.
    wanted: usize,
    seen: usize,
    /// The last line that matched.
    line: Option<Line>,
    addr: Option<SocketAddr>,
    /// The length of a matching unfinished line, and the time since the start at which it reached
    /// this length.
    undecided: Option<(usize, Duration)>,
}

/// Time after which an unchanged unfinished line, such as the prompt `login: `, counts as finished.
const SETTLED: Duration = Duration::from_millis(50);

impl Banner {
    /// Waits for a line that matches this pattern.
    pub fn matching(pattern: impl Into<String>) -> Banner {
        let given = pattern.into();
        Banner {
            pattern: given.clone(),
            given,
            stream: None,
            times: 1,
            raw: false,
            watch: None,
            since: None,
            files: None,
            wanted: 1,
            seen: 0,
            line: None,
            addr: None,
            undecided: None,
        }
    }

    /// Searches only standard output. The default is both streams.
    pub fn stdout(mut self) -> Banner {
        self.stream = Some(Stream::Stdout);
        self
    }

    /// Searches only standard error. The default is both streams.
    pub fn stderr(mut self) -> Banner {
        self.stream = Some(Stream::Stderr);
        self
    }

    /// Matches the bytes of a line as the service printed them, including escape sequences and
    /// carriage returns. By default, a line is matched as a report shows it.
    pub fn raw(mut self) -> Banner {
        self.raw = true;
        self
    }

    /// Waits until `n` lines match; the default is 1. For example, PostgreSQL in a container prints
    /// twice that it is ready. A line counts only once, even if it matches several times.
    pub fn times(mut self, n: usize) -> Banner {
        self.times = n;
        self
    }

    /// Counts lines from this [mark](crate::executor::Executor::mark). By default, lines count from
    /// the service's last start.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use std::time::Duration;
    /// use mirakuru::{Banner, Executor, Signal};
    ///
    /// let script = "trap 'echo reloaded' HUP; echo up; while :; do sleep 0.01; done";
    /// let mut service = Executor::builder(script)
    ///     .shell(true)
    ///     .wait_for(Banner::matching("up"))
    ///     .start()?;
    /// let mark = service.mark();
    /// service.signal(Signal::Hup)?;
    /// service.wait_until(Banner::matching("reloaded").since(&mark), Duration::from_secs(5))?;
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    pub fn since(mut self, mark: &Mark) -> Banner {
        self.since = Some(mark.clone());
        self
    }

    /// Whether the result can change only with new output.
    pub(crate) fn is_decided(&self) -> bool {
        self.undecided.is_none()
    }

    /// If the mark belongs to another service, returns the reason for refusing it.
    pub(crate) fn refusal(&self, output: &OutputReader) -> Option<&'static str> {
        self.since.as_ref().and_then(|mark| mark.refusal(output))
    }

    /// The last line that matched.
    pub(crate) fn into_line(self) -> Option<Line> {
        self.line
    }
}

/// Converts a pattern into a condition for the first line that matches, on either stream.
impl From<&str> for Banner {
    fn from(pattern: &str) -> Banner {
        Banner::matching(pattern)
    }
}

impl From<String> for Banner {
    fn from(pattern: String) -> Banner {
        Banner::matching(pattern)
    }
}

impl Readiness for Banner {
    fn describe(&self) -> String {
        let stream = match self.stream {
            None => "",
            Some(Stream::Stdout) => " to standard output",
            Some(Stream::Stderr) => " to standard error",
        };
        let pattern = printable(&self.pattern, 200);
        if self.times == 1 {
            format!("it printed a line{stream} that matches `{pattern}`")
        } else {
            format!("it printed {} lines{stream} that match `{pattern}`", self.times)
        }
    }

    fn fingerprint(&self, hasher: &mut dyn Hasher) {
        let Banner {
            given,
            stream,
            times,
            raw,
            pattern: _,
            watch: _,
            since: _,
            files: _,
            wanted: _,
            line: _,
            seen: _,
            addr: _,
            undecided: _,
        } = self;
        hash::text(hasher, given.as_ref());
        hash::number(hasher, stream.map_or(0, |stream| stream as u64 + 1));
        hash::number(hasher, *times as u64);
        hash::number(hasher, u64::from(*raw));
    }

    fn prepare(&mut self, cx: &mut Prepare<'_>) -> Result<(), Error> {
        if self.times == 0 {
            return Err(cx.invalid(&self.given, "`times(0)` would wait for nothing; the minimum is 1"));
        }
        self.pattern = expand_pattern(&self.given, |text| cx.expand(text))?;
        let watch = LineWatch::new(&self.pattern, self.stream).map_err(|why| cx.invalid(&self.given, why))?;
        self.watch = Some(watch.raw(self.raw));
        self.files = None;
        self.wanted = 0;
        self.line = None;
        self.seen = 0;
        self.addr = None;
        self.undecided = None;
        Ok(())
    }

    fn probe(&mut self, cx: &Probe<'_>) -> io::Result<bool> {
        if let Some(reason) = self.refusal(cx.output) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let Some(watch) = &mut self.watch else {
            return Ok(false);
        };
        // A line satisfies only one wait. The next wait for the same pattern needs a later line.
        let key = (self.pattern.clone(), self.stream);
        if self.wanted == 0 {
            let earlier = if self.since.is_none() {
                cx.lines_found(&key)
            } else {
                0
            };
            self.wanted = earlier + self.times;
        }
        let (seen, addr, line, times) = (&mut self.seen, &mut self.addr, &mut self.line, self.wanted);
        let mut error = None;
        let names = watch.names();
        let mut count = |found: &Found<'_>| {
            if *seen == times {
                return;
            }
            match address(found) {
                Ok(address) => {
                    *seen += 1;
                    *addr = address.or(*addr);
                    *line = Some(Line::new(found, &names));
                }
                Err(text) => error = Some(text),
            }
        };
        let since = self.since.as_ref().unwrap_or(cx.since);
        let files = self.files.get_or_insert_with(|| {
            let mut files = Vec::new();
            if self.stream.is_none() {
                for (number, path) in cx.log_files.iter().enumerate() {
                    files.push((LogFile::new(path, since.file(number)), watch.clone()));
                }
            }
            files
        });
        watch.scan(cx.output, since.output, &mut count)?;
        for (file, watch) in files {
            file.read(&mut |bytes| watch.feed(bytes, &mut count))?;
        }
        match watch.undecided() {
            None => self.undecided = None,
            Some(length) => {
                let now = cx.elapsed();
                let since = self
                    .undecided
                    .filter(|(known, _)| *known == length)
                    .map_or(now, |(_, since)| since);
                self.undecided = Some((length, since));
                if cx.is_over || now.saturating_sub(since) >= SETTLED {
                    self.undecided = None;
                    watch.settle(&mut count);
                }
            }
        }
        if *seen == times {
            if let Some(line) = line {
                cx.found(key, times, line.groups());
            }
            return Ok(true);
        }
        if let Some(text) = error {
            return Err(io::Error::other(text));
        }
        if self.undecided.is_some() {
            return Err(io::Error::other(
                "the last line matches so far, but is not finished, and its end may change that",
            ));
        }
        if *seen > 0 {
            return Err(io::Error::other(format!(
                "{} of {} lines matched so far",
                (*seen + self.times).saturating_sub(times),
                self.times
            )));
        }
        Ok(false)
    }

    fn hint(&self, cx: &Probe<'_>) -> Option<String> {
        let logs = cx.logs();
        let other = match self.stream {
            Some(Stream::Stdout) => Some((Stream::Stderr, logs.stderr(), "standard error")),
            Some(Stream::Stderr) => Some((Stream::Stdout, logs.stdout(), "standard output")),
            None => None,
        };
        if let Some((stream, _, name)) = &other {
            let watch = LineWatch::new(&self.pattern, Some(*stream)).ok()?;
            let found = watch.raw(self.raw).first(cx.output, cx.since.output).ok()?;
            if let Some(line) = found {
                return Some(format!("a line that matches is on {name}: `{line}`"));
            }
        }
        let text = logs.to_string();
        let (line, exact) = nearest(&self.pattern, &text)?;
        let line = printable(line, 200);
        Some(match exact {
            true => format!("compare the pattern with the closest line, which contains part of it: `{line}`"),
            false => format!("compare the pattern with the closest line, `{line}`"),
        })
    }

    fn waits_for_output(&self) -> bool {
        // Log files cause no events, so they must be polled.
        self.undecided.is_none() && self.files.as_ref().is_none_or(Vec::is_empty)
    }

    fn addr(&self) -> Option<SocketAddr> {
        self.addr
    }
}

/// Returns the line that is most similar to the pattern, and whether it contains the pattern's
/// longest literal part. `None` if no line is similar.
fn nearest<'a>(pattern: &str, text: &'a str) -> Option<(&'a str, bool)> {
    /// Minimum length of the literal part. Shorter strings occur in too many lines.
    const LEAST: usize = 4;
    // These limits on the number and the length of lines keep a search within milliseconds.
    const LINES: usize = 500;
    const LENGTH: usize = 300;
    let plain = longest_plain(pattern).to_lowercase();
    if plain.chars().count() < LEAST {
        return None;
    }
    let mut nearest: Option<(usize, &str)> = None;
    let lines = text.lines().rev().filter(|line| !line.trim().is_empty());
    for line in lines.take(LINES) {
        let start: String = line.to_lowercase().chars().take(LENGTH).collect();
        let distance = distance_within(&plain, &start);
        if nearest.is_none_or(|(least, _)| distance < least) {
            nearest = Some((distance, line));
        }
    }
    let (distance, line) = nearest?;
    (distance <= plain.chars().count() / 4).then_some((line, distance == 0))
}

/// The longest literal part of a regular expression.
fn longest_plain(pattern: &str) -> String {
    let mut parts = vec![String::new()];
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        let plain = match c {
            '\\' => chars.next().filter(|c| !c.is_ascii_alphanumeric()),
            '.' | '^' | '$' | '*' | '+' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '|' => None,
            c => Some(c),
        };
        match plain {
            Some(c) => parts.last_mut().into_iter().for_each(|part| part.push(c)),
            None => parts.push(String::new()),
        }
    }
    parts.into_iter().max_by_key(String::len).unwrap_or_default()
}

/// The address in the line's named groups, if they contain one. The error names the invalid part.
fn address(found: &Found<'_>) -> Result<Option<SocketAddr>, String> {
    let host = found.group("addr").or_else(|| found.group("host"));
    let whole: Option<SocketAddr> = host.and_then(|host| host.parse().ok());
    let (host, port) = match (found.group("port"), whole) {
        (Some(port), None) => (host.unwrap_or("127.0.0.1"), port),
        (Some(port), Some(_)) => return join(host.unwrap_or_default(), Some(port), found),
        (None, Some(_)) => return join(host.unwrap_or_default(), None, found),
        (None, None) => {
            // Text such as `localhost:8080` is an address. A host without a port is not.
            match host.and_then(|host| host.rsplit_once(':')) {
                Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
                    (host, port)
                }
                _ => return Ok(None),
            }
        }
    };
    let port = port_number(port, found)?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let ip = match bare {
        "" | "*" | "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        bare => match bare.parse() {
            Ok(ip) => ip,
            Err(_) => host_addrs(bare, port)
                .ok()
                .and_then(|all| Some(all.first()?.ip()))
                .ok_or_else(|| format!("it printed `{}`, whose host `{bare}` is not known", found.line()))?,
        },
    };
    Ok(Some(SocketAddr::new(reachable(ip), port)))
}

/// Parses a group that contains both host and port. A group `port` overrides the port.
fn join(whole: &str, port: Option<&str>, found: &Found<'_>) -> Result<Option<SocketAddr>, String> {
    let Ok(mut addr) = whole.parse::<SocketAddr>() else {
        return Ok(None);
    };
    if let Some(port) = port {
        addr.set_port(port_number(port, found)?);
    }
    port_number(&addr.port().to_string(), found)?;
    addr.set_ip(reachable(addr.ip()));
    Ok(Some(addr))
}

fn port_number(text: &str, found: &Found<'_>) -> Result<u16, String> {
    address::port_number(text).ok_or_else(|| {
        format!(
            "it printed `{}`, whose port `{text}` is not a TCP port",
            found.line()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::harness::Harness;
    use super::*;

    fn prepared(banner: Banner) -> (Harness, Banner) {
        let harness = Harness::new();
        let mut banner = banner;
        harness.prepare(&mut banner).unwrap();
        (harness, banner)
    }

    /// The address that a pattern finds in a line, or the text of the error.
    fn found(pattern: &str, line: &str) -> Result<String, String> {
        let (harness, mut banner) = prepared(Banner::matching(pattern));
        harness.log.lock().unwrap().stdout(format!("{line}\n"));
        match harness.probe(&mut banner) {
            Ok(true) => Ok(banner.addr().map_or("none".to_owned(), |a| a.to_string())),
            Ok(false) => Err("no match".to_owned()),
            Err(e) => Err(e.to_string()),
        }
    }

    #[test]
    fn the_closest_line_is_a_hint() {
        let hint = |banner: Banner, output: &str| {
            let (harness, banner) = prepared(banner);
            let mut log = harness.log.lock().unwrap();
            log.stdout(output);
            log.stderr("on the other stream\n");
            drop(log);
            harness.with_probe(|cx| banner.hint(cx))
        };
        let log = "starting up\nServer Ready on port 80\nanything else\n";
        for pattern in [
            "^server ready",
            "server redy on",
            r"Server Ready on port (?<port>8080)",
        ] {
            let hint = hint(Banner::matching(pattern), log).unwrap();
            assert!(hint.contains("`Server Ready on port 80`"), "{pattern}: {hint}");
        }
        assert_eq!(hint(Banner::matching("accepting connections"), log), None);
        let hint = hint(Banner::matching("other stream$").stdout(), log).unwrap();
        assert_eq!(
            hint,
            "a line that matches is on standard error: `on the other stream`"
        );
    }

    #[test]
    fn either_stream_since_this_start() {
        let (harness, mut banner) = prepared(Banner::matching("^READY"));
        assert_eq!(banner.describe(), "it printed a line that matches `^READY`");
        assert!(banner.waits_for_output());
        assert!(!harness.probe(&mut banner).unwrap());
        harness.log.lock().unwrap().stdout("not READY\n");
        assert!(!harness.probe(&mut banner).unwrap());
        harness.log.lock().unwrap().stderr("READY\n");
        assert!(harness.probe(&mut banner).unwrap());
        // After another start, the output of the earlier start does not count.
        harness.prepare(&mut banner).unwrap();
        harness.log.lock().unwrap().start();
        assert!(!harness.probe(&mut banner).unwrap());
        harness.log.lock().unwrap().stdout("REA");
        assert!(!harness.probe(&mut banner).unwrap());
        harness.log.lock().unwrap().stdout("DY");
        assert!(harness.probe(&mut banner).unwrap());
    }

    #[test]
    fn one_stream_when_asked_to() {
        let (harness, mut banner) = prepared(Banner::matching("READY").stderr());
        assert_eq!(
            banner.describe(),
            "it printed a line to standard error that matches `READY`"
        );
        harness.log.lock().unwrap().stdout("READY\n");
        assert!(!harness.probe(&mut banner).unwrap());
        harness.log.lock().unwrap().stderr("READY\n");
        assert!(harness.probe(&mut banner).unwrap());
    }

    #[test]
    fn several_times() {
        let (harness, mut banner) = prepared(Banner::matching("ready").times(3));
        assert_eq!(banner.describe(), "it printed 3 lines that match `ready`");
        harness.log.lock().unwrap().stdout("ready ready\nrea");
        assert_eq!(
            harness.probe(&mut banner).unwrap_err().to_string(),
            "1 of 3 lines matched so far"
        );
        harness.log.lock().unwrap().stdout("dy");
        assert_eq!(
            harness.probe(&mut banner).unwrap_err().to_string(),
            "2 of 3 lines matched so far"
        );
        harness.log.lock().unwrap().stdout(" ready\nready\nready\n");
        assert!(harness.probe(&mut banner).unwrap());
    }

    #[test]
    fn what_is_wrong_with_a_pattern_is_said() {
        let harness = Harness::new();
        let text = harness.refusal(&mut Banner::matching("listening on [port"));
        assert!(
            text.starts_with("listening on [port: ") && text.contains("unclosed character class"),
            "{text}"
        );
        let text = harness.refusal(&mut Banner::matching("a\\nb"));
        assert!(text.contains("one line at a time"), "{text}");
        let text = harness.refusal(&mut Banner::matching("a").times(0));
        assert!(text.contains("the minimum is 1"), "{text}");
    }

    #[test]
    fn an_unfinished_line_that_may_still_change_counts_once_it_has_settled() {
        let (harness, mut banner) = prepared(Banner::matching(r"^ready on :(?<port>\d+)$"));
        harness.log.lock().unwrap().stdout("ready on :40");
        let text = harness.probe(&mut banner).unwrap_err().to_string();
        assert!(text.contains("is not finished"), "{text}");
        assert!(!banner.waits_for_output(), "time alone may change the answer");
        // The line has grown, so its waiting time starts again.
        harness.elapsed(SETTLED);
        harness.log.lock().unwrap().stdout("12");
        assert!(harness.probe(&mut banner).is_err());
        harness.elapsed(SETTLED * 2);
        assert!(harness.probe(&mut banner).unwrap());
        assert_eq!(banner.addr().unwrap().port(), 4012);
    }

    #[test]
    fn groups_give_the_address() {
        let port = r"listening on .*:(?<port>\d+)";
        assert_eq!(
            found(port, "listening on http://0.0.0.0:4012/").unwrap(),
            "127.0.0.1:4012"
        );
        let host = r"on (?<host>\S+) port (?<port>\d+)";
        for (line, wanted) in [
            ("on 127.0.0.2 port 80", "127.0.0.2:80"),
            ("on 0.0.0.0 port 80", "127.0.0.1:80"),
            ("on :: port 80", "[::1]:80"),
            ("on [::1] port 80", "[::1]:80"),
            ("on * port 80", "127.0.0.1:80"),
            ("on localhost port 80", "127.0.0.1:80"),
        ] {
            assert_eq!(found(host, line).unwrap(), wanted);
        }
        let addr = r"at (?<addr>\S+)";
        assert_eq!(found(addr, "at 127.0.0.3:81").unwrap(), "127.0.0.3:81");
        assert_eq!(found(addr, "at [::]:81").unwrap(), "[::1]:81");
        assert_eq!(found(addr, "at localhost:81").unwrap(), "127.0.0.1:81");
        assert_eq!(found("(?<host>a) b", "a b").unwrap(), "none");
        assert_eq!(found("plain", "plain").unwrap(), "none");
    }

    #[test]
    fn a_port_that_is_none_is_not_ready() {
        for line in ["port 70000", "port 0"] {
            let text = found(r"port (?<port>\d+)", line).unwrap_err();
            assert!(
                text.contains("is not a TCP port") && text.contains(line),
                "{text}"
            );
        }
        let text = found(r"(?<host>\S+):(?<port>\d+)", "no.such.host.invalid:80").unwrap_err();
        assert!(text.contains("is not known"), "{text}");
    }
}
