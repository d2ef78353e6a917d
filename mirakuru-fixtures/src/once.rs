//! [`Once`]: a value that is made once, at its first use. A failure is remembered.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use mirakuru_core::__private::{SharedServices, shown, timeline_now};
use mirakuru_core::Error;
use once_cell::sync::OnceCell;

use crate::missing::{skips, why_not_skipped};

/// Holds the value of a [`Shared`](crate::Shared), or of a shared fixture function.
///
/// The first thread makes the value while others wait. An error is kept and returned to all of
/// them. A panic affects only the thread that makes the value: the next thread tries again.
pub struct Once<T> {
    name: &'static str,
    value: OnceCell<Result<T, Error>>,
    /// The error of a value whose start needs the value itself. It is kept so that callers can
    /// borrow it.
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
        let waiting = match Waiting::begin(std::ptr::from_ref(self).addr(), self.name) {
            Ok(waiting) => waiting,
            Err(chain) => {
                return Err(self
                    .cycle
                    .get_or_init(|| Error::other(self.attempt(), in_a_circle(&chain))));
            }
        };
        let asked = timeline_now();
        let mut is_ours = false;
        let made = self.value.get_or_init(|| {
            is_ours = true;
            waiting.makes();
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

    /// Records that a test uses the value. Fails if one of its services has ended.
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

    /// The failed step, for an error message.
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

/// Message for values that need each other. The chain begins and ends with the same name.
fn in_a_circle(chain: &[&str]) -> String {
    if let [_, _] = chain {
        return "its own start uses it, and would wait for ever: use the executor that the start gets"
            .to_owned();
    }
    let mut names = Vec::new();
    for name in chain {
        names.push(match *name {
            "" => "one without a name".to_owned(),
            name => format!("`{name}`"),
        });
    }
    let names = names.join(" -> ");
    format!("its own start needs it: {names}; one of them must start without the next one")
}

/// A thread that waits for a value, or makes it. Used to find deadlocks, which `OnceCell` does not.
struct Use {
    thread: ThreadId,
    once: usize,
    name: &'static str,
    makes: bool,
}

/// Uses of values that are not made yet, in the order in which they began. A thread can only wait
/// in its last entry. In all other entries, it makes the value.
static USES: Mutex<Vec<Use>> = Mutex::new(Vec::new());

fn uses() -> MutexGuard<'static, Vec<Use>> {
    USES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This thread's entry for a value in [`USES`]. Dropping it removes the entry.
struct Waiting {
    once: usize,
}

impl Waiting {
    /// Adds an entry to [`USES`]. If this use would be a deadlock, returns the names of the values
    /// that wait for each other.
    fn begin(once: usize, name: &'static str) -> Result<Waiting, Vec<&'static str>> {
        let mut uses = uses();
        let thread = thread::current().id();
        match circle(&uses, thread, once) {
            Some(chain) => Err([chain, vec![name]].concat()),
            None => {
                uses.push(Use {
                    thread,
                    once,
                    name,
                    makes: false,
                });
                Ok(Waiting { once })
            }
        }
    }

    /// Notes that this thread makes the value.
    fn makes(&self) {
        let mut uses = uses();
        if let Some(at) = self.place(&uses) {
            uses[at].makes = true;
        }
    }

    fn place(&self, uses: &[Use]) -> Option<usize> {
        let thread = thread::current().id();
        uses.iter()
            .rposition(|it| it.thread == thread && it.once == self.once)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut uses = uses();
        if let Some(at) = self.place(&uses) {
            uses.remove(at);
        }
    }
}

/// If this thread would wait for itself, returns the values of the cycle, beginning with `wanted`.
/// The maker of each value waits for the next value.
fn circle(uses: &[Use], thread: ThreadId, mut wanted: usize) -> Option<Vec<&'static str>> {
    let mut chain = Vec::new();
    for _ in uses {
        let first = uses.iter().position(|it| it.makes && it.once == wanted)?;
        let maker = uses[first].thread;
        let mut last = &uses[first];
        for it in &uses[first..] {
            if it.thread == maker {
                last = it;
                if it.makes {
                    chain.push(it.name);
                }
            }
        }
        if maker == thread {
            return Some(chain);
        }
        // If the maker also makes the last value of its list, it does not wait.
        if last.makes {
            return None;
        }
        wanted = last.once;
    }
    None
}
