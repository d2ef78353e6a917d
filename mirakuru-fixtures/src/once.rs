//! [`Once`]: a value that is made once, at its first use. A failure is remembered.

use std::sync::{Mutex, PoisonError};
use std::thread::{self, ThreadId};

use mirakuru_core::__private::{SharedServices, shown, timeline_now};
use mirakuru_core::Error;
use once_cell::sync::OnceCell;

use crate::missing::{skips, why_not_skipped};

/// The value inside [`Shared`](crate::Shared), and inside shared fixture functions.
///
/// The first thread makes the value while others wait. An error is kept and returned to all of
/// them. A panic stays in the thread that was making the value, and the next thread tries again.
pub struct Once<T> {
    name: &'static str,
    value: OnceCell<Result<T, Error>>,
    /// The thread that is making the value. `OnceCell` would let it wait for itself for ever.
    maker: Mutex<Option<ThreadId>>,
    /// The error of a value that needs itself, stored so that it can be borrowed.
    cycle: OnceCell<Error>,
    /// The services of the value. A failing test that used the value shows their output.
    services: OnceCell<SharedServices>,
    /// The error of a value whose service has ended.
    died: OnceCell<Error>,
}

impl<T> Once<T> {
    /// Makes an empty cell. The name is for messages, and may be empty.
    pub const fn new(name: &'static str) -> Once<T> {
        Once {
            name,
            value: OnceCell::new(),
            maker: Mutex::new(None),
            cycle: OnceCell::new(),
            services: OnceCell::new(),
            died: OnceCell::new(),
        }
    }

    /// The value, if it has been made.
    pub(crate) fn peek(&self) -> Option<Result<&T, &Error>> {
        self.value.get().map(Result::as_ref)
    }

    pub(crate) fn try_get_or_start(&self, make: impl FnOnce() -> Result<T, Error>) -> Result<&T, &Error> {
        if let Some(value) = self.peek() {
            return self.note_use().and(value);
        }
        if *self.maker.lock().unwrap_or_else(PoisonError::into_inner) == Some(thread::current().id()) {
            return Err(self.cycle.get_or_init(|| {
                Error::other(
                    self.attempt(),
                    "its own start uses it, and would wait for ever: use the start's argument instead",
                )
            }));
        }
        let asked = timeline_now();
        let mut is_ours = false;
        let made = self.value.get_or_init(|| {
            is_ours = true;
            let _making = Making::new(&self.maker);
            let (made, services) = SharedServices::make(make);
            if made.is_ok() {
                let _ = self.services.set(services);
            }
            made
        });
        if let (Some(asked), Some(services), false) = (asked, self.services.get(), is_ours) {
            services.waited_since(asked);
        }
        self.note_use().and(made.as_ref())
    }

    /// Fails if a test begins to use the value after one of its services has ended.
    fn note_use(&self) -> Result<(), &Error> {
        match self.services.get().map(SharedServices::used) {
            Some(Err(died)) => Err(self.died.get_or_init(|| died)),
            _ => Ok(()),
        }
    }

    /// Returns the value, and makes it if necessary. On an error, panics at the caller's own line.
    #[track_caller]
    pub fn get_or_start(&self, make: impl FnOnce() -> Result<T, Error>) -> &T {
        match self.try_get_or_start(make) {
            Ok(value) => value,
            Err(error @ Error::Died { .. }) => panic!("{} has ended\n{}", self.title(), shown(error)),
            Err(error) => {
                let how = match skips(error) {
                    Some(_) => "\n  (a test that uses it in its body cannot be skipped: name it in an \
                         attribute on the test, `#[mirakuru::fixture(NAME)]`)"
                        .to_owned(),
                    None => why_not_skipped(error),
                };
                panic!("{} could not be started\n{}{how}", self.title(), shown(error))
            }
        }
    }

    /// The step that failed, for an error.
    pub(crate) fn attempt(&self) -> String {
        format!("start {}", self.title())
    }

    fn title(&self) -> String {
        match self.name {
            "" => "the shared fixture".to_owned(),
            name => format!("the shared fixture `{name}`"),
        }
    }
}

/// Stores the thread that makes a value, until the value is made or the thread panics.
struct Making<'a>(&'a Mutex<Option<ThreadId>>);

impl Making<'_> {
    fn new(maker: &Mutex<Option<ThreadId>>) -> Making<'_> {
        *maker.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current().id());
        Making(maker)
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
