//! Reads properties of a terminal that the standard library does not offer.

use std::os::fd::{AsFd, AsRawFd};

/// The width of a terminal, in characters.
pub(crate) fn columns(terminal: impl AsFd) -> Option<u16> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the call writes into a local variable.
    let done = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    (done == 0 && size.ws_col > 0).then_some(size.ws_col)
}
