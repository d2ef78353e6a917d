//! Helpers for the supervisors. This code runs after a fork: see the head of `spawn.rs`.

use std::ffi::c_char;
use std::ptr;

use super::calls::Call;
use super::message::{FAILED, STAGE_SUPERVISOR, send};
use crate::sys::clock_ns;
pub(super) use crate::sys::errno;
pub(super) use crate::sys::io::wait::to_read;

/// Reports a failed start to the test process: the stage (a `STAGE_*`) and the error number.
pub(super) fn fail(control: i32, stage: i32, errno: i32) {
    send(control, [FAILED, stage, errno, 0, 0, 0, 0, 0]);
}

/// Reports to the test process that a call of the supervisor failed.
pub(super) fn fail_call(control: i32, call: Call, errno: i32) {
    send(
        control,
        [FAILED, STAGE_SUPERVISOR, errno, call as i32, 0, 0, 0, 0],
    );
}

/// The time on CLOCK_MONOTONIC in nanoseconds.
pub(super) fn now_ns() -> i64 {
    clock_ns() as i64
}

/// The time on CLOCK_MONOTONIC in milliseconds.
pub(super) fn now_ms() -> i64 {
    now_ns() / 1_000_000
}

/// Writes the decimal digits of a number to the end of `room`, and returns them.
pub(super) fn digits(number: u64, room: &mut [u8; 20]) -> &[u8] {
    let mut at = room.len();
    let mut rest = number;
    while at > 0 {
        at = at.wrapping_sub(1);
        if let Some(digit) = room.get_mut(at) {
            *digit = b'0'.wrapping_add((rest % 10) as u8);
        }
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    room.get(at..).unwrap_or(&[])
}

/// Writes a process id and a zero byte over a placeholder of `PID_DIGITS` bytes.
pub(super) unsafe fn write_digits(to: *mut c_char, pid: i32) {
    let mut room = [0; 20];
    let digits = digits(pid.unsigned_abs().into(), &mut room);
    // SAFETY: the placeholder is 10 bytes long and ends in a zero byte, and no `i32` has more than
    // 10 digits.
    unsafe {
        ptr::copy_nonoverlapping(digits.as_ptr().cast(), to, digits.len());
        *to.add(digits.len()) = 0;
    }
}
