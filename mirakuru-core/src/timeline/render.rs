//! Writes a run as a page, or as a trace in Chrome's format.

use std::fmt::{self, Write};

use super::model::{End, Kind, Lane, Piece, Run, Service, Start};

/// The page, with a placeholder for the data. It loads no other resources.
const PAGE: &str = include_str!("page.html");
const PLACE: &str = "\"THE DATA\"";

/// The process ids that the services and the critical path have in a trace. Real process ids are
/// smaller.
const SERVICES: u32 = 5_000_000;
const PATH: u32 = 5_000_001;

/// Displays text as a JSON string. Characters with a special meaning in HTML are escaped as well,
/// because the string becomes part of a page.
pub(crate) struct Text<'a>(pub(crate) &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for char in self.0.chars() {
            match char {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => write!(f, "\\u{:04x}", u32::from(char))?,
                char if char.is_control() => write!(f, "\\u{:04x}", u32::from(char))?,
                char => f.write_char(char)?,
            }
        }
        f.write_char('"')
    }
}

/// Displays a number, or `null`.
struct Maybe(Option<u64>);

impl fmt::Display for Maybe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => number.fmt(f),
            None => f.write_str("null"),
        }
    }
}

/// Displays nanoseconds as microseconds.
///
/// Perfetto converts microseconds to nanoseconds in floating point, and older versions truncate the
/// fraction: 1.001 µs becomes 1000 ns. One of two adjacent slices would then overlap the other and
/// be dropped. Adding a tenth of a nanosecond prevents that.
struct Micros(u64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.0 / 1000, self.0 % 1000);
        let is_cut_off = text
            .parse::<f64>()
            .is_ok_and(|micros| ((micros * 1000.0) as u64) < self.0);
        write!(f, "{text}{}", if is_cut_off { "1" } else { "" })
    }
}

/// Writes a list as JSON.
fn list<T>(entries: &[T], each: &dyn Fn(&T) -> String) -> String {
    let mut list = "[".to_owned();
    for entry in entries {
        if list.len() > 1 {
            list.push(',');
        }
        list.push_str(&each(entry));
    }
    list.push(']');
    list
}

pub(crate) fn page(run: &Run) -> String {
    PAGE.replacen(PLACE, &data(run), 1)
}

/// Formats the data for the page's script as JSON.
fn data(run: &Run) -> String {
    let piece = |piece: &Piece| {
        format!(
            "[{},{},{},{}]",
            Text(piece.kind.name()),
            piece.begin,
            piece.end,
            list(&piece.services, &usize::to_string)
        )
    };
    let lane = |lane: &Lane| {
        format!(
            "{{\"name\":{},\"process\":{},\"begin\":{},\"end\":{},\"ended\":{},\"test\":{},\"pieces\":{}}}",
            Text(&lane_name(run, lane)),
            lane.process,
            lane.begin,
            lane.end,
            Text(lane.ended.name()),
            lane.is_test(),
            list(&lane.pieces, &piece)
        )
    };
    let start = |start: &Start| {
        format!(
            "{{\"begin\":{},\"spawned\":{},\"ready\":{},\"stop\":{},\"end\":{},\
             \"died\":{},\"tries\":{},\"ended\":{},\"status\":{},\"error\":{}}}",
            start.begin,
            Maybe(start.spawned),
            Maybe(start.ready),
            Maybe(start.stop),
            start.end,
            Maybe(start.died),
            start.tries,
            Text(start.ended.unwrap_or(End::Open).name()),
            Text(&start.status),
            start
                .error
                .as_deref()
                .map_or("null".to_owned(), |error| Text(error).to_string())
        )
    };
    let service = |service: &Service| {
        format!(
            "{{\"name\":{},\"command\":{},\"pid\":{},\"run\":{},\"starts\":{},\"uses\":{}}}",
            Text(service_name(service)),
            Text(&service.command),
            service.pid,
            service.is_run,
            list(&service.starts, &start),
            list(&service.uses, &|(lane, begin, end)| format!(
                "[{lane},{begin},{end}]"
            ))
        )
    };
    format!(
        "{{\"wall_clock\":{},\"length\":{},\"processes\":{},\n\"services\":{},\n\"lanes\":{},\n\"path\":{}}}",
        run.wall_clock,
        run.length,
        list(&run.processes, &|process| format!(
            "[{},{}]",
            process.pid,
            Text(&process.name)
        )),
        list(&run.services, &service),
        list(&run.lanes, &lane),
        list(&run.path, &|step| {
            let lane = step.lane.map(|lane| lane as u64);
            format!("[{},{}]", Maybe(lane), piece(&step.piece))
        })
    )
}

/// Returns the name of a lane. A lane without a name is a thread that a test has started.
fn lane_name(run: &Run, lane: &Lane) -> String {
    match lane.name.as_str() {
        "" => format!("a thread of {}", run.processes[lane.process].name),
        "main" => format!("main of {}", run.processes[lane.process].name),
        name => name.to_owned(),
    }
}

fn service_name(service: &Service) -> &str {
    match service.name.as_str() {
        "" => &service.id,
        name => name,
    }
}

fn what(run: &Run, piece: &Piece) -> String {
    let names: Vec<&str> = piece
        .services
        .iter()
        .map(|at| service_name(&run.services[*at]))
        .collect();
    let names = names.join(" and ");
    match piece.kind {
        Kind::EndpointLock => format!("waits for its port: {names}"),
        Kind::Start => format!("starts {names}"),
        Kind::Wait => format!("waits for {names}"),
        Kind::Body => "test".to_owned(),
        Kind::Stop => format!("stops {names}"),
        Kind::Gap => "between tests".to_owned(),
    }
}

/// Formats the trace. Tests are threads of their processes. The services are threads of an invented
/// process, and the critical path is a thread of another one. Slices of one thread are nested or
/// side by side, as Perfetto requires.
pub(crate) fn trace(run: &Run) -> String {
    let mut trace = Trace::default();
    trace.name(PATH, None, "critical path");
    trace.name(PATH, Some(1), "critical path");
    trace.name(SERVICES, None, "services");
    for process in &run.processes {
        trace.name(process.pid, None, &format!("{} ({})", process.name, process.pid));
    }
    for step in &run.path {
        let piece = &step.piece;
        let lane = step.lane.map(|lane| &run.lanes[lane]);
        let percent = 100.0 * (piece.end - piece.begin) as f64 / run.length.max(1) as f64;
        let args = format!(
            "\"test\":{},\"percent\":{percent:.2}",
            Text(&lane.map_or(String::new(), |lane| lane_name(run, lane)))
        );
        let lane = lane.map_or(String::new(), |lane| format!("{}: ", lane_name(run, lane)));
        let name = format!("{lane}{}", what(run, piece));
        trace.slice((PATH, 1), "critical", &name, (piece.begin, piece.end), &args);
    }
    for lane in &run.lanes {
        let pid = run.processes[lane.process].pid;
        let track = (pid, lane.thread);
        let name = lane_name(run, lane);
        trace.name(pid, Some(lane.thread), &name);
        let category = match lane.is_test() {
            true => "test",
            false if lane.is_exit => "exit",
            false => "thread",
        };
        let args = format!("\"ended\":{}", Text(lane.ended.name()));
        trace.slice(track, category, &name, (lane.begin, lane.end), &args);
        for piece in lane.pieces.iter().filter(|piece| piece.kind != Kind::Body) {
            let text = what(run, piece);
            trace.slice(track, piece.kind.name(), &text, (piece.begin, piece.end), "");
        }
    }
    for (number, service) in run.services.iter().enumerate() {
        trace.service(run, number as u32 + 1, service);
    }
    format!(
        "{{\"displayTimeUnit\":\"ms\",\"otherData\":{{\"wall_clock_ms\":{}}},\"traceEvents\":[\n{}\n]}}\n",
        run.wall_clock,
        trace.events.join(",\n")
    )
}

#[derive(Default)]
struct Trace {
    events: Vec<String>,
    uses: u32,
}

impl Trace {
    /// Sets the name of a process, or of one of its threads.
    fn name(&mut self, pid: u32, thread: Option<u32>, name: &str) {
        let kind = if thread.is_some() {
            "thread_name"
        } else {
            "process_name"
        };
        self.events.push(format!(
            "{{\"name\":\"{kind}\",\"ph\":\"M\",\"pid\":{pid},\"tid\":{},\"args\":{{\"name\":{}}}}}",
            thread.unwrap_or(0),
            Text(name)
        ));
    }

    fn slice(
        &mut self,
        (pid, tid): (u32, u32),
        category: &str,
        name: &str,
        (begin, end): (u64, u64),
        args: &str,
    ) {
        self.events.push(format!(
            "{{\"name\":{},\"cat\":\"{category}\",\"ph\":\"X\",\"ts\":{},\"dur\":{},\
             \"pid\":{pid},\"tid\":{tid},\"args\":{{{args}}}}}",
            Text(name),
            Micros(begin),
            Micros(end.saturating_sub(begin)),
        ));
    }

    fn service(&mut self, run: &Run, thread: u32, service: &Service) {
        let name = service_name(service);
        self.name(SERVICES, Some(thread), name);
        let args = format!("\"command\":{},\"pid\":{}", Text(&service.command), service.pid);
        for start in &service.starts {
            let track = (SERVICES, thread);
            let up = start.ready.unwrap_or(start.end);
            let failure = start
                .error
                .as_deref()
                .map(|error| format!(",\"error\":{}", Text(error)));
            let begun = format!("{args},\"tries\":{}{}", start.tries, failure.unwrap_or_default());
            self.slice(
                track,
                "start",
                &format!("start {name}"),
                (start.begin, up),
                &begun,
            );
            if start.ready.is_none() {
                continue;
            }
            let down = start.stop.unwrap_or(start.end);
            let status = format!(
                "{args},\"ended\":{},\"status\":{}",
                Text(start.ended.unwrap_or(End::Open).name()),
                Text(&start.status)
            );
            self.slice(track, "run", name, (up, down), &status);
            if start.stop.is_some() {
                self.slice(track, "stop", &format!("stop {name}"), (down, start.end), "");
            }
        }
        // Uses may overlap, so each one is an asynchronous event with a track of its own.
        for (lane, begin, end) in &service.uses {
            self.uses += 1;
            let test = lane_name(run, &run.lanes[*lane]);
            for (phase, at) in [("b", begin), ("e", end)] {
                self.events.push(format!(
                    "{{\"name\":{},\"cat\":\"use\",\"ph\":\"{phase}\",\"id\":{},\"ts\":{},\
                     \"pid\":{SERVICES},\"tid\":{thread},\"args\":{{\"test\":{}}}}}",
                    Text(&format!("{name} in use")),
                    self.uses,
                    Micros(*at),
                    Text(&test)
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVENTS: &str = "P\t7\t0\t0\ttests\t5\t1000\nT\t7\t100\t1\t<a> \
        \"test\"\nB\t7\t100\t1\tid\tredis\tredis --x </script>\t\n\
                          S\t7\t1500\t1\tid\t812\nR\t7\t2100\t1\tid\nK\t7\t5000\t1\tid\n\
                          G\t7\t6000\t1\tid\t5900\texited\nE\t7\t7100\t1\n";

    /// Parses a JSON text strictly according to RFC 8259.
    fn read(json: &str) -> Option<String> {
        let inner = json.strip_prefix('"')?.strip_suffix('"')?;
        let mut text = String::new();
        let mut chars = inner.chars();
        while let Some(char) = chars.next() {
            text.push(match char {
                '\\' => match chars.next()? {
                    'n' => '\n',
                    'u' => {
                        let digits: String = chars.by_ref().take(4).collect();
                        char::from_u32(u32::from_str_radix(&digits, 16).ok()?)?
                    }
                    char @ ('"' | '\\') => char,
                    _ => return None,
                },
                '"' | '\0'..='\u{1f}' => return None,
                char => char,
            });
        }
        Some(text)
    }

    #[test]
    fn a_time_is_the_same_nanosecond_however_it_is_rounded() {
        let text = |nanos| Micros(nanos).to_string();
        assert_eq!(text(1_500), "1.500");
        assert_eq!(text(1_001), "1.0011");
        for nanos in (0..100_000).chain((1 << 40)..(1 << 40) + 100_000) {
            let micros: f64 = text(nanos).parse().unwrap();
            assert_eq!((micros * 1000.0) as u64, nanos);
            assert_eq!((micros * 1000.0).round() as u64, nanos);
        }
    }

    proptest! {
        #[test]
        fn a_text_comes_back_and_is_nothing_to_html(text in "\\PC*|[\\x00-\\x7f\u{2028}é]*") {
            let json = Text(&text).to_string();
            prop_assert!(!json.contains(['<', '>', '&', '\n', '\u{2028}']), "{}", json);
            prop_assert_eq!(read(&json), Some(text));
        }
    }

    #[test]
    fn the_page_holds_the_data_and_no_markup_of_it() {
        let page = page(&Run::of(EVENTS, |_, _| false));
        assert_eq!(PAGE.matches(PLACE).count(), 1);
        assert!(page.contains("redis --x \\u003c/script\\u003e"), "{page}");
        assert!(page.contains("[\"start\",0,2000,[0]]"));
        // Each of these strings would load a resource.
        for outside in ["src=", "href=\"http", "@import", "url(", "fetch("] {
            assert!(!PAGE.contains(outside), "{outside}");
        }
    }

    #[test]
    fn the_trace_is_what_perfetto_reads() {
        let trace = trace(&Run::of(EVENTS, |_, _| false));
        for event in [
            r#"{"name":"thread_name","ph":"M","pid":7,"tid":1,"args":{"name":"\u003ca\u003e \"test\""}}"#,
            r#"{"name":"starts redis","cat":"start","ph":"X","ts":0.000,"dur":2.000,"pid":7,"tid":1,"args":{}}"#,
            r#"{"name":"stop redis","cat":"stop","ph":"X","ts":4.900,"dur":1.000,"pid":5000000,"tid":1,"args":{}}"#,
            r#"{"name":"redis in use","cat":"use","ph":"b","id":1,"ts":2.000,"pid":5000000,"tid":1,"args":{"test":"\u003ca\u003e \"test\""}}"#,
        ] {
            assert!(trace.contains(event), "{event}\n{trace}");
        }
        assert!(trace.contains("\"percent\":28.57"), "{trace}");
    }
}
