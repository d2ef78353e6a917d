//! The log of a service that prints more than `log_limit`.

use std::fs;

use crate::common::LONG;
use mirakuru::{Banner, Error, Executor, ExecutorBuilder, Mark, OutputExecutor, Signal};

const LIMIT: u64 = 64 * 1024;

/// A script that prints `up`, and about 600 kB at each SIGHUP, which is over nine times the limit.
const FLOODS: &str = "n=0; p=0123456789; p=$p$p$p$p$p$p$p$p; p=$p$p$p$p$p$p$p; \
                      more() { n=$((n+1)); i=0; while [ $i -lt 1000 ]; do i=$((i+1)); \
                      echo \"line $i of flood $n, $p\"; done; echo \"flood $n is over\" >&2; }; \
                      trap more HUP; echo up; while :; do sleep 0.01; done";

/// The part of the script that defines `more`, which floods the log.
fn functions() -> &'static str {
    FLOODS.split("trap").next().unwrap()
}

fn recipe(script: &str) -> ExecutorBuilder<Banner> {
    Executor::builder(script)
        .shell(true)
        .log_limit(LIMIT)
        .wait_for(Banner::matching("^up$"))
}

fn flood(service: &mut OutputExecutor, mark: &Mark, number: u32) {
    service.signal(Signal::Hup).unwrap();
    let line = format!("^flood {number} is over$");
    service.wait_for_line(mark, line.as_str(), LONG).unwrap();
}

/// The total size of the log's files, including the index.
fn size(service: &OutputExecutor) -> u64 {
    let log = service.logs().path().to_owned();
    let entries = fs::read_dir(log.parent().unwrap()).unwrap();
    let logs = entries.map(|entry| entry.unwrap()).filter(|entry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| name.starts_with("log"))
    });
    logs.map(|entry| entry.metadata().unwrap().len()).sum()
}

#[test]
fn a_long_log_keeps_its_first_and_its_last_part() {
    let script = format!("{} echo up; more; more; exec sleep 60", functions());
    let mut service = recipe(&script).start().unwrap();
    let over = "^flood 2 is over$";
    service.wait_for_line(&Mark::default(), over, LONG).unwrap();
    assert!(size(&service) <= LIMIT + 1024, "{}", size(&service));

    let logs = service.logs();
    assert!(logs.dropped() > 1_000_000, "{}", logs.dropped());
    let text = logs.to_string();
    assert!(text.starts_with("up\nline 1 of flood 1,"), "{text}");
    assert!(text.ends_with("\nflood 2 is over\n"), "{text}");
    let gap = text.lines().filter(|line| line.starts_with("[mirakuru: "));
    let gap: Vec<_> = gap.collect();
    assert_eq!(gap.len(), 1, "{gap:?}");
    assert!(
        gap[0].ends_with(" MB are left out here: the log has reached its limit]"),
        "{gap:?}"
    );
    // The output and the reported gap add up to all that was printed.
    let printed: u64 = logs.stdout().len() as u64 + logs.stderr().len() as u64 + logs.dropped();
    let line = |n: u32| {
        logs.lines()
            .find(|line| line.starts_with(&format!("line {n} of flood 1,")))
    };
    let length: u64 = (1..=1000)
        .map(|n: u32| line(1).unwrap().len() as u64 + u64::from(n.ilog10()) + 1)
        .sum();
    assert_eq!(printed, 2 * length + 3 + 2 * "flood 1 is over\n".len() as u64);

    // The end of the first file tells a reader where the rest is.
    let first = fs::read_to_string(logs.path()).unwrap();
    assert!(first.ends_with("the parts between are left out.]\n"), "{first}");
    service.stop().unwrap();
}

#[test]
fn marks_and_lines_hold_across_what_a_log_leaves_out() {
    let mut service = recipe(FLOODS).start().unwrap();
    let before = service.mark();
    flood(&mut service, &before, 1);
    let between = service.mark();
    // After this flood, the log no longer contains the part to which the mark `between` points.
    flood(&mut service, &between, 2);
    let last = service.mark();
    flood(&mut service, &last, 3);
    // Lines before a mark stay hidden, however many parts the log has had.
    assert_eq!(service.logs_since(&last).stderr(), "flood 3 is over\n");
    assert_eq!(service.logs_since(&service.mark()).to_string(), "");
    assert_eq!(service.logs_since(&service.mark()).dropped(), 0);
    assert!(service.logs_since(&between).dropped() > 500_000);
    assert!(service.logs_since(&between).dropped() < service.logs_since(&before).dropped());
    service.stop().unwrap();
}

#[test]
fn a_log_that_has_parts_goes_on_over_a_restart() {
    let mut service = recipe(FLOODS).start().unwrap();
    flood(&mut service, &Mark::default(), 1);
    let dropped = service.logs().dropped();
    service.restart().unwrap();
    assert_eq!(service.logs().stdout().matches("up\n").count(), 2);
    let mark = service.mark();
    flood(&mut service, &mark, 1);
    assert!(size(&service) <= LIMIT + 1024, "{}", size(&service));
    let text = service.logs_since(&Mark::default());
    assert!(text.dropped() > dropped);
    assert!(text.to_string().starts_with("up\n"), "{text}");
    let log = text.path().to_owned();
    drop(service);
    assert!(!log.parent().unwrap().exists(), "the parts go with the directory");
}

/// If the output comes in single bytes, the log's index takes more space than the output.
#[test]
fn a_log_of_single_bytes_is_bounded_too() {
    let script =
        "echo up; i=0; while [ $i -lt 20000 ]; do printf x; i=$((i+1)); done; echo over; exec sleep 60";
    let mut service = recipe(script).start().unwrap();
    service.wait_for_line(&Mark::default(), "over$", LONG).unwrap();
    assert!(size(&service) <= LIMIT + 1024, "{}", size(&service));
    let logs = service.logs();
    assert!(logs.to_string().ends_with("xover\n"), "{logs}");
    let there = logs.stdout().len() as u64;
    assert_eq!(there + logs.dropped(), 20_000 + 3 + 5);
    service.stop().unwrap();
}

#[test]
fn a_report_tells_what_the_log_has_left_out() {
    let script = format!("{} more; more; exit 3", functions());
    let error = recipe(&script)
        .wait_for(Banner::matching("never"))
        .start()
        .unwrap_err();
    let text = error.to_string();
    let Error::Exited { evidence, .. } = error else {
        panic!("{text}");
    };
    assert!(evidence.dropped > 1_000_000, "{}", evidence.dropped);
    assert!(
        text.contains(" MB are not in the log, which reached its `log_limit`\n"),
        "{text}"
    );
    assert!(text.contains("    | line 1 of flood 1,"), "{text}");
    assert!(text.contains("    | flood 2 is over"), "{text}");
}
