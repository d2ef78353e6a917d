//! A victim: one cell of the table of teardown. It starts a service with a certain kind of tree,
//! reports that, and ends in a certain way.
//!
//! An `#[ignore]`d test runs it under libtest, and a program built with `panic = "abort"` runs it
//! as well. Its settings are in the environment; without them it does nothing. It talks through its
//! standard output and input.

use std::env;
use std::fs::OpenOptions;
use std::hint::black_box;
use std::io::{BufRead, Write};
use std::process;
use std::thread;
use std::time::Duration;

use mirakuru::{Executor, ExecutorBuilder, Shared, Tcp, TcpExecutor};

/// The way in which the victim ends: see [`run`].
pub(crate) const DEATH: &str = "MIRAKURU_CELL_DEATH";
/// The helper's program, and its flags for the tree.
pub(crate) const SERVICE: &str = "MIRAKURU_CELL_SERVICE";
/// The FIFO that the tree holds open.
pub(crate) const LIFELINE: &str = "MIRAKURU_CELL_LIFELINE";
/// The address on which the service listens.
pub(crate) const ADDRESS: &str = "MIRAKURU_CELL_ADDRESS";
/// The grace in milliseconds.
pub(crate) const GRACE: &str = "MIRAKURU_CELL_GRACE";
/// End of the line that says that the service is up, after its process id.
pub(crate) const UP: &str = " is up";
/// The line at the beginning of a round of starts.
pub(crate) const STARTING: &str = "starting";
/// The exit code of `process::exit`.
pub(crate) const EXIT_CODE: i32 = 7;

/// A service that lives as long as the process.
static SHARED: Shared<TcpExecutor> = Shared::new(|| recipe().start());

fn recipe() -> ExecutorBuilder<Tcp> {
    let service = env::var(SERVICE).expect("the service");
    let grace = env::var(GRACE).expect("the grace").parse().expect("milliseconds");
    let lifeline = env::var(LIFELINE).expect("the lifeline");
    let address = env::var(ADDRESS).expect("the address");
    // The FIFO is opened for both directions: otherwise the open would wait for a reader.
    let lifeline = OpenOptions::new().read(true).write(true).open(lifeline);
    Executor::builder(service)
        .args(["--listen", &address])
        .wait_for(Tcp::addr(&address))
        .queue(true)
        .stdin(lifeline.expect("a FIFO"))
        .timeout(Duration::from_secs(30))
        .stop_timeout(Duration::from_millis(grace))
}

/// The victim's life and death.
pub(crate) fn run() {
    let Ok(death) = env::var(DEATH) else { return };
    no_core_dumps();
    if death == "in the middle of a start" {
        // A kill may also hit the end of one service and the beginning of the next.
        for _ in 0..1000 {
            say(STARTING);
            drop(recipe().start());
        }
        return;
    }
    if death == "end of main with a static" {
        await_word(SHARED.pid());
        return;
    }
    let mut service = recipe().start().expect("it starts");
    await_word(service.pid());
    match death.as_str() {
        "scope end" => drop(service),
        "stop" => {
            // The main process may have been killed, which is an error here. The service has
            // stopped all the same.
            let _ = service.stop();
            assert!(!service.is_running());
        }
        other => die(other),
    }
}

/// Ends this process.
pub(crate) fn die(death: &str) {
    no_core_dumps();
    match death {
        "panic" => panic!("on purpose"),
        "process::exit" => process::exit(EXIT_CODE),
        "abort" => process::abort(),
        "SIGSEGV" => segfault(),
        "stack overflow" => {
            black_box(overflow(&[0; 512]));
        }
        "a signal" => {
            thread::sleep(Duration::from_secs(60));
            panic!("no signal came");
        }
        other => panic!("no such death: {other}"),
    }
}

/// Reports that the service is up, and waits for the line that lets the victim go on to its end.
fn await_word(pid: u32) {
    say(&format!("{pid}{UP}"));
    let mut word = String::new();
    let _ = std::io::stdin().lock().read_line(&mut word);
    assert_eq!(word.trim(), "die");
}

/// Prints a line past libtest, which would capture `println!`.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The harness has begun a line of its own.
    writeln!(out, "\n{line}").expect("a reader");
    out.flush().expect("a reader");
}

fn segfault() {
    // The address is in the first page, which is never mapped. rustc's own checks would catch the
    // null pointer.
    let nowhere = black_box(std::ptr::without_provenance_mut::<u8>(8));
    // SAFETY: none; this is what is tested.
    unsafe { nowhere.write_volatile(1) };
}

/// A recursion deeper than any stack allows.
#[allow(unconditional_recursion)]
fn overflow(above: &[u8; 512]) -> u8 {
    let here = black_box([above[0].wrapping_add(1); 512]);
    overflow(&here).wrapping_add(here[1])
}

/// Turns off core files, because there are many deaths.
fn no_core_dumps() {
    const RLIMIT_CORE: i32 = 4;
    unsafe extern "C" {
        fn setrlimit(resource: i32, limit: *const [u64; 2]) -> i32;
    }
    // SAFETY: the limit is a live pair of numbers, as the C type is on 64-bit machines; on others
    // it is larger.
    unsafe { setrlimit(RLIMIT_CORE, &[0, 0]) };
}
