use proptest::prelude::*;

use super::*;

fn run(events: &[&str]) -> Run {
    let text: String = events
        .iter()
        .map(|event| event.replace(' ', "\t") + "\n")
        .collect();
    Run::of(&text.replace('_', " "), |_, _| false)
}

/// The critical path as text: kind, lane, begin, end.
fn path(run: &Run) -> Vec<String> {
    let lane = |step: &Step| step.lane.map_or("-", |lane| &run.lanes[lane].name).to_owned();
    let steps = run.path.iter();
    steps
        .map(|step| {
            let piece = &step.piece;
            format!(
                "{} {} {}..{}",
                piece.kind.name(),
                lane(step),
                piece.begin,
                piece.end
            )
        })
        .collect()
}

#[test]
fn a_test_with_a_service_of_its_own() {
    let run = run(&[
        "P 7 90 0 tests-0123456789abcdef 5 1000",
        "T 7 100 1 counts",
        "N 7 100 1",
        "B 7 110 1 id redis redis-server_--port_1 ",
        "S 7 120 1 id 812",
        "R 7 150 1 id",
        "K 7 180 1 id",
        "G 7 190 1 id 189 was_killed",
        "E 7 200 1",
    ]);
    assert_eq!(run.length, 100);
    assert_eq!(run.processes[0].name, "tests");
    let service = &run.services[0];
    assert_eq!((service.name.as_str(), service.pid), ("redis", 812));
    assert_eq!(service.command, "redis-server --port 1");
    assert_eq!(service.uses, [(0, 50, 80)]);
    assert_eq!(service.starts[0].died, None, "it was told to end");
    assert_eq!(
        path(&run),
        [
            "body counts 0..10",
            "start counts 10..50",
            "body counts 50..80",
            "stop counts 80..90",
            "body counts 90..100"
        ]
    );
}

#[test]
fn whoever_waits_for_another_ones_start_has_its_path() {
    let run = run(&[
        "P 7 0 0 a 5 1000",
        "T 7 10 1 maker",
        "B 7 10 1 id redis redis-server ",
        "S 7 20 1 id 812",
        "P 8 15 0 b 6 1000",
        "T 8 20 1 other",
        "R 7 60 1 id",
        "L 7 61 1 id",
        "U 7 10 1 id",
        "E 7 70 1",
        "X 7 71 0 71",
        "A 8 20 1 65 id redis redis-server",
        "U 8 65 1 id",
        "E 8 110 1",
        "X 8 110 0 110",
    ]);
    assert_eq!(run.services[0].uses, [(0, 50, 60), (1, 55, 100)]);
    assert_eq!(run.services[0].starts[0].end, 100, "to the end of what is known");
    assert_eq!(run.services[0].starts[0].ended, Some(End::Open));
    assert_eq!(
        path(&run),
        ["start maker 0..50", "wait other 50..55", "body other 55..100"]
    );
}

#[test]
fn a_wait_for_a_port_has_the_path_of_its_holder() {
    let run = run(&[
        "P 7 0 0 a 5 1000",
        "T 7 0 1 first",
        "B 7 0 1 one redis redis-server 127.0.0.1:6379",
        "S 7 1 1 one 812",
        "R 7 20 1 one",
        "T 7 5 2 second",
        "K 7 50 1 one",
        "G 7 60 1 one 59 exited",
        "E 7 60 1",
        "B 7 5 2 two redis redis-server 127.0.0.1:6379",
        "W 7 6 2 61 two",
        "S 7 62 2 two 813",
        "R 7 80 2 two",
        "E 7 100 2",
    ]);
    assert_eq!(
        path(&run),
        [
            "start first 0..20",
            "body first 20..50",
            "stop first 50..60",
            "lock second 60..61",
            "start second 61..80",
            "body second 80..100"
        ]
    );
}

#[test]
fn one_test_comes_after_another_and_what_is_between_is_nobodys() {
    let run = run(&[
        "P 7 0 0 a 5 1000",
        "T 7 0 1 first",
        "E 7 40 1",
        "T 7 10 2 longer",
        "E 7 60 2",
        "T 7 41 3 third",
        "E 7 90 3",
        "X 7 90 0 90",
    ]);
    assert_eq!(
        path(&run),
        ["body first 0..40", "gap - 40..41", "body third 41..90"]
    );
}

#[test]
fn starts_side_by_side_count_once() {
    let run = run(&[
        "P 7 0 0 a 5 1000",
        "T 7 0 1 test",
        "B 7 0 1 one a a ",
        "B 7 2 1 two b b ",
        "R 7 10 1 one",
        "R 7 30 1 two",
        "E 7 40 1",
    ]);
    assert_eq!(
        path(&run),
        ["start test 0..2", "start test 2..30", "body test 30..40"]
    );
}

#[test]
fn a_static_ends_with_its_process_and_a_killed_process_with_what_it_told_last() {
    let run = run(&[
        "P 7 0 0 a-b 5 1000",
        "T 7 0 1 test",
        "B 7 0 1 one a a ",
        "R 7 10 1 one",
        "U 7 0 1 one",
        "E 7 20 1",
        "X 7 30 0 50",
        "P 8 60 0 c 5 1000",
        "T 8 60 1 killed",
        "B 8 60 1 two b b ",
        "R 8 70 1 two",
    ]);
    let start = &run.services[0].starts[0];
    assert_eq!(
        (start.stop, start.end, start.ended),
        (Some(30), 50, Some(End::Seen))
    );
    assert_eq!(run.lanes[2].name, "exit of a-b");
    assert!(run.lanes[2].is_exit);
    assert_eq!(run.lanes[1].ended, End::Killed);
    assert_eq!(run.services[1].starts[0].ended, Some(End::Killed));
    assert_eq!(
        path(&run),
        [
            "start test 0..10",
            "body test 10..20",
            "gap - 20..30",
            "stop exit of a-b 30..50",
            "gap - 50..60",
            "start killed 60..70"
        ]
    );
}

#[test]
fn failures_crashes_and_further_tries_are_seen() {
    let run = run(&[
        "P 7 0 0 a 5 1000",
        "T 7 0 1 test",
        "B 7 0 1 one a a ",
        "S 7 1 1 one 812",
        "K 7 4 1 one",
        "G 7 5 1 one 4 exited",
        "S 7 6 1 one 813",
        "K 7 8 1 one",
        "G 7 9 1 one 8 exited",
        "F 7 10 1 one it_exited",
        "B 7 20 1 one a a ",
        "R 7 30 1 one",
        "K 7 50 1 one",
        "G 7 51 1 one 40 was_killed_by_SIGSEGV",
        "E 7 60 1",
    ]);
    let [failed, crashed] = &run.services[0].starts[..] else {
        panic!("{run:?}")
    };
    assert_eq!((failed.tries, failed.stop, failed.end), (2, None, 10));
    assert_eq!(failed.error.as_deref(), Some("it exited"));
    assert_eq!(
        (crashed.died, crashed.status.as_str()),
        (Some(40), "was killed by SIGSEGV")
    );
}

#[test]
fn half_a_line_says_nothing() {
    let run = Run::of("P\t7\t0\t0\ta\t5\t1000\nT\t7\t5\t1\ttest\nE\t7\t9", |_, _| true);
    assert_eq!((run.length, run.lanes[0].ended), (0, End::Open));
    assert_eq!(Run::of("", |_, _| true).length, 0);
}

proptest! {
    #[test]
    fn the_path_is_all_of_the_time_and_no_two_of_its_steps_overlap(
        events in proptest::collection::vec(
            (0..14_usize, 1..4_u32, 1..4_u32, 0..100_u64, 0..40_u64, 0..4_u8),
            0..80,
        )
    ) {
        let mut text = String::from("P\t1\t0\t0\ta\t5\t9\nP\t2\t0\t0\tb\t5\t9\nP\t3\t0\t0\tc\t5\t9\n");
        for (kind, pid, thread, at, more, id) in events {
            let (kind, until) = (b"NEWBSRFLAVUKGX"[kind] as char, at + more);
            let fields = match kind {
                'W' => format!("{until}\tid{id}"),
                'A' | 'V' => format!("{until}\tid{id}\tname\tcommand"),
                'B' => format!("id{id}\tname\tcommand\tport{}", id % 2),
                'G' => format!("id{id}\t{at}\texited"),
                'X' => until.to_string(),
                _ => format!("id{id}\t5"),
            };
            text.push_str(&format!("{kind}\t{pid}\t{at}\t{thread}\t{fields}\n"));
        }
        let run = Run::of(&text, |pid, _| pid == 1);
        let mut at = 0;
        for step in &run.path {
            prop_assert!(step.piece.begin == at && step.piece.end > at, "{:?}", run.path);
            at = step.piece.end;
        }
        prop_assert!(run.path.is_empty() || at == run.length);
        for lane in &run.lanes {
            let mut at = lane.begin;
            for piece in &lane.pieces {
                prop_assert!(piece.begin == at && piece.end > at, "{lane:?}");
                at = piece.end;
            }
            prop_assert_eq!(at, lane.end);
        }
    }
}

#[test]
fn the_threads_of_a_runtime_are_no_tests() {
    let run = run(&[
        "P 7 0 0 tests 5 1000",
        "T 7 100 1 shop::sells",
        "T 7 110 2 tokio-runtime-worker",
        "T 7 120 3 tokio-rt-worker",
        "T 7 130 4 ",
        "T 7 140 5 main",
    ]);
    let tests: Vec<&str> = run
        .lanes
        .iter()
        .filter(|lane| lane.is_test())
        .map(|lane| lane.name.as_str())
        .collect();
    assert_eq!(tests, ["shop::sells", "main"]);
}
