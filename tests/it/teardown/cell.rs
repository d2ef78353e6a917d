//! A victim, which is one cell of the teardown table. It starts a service with the given kind of
//! process tree, reports that the service is up, and ends in the given way.
//!
//! The victim runs as an `#[ignore]`d test, and in a program built with `panic = "abort"`. Without
//! its settings in the environment it does nothing. It uses standard output and input to talk to
//! the test.

use std::env;
use std::fs::OpenOptions;
use std::hint::black_box;
use std::io::{BufRead, Write};
use std::process;
use std::thread;
use std::time::Duration;

use mirakuru::{Executor, ExecutorBuilder, Shared, Tcp, TcpExecutor};

/// The variable that tells the victim how to end: see [`run`].
pub(crate) const DEATH: &str = "MIRAKURU_CELL_DEATH";
/// The variable that holds the helper's program and its flags for the tree.
pub(crate) const SERVICE: &str = "MIRAKURU_CELL_SERVICE";
/// The variable that holds the path of the FIFO that the tree keeps open.
pub(crate) const LIFELINE: &str = "MIRAKURU_CELL_LIFELINE";
/// The variable that holds the address on which the service listens.
pub(crate) const ADDRESS: &str = "MIRAKURU_CELL_ADDRESS";
/// The variable that holds the grace in milliseconds.
pub(crate) const GRACE: &str = "MIRAKURU_CELL_GRACE";
/// The victim prints the service's process id and this text once the service is up.
pub(crate) const UP: &str = " is up";
/// The victim prints this line before each of many starts.
pub(crate) const STARTING: &str = "starting";
/// The exit code that the victim passes to `process::exit`.
pub(crate) const EXIT_CODE: i32 = 7;

/// A service that lives as long as the victim.
static SHARED: Shared<TcpExecutor> = Shared::new(|| recipe().start());

fn recipe() -> ExecutorBuilder<Tcp> {
    let service = env::var(SERVICE).expect("the service");
    let grace = env::var(GRACE).expect("the grace").parse().expect("milliseconds");
    let lifeline = env::var(LIFELINE).expect("the lifeline");
    let address = env::var(ADDRESS).expect("the address");
    // Opening the FIFO for reading as well avoids a wait for a reader.
    let lifeline = OpenOptions::new().read(true).write(true).open(lifeline);
    Executor::builder(service)
        .args(["--listen", &address])
        .wait_for(Tcp::addr(&address))
        .queue(true)
        .stdin(lifeline.expect("a FIFO"))
        .timeout(Duration::from_secs(30))
        .stop_timeout(Duration::from_millis(grace))
}

/// Starts the service and ends the process as the environment says.
pub(crate) fn run() {
    let Ok(death) = env::var(DEATH) else { return };
    no_core_dumps();
    if death == "in the middle of a start" {
        // With several starts, a kill may also come between the end of one service and the next
        // start.
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
            // If the main process had to be killed, `stop` returns an error although the service is
            // down.
            let _ = service.stop();
            assert!(!service.is_running());
        }
        other => die(other),
    }
}

/// Ends this process in the given way.
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
            // The signal ends the process before this time is over.
            thread::sleep(Duration::from_secs(60));
            panic!("no signal came");
        }
        other => panic!("no such death: {other}"),
    }
}

/// Reports that the service is up, and waits for the line `die`.
fn await_word(pid: u32) {
    say(&format!("{pid}{UP}"));
    let mut word = String::new();
    let _ = std::io::stdin().lock().read_line(&mut word);
    assert_eq!(word.trim(), "die");
}

/// Prints a line directly, because libtest would capture `println!`.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The harness has begun a line without ending it.
    writeln!(out, "\n{line}").expect("a reader");
    out.flush().expect("a reader");
}

fn segfault() {
    // This address is in the first page, which is never mapped. It is not null, because rustc's
    // checks would catch a null pointer.
    let nowhere = black_box(std::ptr::without_provenance_mut::<u8>(8));
    // SAFETY: not safe on purpose: the write must cause SIGSEGV.
    unsafe { nowhere.write_volatile(1) };
}

/// Recurses deeper than any stack allows.
#[allow(unconditional_recursion)]
fn overflow(above: &[u8; 512]) -> u8 {
    let here = black_box([above[0].wrapping_add(1); 512]);
    overflow(&here).wrapping_add(here[1])
}

/// Turns off core files, because many victims crash.
fn no_core_dumps() {
    const RLIMIT_CORE: i32 = 4;
    unsafe extern "C" {
        fn setrlimit(resource: i32, limit: *const [u64; 2]) -> i32;
    }
    // SAFETY: the pointer is to two live 64-bit numbers, which is the layout of `rlimit` on 64-bit
    // machines. Elsewhere `rlimit` is smaller.
    unsafe { setrlimit(RLIMIT_CORE, &[0, 0]) };
}
