//! Stops the services that are still running when the test process exits normally.
//!
//! The supervisors would notice by themselves that the process has ended, but a moment later. The
//! next test binary may need the same ports immediately. Also, if the first process of a container
//! does not reap orphans, a supervisor should exit while its parent can still reap it.
//!
//! `atexit` handlers run after the main thread returns and after `process::exit`, while other
//! threads may still be running. So the services are in a lock-free list (`slots.rs`). An atomic
//! swap gives each service either to its owner or to the handler.

use std::os::fd::RawFd;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

use super::message::{Message, STOP_IN_A_TEST, send, stop_message};
use super::plan::StopPolicy;
use super::slots::{Slot, Slots};
use super::{service, users};

static SLOTS: Slots<Ending> = Slots::new();
/// The process whose services the handler stops. A forked child inherits the handler, but not the
/// services.
static PROCESS: AtomicU32 = AtomicU32::new(0);
/// The time on CLOCK_MONOTONIC at which the handler began.
static BEGAN: AtomicU64 = AtomicU64::new(0);

/// Number of 32-bit words that hold a service's id. An id is shorter than that.
const ID_WORDS: usize = 8;

#[derive(Default)]
struct Ending {
    /// The control socket; -1 if the handler must not stop the service.
    control: AtomicI32,
    guard: AtomicI32,
    /// The process id of the service's main process, once known.
    service: AtomicI32,
    /// The bytes of the service's id, padded with zeroes.
    id: [AtomicU32; ID_WORDS],
    message: [AtomicI32; 8],
    /// The id of the service's test, or 0 if there is none.
    test: AtomicU64,
}

/// An entry in the list of services to stop.
pub(super) struct Registration {
    slot: &'static Slot<Ending>,
    taken: AtomicBool,
}

/// Registers the handler that runs when this process exits normally.
pub(super) fn install_once() {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        PROCESS.store(std::process::id(), Ordering::SeqCst);
        install();
    });
}

/// Adds a service with its control socket. The service's processes carry `id` as their mark.
pub(super) fn register(control: RawFd, id: &str, stop: StopPolicy, test: u64) -> Registration {
    install_once();
    let slot = SLOTS.take(|| Ending {
        control: AtomicI32::new(-1),
        ..Ending::default()
    });
    for (place, value) in slot.message.iter().zip(stop_message(stop, true)) {
        place.store(value, Ordering::SeqCst);
    }
    for (at, word) in slot.id.iter().enumerate() {
        let byte = |n: usize| id.as_bytes().get(4 * at + n).copied().unwrap_or(0);
        word.store(
            u32::from_ne_bytes([byte(0), byte(1), byte(2), byte(3)]),
            Ordering::SeqCst,
        );
    }
    slot.test.store(test, Ordering::SeqCst);
    slot.guard.store(0, Ordering::SeqCst);
    slot.service.store(0, Ordering::SeqCst);
    slot.control.store(control, Ordering::SeqCst);
    Registration {
        slot,
        taken: AtomicBool::new(false),
    }
}

impl Registration {
    pub(super) fn set_guard(&self, pid: i32) {
        self.slot.guard.store(pid, Ordering::SeqCst);
    }

    pub(super) fn set_service(&self, pid: i32) {
        self.slot.service.store(pid, Ordering::SeqCst);
    }

    /// Takes the service away from the handler. Returns `false` if the handler is already stopping
    /// the service. In that case the socket belongs to the handler, and must stay open.
    pub(super) fn take(&self) -> bool {
        if !self.is_ours() && self.slot.control.swap(-1, Ordering::SeqCst) >= 0 {
            self.taken.store(true, Ordering::SeqCst);
        }
        self.is_ours()
    }

    pub(super) fn is_ours(&self) -> bool {
        self.taken.load(Ordering::SeqCst)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.take();
        self.slot.release();
    }
}

/// Runs a function when this process exits normally, after the services have been stopped. Call
/// this before the first service starts, because handlers run in reverse order. Other threads may
/// be running, so the function must neither panic nor wait for a lock.
pub(crate) fn at_exit(function: extern "C" fn()) {
    // SAFETY: the function may run at any time. A failure of the registration does no harm.
    unsafe { libc::atexit(function) };
}

/// The time at which this process began to stop its services, if it has.
pub(crate) fn exit_began() -> Option<u64> {
    Some(BEGAN.load(Ordering::SeqCst)).filter(|began| *began != 0)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn is_main_thread() -> bool {
    // SAFETY: both calls only return numbers.
    unsafe { libc::syscall(libc::SYS_gettid) == libc::c_long::from(libc::getpid()) }
}

/// Other systems have no portable call for this, so every thread counts as the main thread.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn is_main_thread() -> bool {
    true
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn install() {
    use libc::{c_int, c_void};
    unsafe extern "C" {
        /// Like `atexit`, but passes the exit status to the handler. The `libc` crate does not
        /// declare this function.
        fn on_exit(handler: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
    }
    extern "C" fn handler(status: c_int, _: *mut c_void) {
        end_all(status != 0);
    }
    // SAFETY: `stdlib.h` has this declaration. The handler may run at any time after this,
    // concurrently with other threads. If the C library has no room for it, the supervisors still
    // notice that the process ends.
    unsafe { on_exit(handler, std::ptr::null_mut()) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn install() {
    extern "C" fn handler() {
        end_all(false);
    }
    // SAFETY: the handler may run at any time after this, concurrently with other threads.
    unsafe { libc::atexit(handler) };
}

/// Tells all services to stop, then waits for all of them, so that they stop in parallel.
fn end_all(failed: bool) {
    if PROCESS.load(Ordering::SeqCst) != std::process::id() {
        return;
    }
    BEGAN.store(crate::sys::clock_ns(), Ordering::SeqCst);
    // A failed test may have left its service running, for example because it hung. If this is not
    // the main thread, a test has ended the process, because the harness exits on the main thread.
    let in_a_test = failed || !is_main_thread();
    end_where(in_a_test, &|_| true);
    // The services of this process have been stopped, so it no longer uses the shared services that
    // they needed.
    users::leave_all();
}

/// Stops the services of a test that is over, even if a thread of the test still holds them. Such a
/// thread then sees its services as it would during the exit of the process.
pub(crate) fn end_of_test(test: u64) {
    if PROCESS.load(Ordering::SeqCst) == std::process::id() {
        end_where(true, &|slot| slot.test.load(Ordering::SeqCst) == test);
    }
}

fn end_where(in_a_test: bool, is_wanted: &dyn Fn(&Ending) -> bool) {
    let mut ending = Vec::new();
    for slot in SLOTS.iter() {
        let control = match is_wanted(slot) {
            true => slot.control.swap(-1, Ordering::SeqCst),
            false => -1,
        };
        if control >= 0 && !is_wanted(slot) {
            // Between the two checks, the owner released the slot, and another service took it. So
            // the control socket is put back.
            slot.control.store(control, Ordering::SeqCst);
        } else if control >= 0 {
            let mut message: Message = std::array::from_fn(|i| slot.message[i].load(Ordering::SeqCst));
            if in_a_test {
                message[4] = STOP_IN_A_TEST;
            }
            send(control, message);
            let mut id = Vec::new();
            for word in &slot.id {
                id.extend_from_slice(&word.load(Ordering::SeqCst).to_ne_bytes());
            }
            let guard = slot.guard.load(Ordering::SeqCst);
            let main = slot.service.load(Ordering::SeqCst);
            ending.push((control, guard, main, id));
        }
    }
    for (control, guard, main, id) in ending {
        let id = String::from_utf8_lossy(&id);
        service::await_end(control, guard, main, id.trim_end_matches('\0'));
    }
}
