//! Tests of the reader and of snapshots.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;

use crate::output::logs::{Logs, SNAPSHOT, TAIL_LINE};
use crate::output::reader::{Cursor, ORPHANED, OutputReader, Stream};
use crate::output::test_writer::LogWriter;
use crate::readiness::harness::TestDir;
use crate::util::own_process::{is_alone, run_alone, test_name};
use crate::util::text::printable;

fn pair(reader: &OutputReader, cursor: &mut Cursor) -> [Vec<u8>; 2] {
    let mut streams = [Vec::new(), Vec::new()];
    reader
        .read(cursor, |stream, bytes, _| {
            assert!(!bytes.is_empty());
            streams[stream as usize].extend_from_slice(bytes);
        })
        .unwrap();
    streams
}

fn lines(logs: &Logs) -> Vec<&str> {
    logs.lines().collect()
}

#[test]
fn nothing_yet() {
    let dir = TestDir::new();
    let log = LogWriter::create(dir.path());
    let reader = log.reader();
    let mut cursor = reader.end();
    assert!(!reader.read(&mut cursor, |_, _, _| ()).unwrap());
    let logs = reader.snapshot();
    assert!(logs.is_empty() && !logs.truncated() && logs.lines().next().is_none());
    assert_eq!(logs.path(), dir.path().join("log"));
    assert!(reader.tail(10, Cursor::START).is_empty());
    assert_eq!(reader.first_output(Cursor::START), None);
    assert!(OutputReader::open(&dir.path().join("none"), &dir.path().join("log.index")).is_err());
    assert!(!dir.path().join("none").exists());
}

#[test]
fn streams_and_lines_are_put_together() {
    let dir = TestDir::new();
    let mut log = LogWriter::create(dir.path());
    log.stdout("one\ntw");
    log.stderr("ERR");
    log.stdout("o\r\nthree");
    log.stderr("OR\n");
    log.stderr("last");
    let logs = log.reader().snapshot();
    assert_eq!(logs.to_string(), "one\ntwERRo\r\nthreeOR\nlast");
    assert_eq!(logs.stdout(), "one\ntwo\r\nthree");
    assert_eq!(logs.stderr(), "ERROR\nlast");
    assert_eq!(lines(&logs), ["one", "two", "ERROR", "three", "last"]);
}

#[test]
fn a_snapshot_since_begins_there_and_stays_as_it_is() {
    let dir = TestDir::new();
    let mut log = LogWriter::create(dir.path());
    let reader = log.reader();
    log.stdout("before\n");
    let since = reader.end();
    assert!(reader.snapshot_since(since).is_empty());
    assert_eq!(reader.first_output(since), None);
    log.start();
    assert_eq!(reader.first_output(since), None);
    log.stderr("after\n");
    let logs = reader.snapshot_since(since);
    log.stderr("later\n");
    assert_eq!(logs.to_string(), "after\n");
    assert!(!logs.truncated());
    // The records have the times 1001 (`before`), 1002 (start) and 1003 (`after`).
    assert_eq!(reader.first_output(since), Some(1003));
    assert_eq!(reader.first_output(Cursor::START), Some(1001));
    assert_eq!(reader.tail(5, since), ["after", "later"]);
}

#[test]
fn a_start_and_a_loss_end_a_line() {
    let dir = TestDir::new();
    let mut log = LogWriter::create(dir.path());
    log.stdout("half");
    log.stderr("a");
    log.stdout("!");
    log.start();
    log.stdout("\nnew");
    log.lost(Stream::Stdout, 7);
    log.stderr("b\n");
    log.stdout("rest\n");
    let logs = log.reader().snapshot();
    assert_eq!(lines(&logs), ["a", "half!", "", "new", "b", "rest"]);
    assert_eq!(logs.stdout(), "half!\nnewrest\n");
    assert_eq!(logs.lost(), 7);
}

#[test]
fn a_torn_record_is_left_alone_until_it_is_whole() {
    let dir = TestDir::new();
    let mut log = LogWriter::create(dir.path());
    let reader = log.reader();
    log.log.write_all(b"err").unwrap();
    let record = [3, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
    log.index.write_all(&record[..11]).unwrap();
    let mut cursor = Cursor::START;
    assert!(!reader.read(&mut cursor, |_, _, _| ()).unwrap());
    log.index.write_all(&record[11..]).unwrap();
    assert_eq!(pair(&reader, &mut cursor), [b"".to_vec(), b"err".to_vec()]);
}

#[test]
fn bytes_without_a_record_count_as_stdout_and_are_given_once() {
    let dir = TestDir::new();
    let mut log = LogWriter::create(dir.path());
    let reader = log.reader();
    log.stderr("known ");
    log.log.write_all(b"orphan").unwrap();
    let logs = reader.snapshot();
    assert_eq!((logs.stdout(), logs.stderr()), ("orphan", "known "));
    let end = reader.end();
    let mut cursor = Cursor::START;
    // The reader still waits for the record of `orphan`.
    assert_eq!(pair(&reader, &mut cursor), [b"".to_vec(), b"known ".to_vec()]);
    assert_eq!(pair(&reader, &mut cursor)[0], b"");
    thread::sleep(ORPHANED);
    // `orphan` has waited long enough, but the newer bytes have not.
    log.log.write_all(b" and more").unwrap();
    assert_eq!(pair(&reader, &mut cursor), [b"orphan".to_vec(), b"".to_vec()]);
    assert_eq!(pair(&reader, &mut cursor)[0], b"");
    // This record covers both parts; the reader returns only the second.
    log.output(Stream::Stderr, 15);
    assert_eq!(pair(&reader, &mut cursor), [b"".to_vec(), b" and more".to_vec()]);
    let mut cursor = end;
    assert_eq!(pair(&reader, &mut cursor), [b"".to_vec(), b" and more".to_vec()]);
    assert_eq!(reader.snapshot().stderr(), "known orphan and more");
}

#[test]
fn a_file_shorter_than_its_index_ends_nothing_in_a_loop() {
    let dir = TestDir::new();
    let mut log = LogWriter::create(dir.path());
    let reader = log.reader();
    log.stdout("four");
    log.output(Stream::Stdout, 1_000_000);
    let mut cursor = Cursor::START;
    assert_eq!(pair(&reader, &mut cursor)[0], b"four");
    assert_eq!(reader.snapshot().stdout(), "four");
}

#[test]
fn the_tail_is_short_and_harmless() {
    let dir = TestDir::new();
    let mut log = LogWriter::create(dir.path());
    let reader = log.reader();
    log.stdout("x".repeat(100_000));
    log.stdout("\n");
    for number in 0..100 {
        log.stdout(format!("line {number}\n"));
    }
    log.stderr("\u{1b}[31mred\u{1b}[0m \u{1b}]0;title\u{7}and\tbell\u{7}");
    let tail = reader.tail(3, Cursor::START);
    // The tail contains no control sequences and no bell.
    assert_eq!(tail, ["line 98", "line 99", "red and bell"]);
    let tail = reader.tail(1000, Cursor::START);
    assert_eq!(tail.len(), 102);
    assert_eq!(tail[0].chars().count(), TAIL_LINE + 2);
    assert!(tail[0].starts_with("\u{2026}xxx") && tail[0].ends_with("x\u{2026}"));
    assert!(reader.tail(0, Cursor::START).is_empty());
}

#[test]
fn lines_that_repeat_do_not_push_out_the_first_ones() {
    let dir = TestDir::new();
    let mut log = LogWriter::create(dir.path());
    let reader = log.reader();
    log.stdout("version 7\nlistening\n");
    for number in 0..100 {
        log.stderr(format!("12:00:{number:02} [77{number}] FATAL: starting up\n"));
    }
    log.stdout("bye\n");
    let excerpt = reader.excerpt(Cursor::START, 5, 20);
    assert_eq!(
        excerpt.tail,
        [
            "version 7",
            "listening",
            "12:00:00 [770] FATAL: starting up",
            "(98 more lines like this)",
            "12:00:99 [7799] FATAL: starting up",
            "bye"
        ]
    );
    assert!(excerpt.head.is_empty() && excerpt.left_out == 0);
    // These lines differ in more than times and process ids, so they are not folded.
    let since = reader.end();
    log.stdout("1\n2\n3\n4\na\nb\na\nt 1\nt 2\nt 3\n");
    assert_eq!(
        reader.excerpt(since, 5, 20).tail,
        ["1", "2", "3", "4", "a", "b", "a", "t 1", "t 2", "t 3"]
    );
}

#[test]
fn the_first_lines_are_shown_beside_the_last() {
    let words = |from: u32, to: u32| {
        let word = |n: u32| {
            (0..5)
                .rev()
                .map(|d| char::from(b'a' + (n >> (4 * d) & 15) as u8))
                .collect::<String>()
        };
        (from..to).map(word).collect::<Vec<_>>()
    };
    let dir = TestDir::new();
    let mut log = LogWriter::create(dir.path());
    let reader = log.reader();
    log.stdout(words(0, 50).join("\n") + "\n");
    let excerpt = reader.excerpt(Cursor::START, 5, 20);
    assert_eq!(excerpt.head, words(0, 5));
    assert_eq!(excerpt.left_out, 25);
    assert_eq!(excerpt.tail, words(30, 50));
    // Make the log longer than the part that `excerpt` reads.
    log.stdout(words(50, 300_000).join("\n") + "\n");
    let excerpt = reader.excerpt(Cursor::START, 5, 20);
    assert_eq!(excerpt.head, words(0, 5));
    assert_eq!(excerpt.left_out, 300_000 - 25);
    assert_eq!(excerpt.tail, words(299_980, 300_000));
}

#[test]
fn a_snapshot_is_the_last_16_mib() {
    let dir = TestDir::new();
    let mut log = LogWriter::create(dir.path());
    let reader = log.reader();
    let block = format!("{}\n", "x".repeat(999));
    for _ in 0..17_000 {
        log.stdout(&block);
    }
    log.stderr("end\n");
    let logs = reader.snapshot();
    assert!(logs.truncated());
    assert_eq!(logs.to_string().len() as u64, SNAPSHOT);
    assert_eq!(logs.stderr(), "end\n");
    // The output since the cursor is short, so nothing is cut off.
    let mut cursor = Cursor::START;
    reader.read(&mut cursor, |_, _, _| ()).unwrap();
    log.stdout("more");
    let logs = reader.snapshot_since(cursor);
    assert!(!logs.truncated());
    assert_eq!(logs.to_string(), "more");
}

#[test]
fn a_writer_at_work_is_read_without_loss() {
    let dir = TestDir::new();
    let mut log = LogWriter::create(dir.path());
    let reader = log.reader();
    thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..5_000_u32 {
                log.stdout(format!("{number}\n"));
                log.stderr(format!("-{number}\n"));
            }
        });
        let mut cursor = Cursor::START;
        let mut streams = [Vec::new(), Vec::new()];
        // On a busy disk the whole test may be slow, but some output must arrive every minute.
        let mut heard = Instant::now();
        while !streams[1].ends_with(b"-4999\n") && heard.elapsed() < Duration::from_secs(60) {
            let [out, err] = pair(&reader, &mut cursor);
            if !(out.is_empty() && err.is_empty()) {
                heard = Instant::now();
            }
            streams[0].extend(out);
            streams[1].extend(err);
        }
        let wanted: String = (0..5_000).map(|n| format!("{n}\n")).collect();
        assert_eq!(String::from_utf8(streams[0].clone()).unwrap(), wanted);
        let wanted: String = (0..5_000).map(|n| format!("-{n}\n")).collect();
        assert_eq!(String::from_utf8(streams[1].clone()).unwrap(), wanted);
    });
}

/// Reads 100 MB of log and checks that memory use does not grow.
#[test]
#[cfg(target_os = "linux")]
fn memory_stays_flat() {
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
    // Other tests in the same process would change the memory use.
    if !is_alone() {
        return run_alone(test_name!(memory_stays_flat), &[]);
    }
    let dir = TestDir::new();
    let mut log = LogWriter::create(dir.path());
    let reader = log.reader();
    let block = vec![b'x'; 60_000];
    // Make a sparse log of 100 MB, because only the reading is tested.
    log.stdout(&block);
    log.log.set_len(100_000_000).unwrap();
    for _ in 0..1_000 {
        log.output(Stream::Stdout, 99_940);
    }
    let before = resident();
    let mut cursor = Cursor::START;
    let mut total = 0;
    let mut most = 0;
    let read = |_, bytes: &[u8], _| {
        total += bytes.len();
        if total % 7 == 0 {
            most = most.max(resident());
        }
    };
    assert!(reader.read(&mut cursor, read).unwrap());
    assert_eq!(total, 100_000_000);
    let _ = reader.tail(10, Cursor::START);
    let grown = most.max(resident()).saturating_sub(before);
    assert!(grown < 1024, "grew by {grown} KiB");
}

#[derive(Clone, Debug)]
enum Write1 {
    Out(Stream, Vec<u8>),
    Lost(Stream, u16),
    Start,
}

fn stream() -> impl Strategy<Value = Stream> {
    prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    // Make line feeds and incomplete characters frequent.
    let byte = prop_oneof![
        3 => Just(b'\n'),
        6 => b'a'..=b'e',
        1 => Just(b'\r'),
        2 => prop_oneof![Just(0xc3), Just(0xa9), Just(0xff)],
    ];
    vec(byte, 0..40)
}

proptest! {
    #[test]
    fn any_split_gives_back_each_stream(
        writes in vec((stream(), bytes()), 0..40),
        stops in vec(any::<bool>(), 40),
    ) {
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        let reader = log.reader();
        let mut wanted = [Vec::new(), Vec::new()];
        let mut got = [Vec::new(), Vec::new()];
        let mut all = Vec::new();
        let mut cursor = Cursor::START;
        for ((stream, bytes), stop) in writes.iter().zip(stops) {
            log.write(*stream, bytes);
            wanted[*stream as usize].extend_from_slice(bytes);
            all.extend_from_slice(bytes);
            if stop {
                let [out, err] = pair(&reader, &mut cursor);
                got[0].extend(out);
                got[1].extend(err);
            }
        }
        let [out, err] = pair(&reader, &mut cursor);
        got[0].extend(out);
        got[1].extend(err);
        prop_assert_eq!(&got, &wanted);
        let logs = reader.snapshot();
        prop_assert_eq!(logs.stdout(), String::from_utf8_lossy(&wanted[0]));
        prop_assert_eq!(logs.stderr(), String::from_utf8_lossy(&wanted[1]));
        prop_assert_eq!(logs.to_string(), String::from_utf8_lossy(&all));
    }

    #[test]
    fn lines_are_whole_and_in_order(
        writes in vec(
            prop_oneof![
                10 => (stream(), bytes()).prop_map(|(s, b)| Write1::Out(s, b)),
                1 => (stream(), any::<u16>()).prop_map(|(s, n)| Write1::Lost(s, n)),
                1 => Just(Write1::Start),
            ],
            0..40,
        ),
    ) {
        let dir = TestDir::new();
        let mut log = LogWriter::create(dir.path());
        // Computes the expected lines byte by byte.
        let mut wanted: Vec<Vec<u8>> = Vec::new();
        let mut open: [Option<(usize, Vec<u8>)>; 2] = [None, None];
        let cut = |open: &mut Option<(usize, Vec<u8>)>, wanted: &mut Vec<Vec<u8>>| {
            if let Some((_, line)) = open.take() {
                wanted.push(line);
            }
        };
        let cut_both = |open: &mut [Option<(usize, Vec<u8>)>; 2], wanted: &mut Vec<Vec<u8>>| {
            let mut both: Vec<_> = open.iter_mut().filter_map(Option::take).collect();
            both.sort();
            wanted.extend(both.into_iter().map(|(_, line)| line));
        };
        for (number, write) in writes.iter().enumerate() {
            match write {
                Write1::Out(stream, bytes) => {
                    log.write(*stream, bytes);
                    for &byte in bytes {
                        let line = open[*stream as usize].get_or_insert((number, Vec::new()));
                        line.0 = number;
                        if byte == b'\n' {
                            let line = std::mem::take(&mut line.1);
                            wanted.push(line.strip_suffix(b"\r").map(<[u8]>::to_vec).unwrap_or(line));
                            open[*stream as usize] = None;
                        } else {
                            line.1.push(byte);
                        }
                    }
                }
                Write1::Lost(stream, count) => {
                    log.lost(*stream, (*count).into());
                    cut(&mut open[*stream as usize], &mut wanted);
                }
                Write1::Start => {
                    log.start();
                    cut_both(&mut open, &mut wanted);
                }
            }
        }
        cut_both(&mut open, &mut wanted);
        let logs = log.reader().snapshot();
        let wanted: Vec<_> = wanted.iter().map(|line| String::from_utf8_lossy(line)).collect();
        prop_assert_eq!(lines(&logs), wanted);
    }

    #[test]
    fn what_is_shown_is_harmless(text in "(\u{1b}|\\[|\\]|[0-9;]|m|\r|\t|.|\\PC)*", limit in 1_usize..50) {
        let shown = printable(&text, limit);
        prop_assert!(shown.chars().count() <= limit + 1);
        prop_assert!(!shown.chars().any(char::is_control));
    }
}
