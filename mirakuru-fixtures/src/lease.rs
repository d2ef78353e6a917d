//! Rejects the recipe of a shared service if it uses a lease that belongs to one test, such as a
//! database.
//!
//! The lease ends with its test or process, while other tests still use the service. Each lease
//! also has its own name, so the recipe would differ in each process, and the processes would not
//! share the service.

use std::cell::Cell;

use mirakuru_core::Error;

thread_local! {
    /// Whether the shared recipe that this thread is creating has taken a lease. `None` if the
    /// thread is not creating one.
    static LEASED: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Records that a lease was taken by the recipe that this thread is creating, if any.
#[cfg(feature = "presets")]
pub(crate) fn taken() {
    LEASED.set(LEASED.get().map(|_| true));
}

/// Sets [`LEASED`] while a function runs. Returns the function's result, and the final value of
/// [`LEASED`].
fn with<T>(leased: Option<bool>, call: impl FnOnce() -> T) -> (T, Option<bool>) {
    struct Restore(Option<bool>);
    impl Drop for Restore {
        fn drop(&mut self) {
            LEASED.set(self.0);
        }
    }
    let _restore = Restore(LEASED.replace(leased));
    let value = call();
    (value, LEASED.get())
}

/// Calls a function that creates the recipe of a service that the run shares.
///
/// # Errors
///
/// If the recipe has taken a lease.
pub(crate) fn forbidden<T>(make: impl FnOnce() -> T) -> Result<T, Error> {
    match with(Some(false), make) {
        (_, Some(true)) => Err(Error::other(
            "start a service for the whole run",
            "its recipe uses a `database()`, a `vhost()` or a prefix, which is leased for one test; the \
             lease ends with this process, but the service does not; use a value that lasts as long as \
             the run, such as the server's `url()`, or put the attribute on the test",
        )),
        (made, _) => Ok(made),
    }
}

/// Runs code that may take a lease: the recipe of a service that is not shared, or a start.
pub(crate) fn allowed<T>(call: impl FnOnce() -> T) -> T {
    with(None, call).0
}
