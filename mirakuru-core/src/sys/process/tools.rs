//! Small things that the supervisors need. They run after a fork: see the head of `spawn.rs`.

use std::ffi::c_char;

use super::calls::Call;
use super::message::{FAILED, STAGE_SUPERVISOR, send};
use crate::sys::clock_ns;
pub(super) use crate::sys::errno;
pub(super) use crate::sys::io::wait::to_read;

/// Tells the test process that the service could not be started: the stage, a `STAGE_*`, and the
/// error number.
pub(super) fn fail(control: i32, stage: i32, errno: i32) {
    send(control, [FAILED, stage, errno, 0, 0, 0, 0, 0]);
}

/// The same for a failed call of the supervisor's own.
pub(super) fn fail_call(control: i32, call: Call, errno: i32) {
    send(
        control,
        [FAILED, STAGE_SUPERVISOR, errno, call as i32, 0, 0, 0, 0],
    );
}

/// CLOCK_MONOTONIC in nanoseconds.
pub(super) fn now_ns() -> i64 {
    clock_ns() as i64
}

/// The same in milliseconds.
pub(super) fn now_ms() -> i64 {
    now_ns() / 1_000_000
}

/// Writes a number and a zero byte over a value that is longer than any process id.
pub(super) unsafe fn write_digits(to: *mut c_char, number: i32) {
    let mut divisor = 1_000_000_000_i32;
    let mut to = to;
    let mut begun = false;
    // SAFETY: at most ten digits, and the byte that ended the longer value before.
    unsafe {
        while divisor > 0 {
            let digit = number.wrapping_div(divisor).wrapping_rem(10);
            begun |= digit != 0 || divisor == 1;
            if begun {
                *to = (b'0' as c_char).wrapping_add(digit as c_char);
                to = to.add(1);
            }
            divisor = divisor.wrapping_div(10);
        }
        *to = 0;
    }
}
