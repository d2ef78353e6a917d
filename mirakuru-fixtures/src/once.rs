//! [`Once`]: a value that is created at its first use, and only once. An error is kept as well.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use mirakuru_core::__private::{SharedServices, shown, timeline_now};
use mirakuru_core::Error;
use once_cell::sync::OnceCell;

use crate::missing::{skips, why_not_skipped};

/// Holds the value of a [`Shared`](crate::Shared), or of a shared fixture function.
///
/// The first thread creates the value while others wait. An error is kept and returned to all of
/// them. A panic affects only the thread that is creating the value: the next thread tries again.
pub struct Once<T> {
    name: &'static str,
    value: OnceCell<Result<T, Error>>,
    /// The error of a value whose start uses the value itself. It is kept so that callers can
    /// borrow it.
    cycle: OnceCell<Error>,
    /// The services of the value. If a test that used the value fails, it shows their output.
    services: OnceCell<SharedServices>,
    /// The error of a value whose service has ended.
    died: OnceCell<Error>,
}

impl<T> Once<T> {
    /// Creates an empty cell. The name is for messages, and may be empty.
    pub const fn new(name: &'static str) -> Once<T> {
        Once {
            name,
            value: OnceCell::new(),
            cycle: OnceCell::new(),
            services: OnceCell::new(),
            died: OnceCell::new(),
        }
    }

    /// Returns the value or the error that an earlier use has produced, if any.
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

    /// Returns the value, and creates it if necessary. After an error, panics with the caller's
    /// location.
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

    /// The attempted action, for an error message.
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

/// The reason in the error about values that need each other. `chain` begins and ends with the same
/// name.
fn in_a_circle(chain: &[&str]) -> String {
    if let [_, _] = chain {
        return "its own start uses it, and would wait forever: use the executor that the start gets"
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

/// A thread that waits for a value, or creates it. Used to detect deadlocks, because `OnceCell`
/// does not detect them.
struct Use {
    thread: ThreadId,
    once: usize,
    name: &'static str,
    makes: bool,
}

/// The uses of values that do not exist yet, in the order in which they began. Only the last entry
/// of a thread can be a wait. In all its other entries, the thread is creating the value.
static USES: Mutex<Vec<Use>> = Mutex::new(Vec::new());

fn uses() -> MutexGuard<'static, Vec<Use>> {
    USES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Guards an entry of this thread in [`USES`]: dropping the guard removes the entry.
struct Waiting {
    once: usize,
}

impl Waiting {
    /// Adds an entry to [`USES`]. If waiting would deadlock, returns the names of the values in the
    /// cycle instead.
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

    /// Records that this thread creates the value.
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

/// If this thread would wait for itself, returns the names of the values in the cycle, beginning
/// with `wanted`. The thread that creates one of them waits for the next one.
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
        // The maker is creating the value of its last entry, so it is not waiting.
        if last.makes {
            return None;
        }
        wanted = last.once;
    }
    None
}
