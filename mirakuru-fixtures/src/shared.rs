//! [`Shared`]: a service that all tests of a process use.

use std::fmt;
use std::ops::Deref;

use mirakuru_core::{Error, Executor, ExecutorBuilder, NoWait};

use crate::once::Once;
use crate::recipe::Recipe;
use crate::system::{AsItIs, Called, Joining, Plan, Slot, System, several};

/// A service that is started at its first use, once for all users. `#[mirakuru::fixture(..)]` on a
/// `static` creates one. Name it in capitals, after the service.
///
/// A `Shared` dereferences to its handle, and the first use starts the service:
///
/// ```
/// # mod mirakuru { pub use mirakuru_core::*; pub use mirakuru_fixtures::*; }
/// use mirakuru::{Executor, SimpleExecutor};
/// use mirakuru::Shared;
///
/// // Written by hand. `#[mirakuru::fixture(cmd = "sleep 60")] static SLEEPER: SimpleExecutor;`
/// // is the same, and adds the scope of a whole run.
/// static SLEEPER: Shared<SimpleExecutor> = Shared::new(|| Executor::builder("sleep 60").start());
///
/// let pid = SLEEPER.pid(); // Started here.
/// assert_eq!(SLEEPER.pid(), pid);
/// ```
///
/// - While one thread starts the service, other threads that need it wait.
/// - A failed start is not repeated: every user of the service immediately gets the same error.
/// - Tests get `&T`, but stopping a service takes `&mut T`. So a test cannot stop a service that
///   another test uses. A test that stops or restarts a service must start its own.
/// - A static is never dropped. The service ends when the process exits or is killed. If the
///   attribute created the static, the service ends with the whole test run.
/// - Tests that share a service must not expect it to be empty.
pub struct Shared<T> {
    cell: Once<T>,
    start: fn() -> Result<T, Error>,
}

impl<T> Shared<T> {
    /// Creates a `Shared` from the function that starts the service. The function is not called
    /// yet.
    pub const fn new(start: fn() -> Result<T, Error>) -> Shared<T> {
        Shared::named("", start)
    }

    /// Like [`new`](Shared::new), with a name for messages.
    #[doc(hidden)]
    pub const fn named(name: &'static str, start: fn() -> Result<T, Error>) -> Shared<T> {
        Shared {
            cell: Once::new(name),
            start,
        }
    }

    /// Returns the service, which the first use starts. Dereferencing does the same.
    ///
    /// `get` and [`try_get`](Shared::try_get) are associated functions, so that they do not hide a
    /// method of the service's handle.
    ///
    /// ```
    /// # mod mirakuru { pub use mirakuru_core::*; pub use mirakuru_fixtures::*; }
    /// use mirakuru::{Executor, Shared, SimpleExecutor};
    ///
    /// static SLEEPER: Shared<SimpleExecutor> = Shared::new(|| Executor::builder("sleep 60").start());
    ///
    /// let sleeper: &'static SimpleExecutor = Shared::get(&SLEEPER);
    /// assert!(sleeper.is_running());
    /// ```
    ///
    /// # Panics
    ///
    /// If the service could not be started. The message is the error's report, and the location is
    /// the caller's line. Every later call panics as well.
    #[track_caller]
    pub fn get(this: &Shared<T>) -> &T {
        this.cell.get_or_start(this.start)
    }

    /// Returns the service, which the first use starts, or the error of the start.
    ///
    /// ```
    /// # mod mirakuru { pub use mirakuru_core::*; pub use mirakuru_fixtures::*; }
    /// use mirakuru::{Error, Executor, Shared, SimpleExecutor};
    ///
    /// static MISSING: Shared<SimpleExecutor> = Shared::new(|| Executor::builder("no-such-program").start());
    ///
    /// assert!(matches!(Shared::try_get(&MISSING), Err(Error::Spawn { .. })));
    /// ```
    ///
    /// # Errors
    ///
    /// The error of the start, which is the same for every caller. If the start itself uses the
    /// service, it gets an [`Error::System`] that says so.
    pub fn try_get(this: &Shared<T>) -> Result<&T, &Error> {
        this.cell.try_get_or_start(this.start)
    }
}

/// A recipe that uses the fixture in a static. Its handle is a reference to the fixture.
pub struct InStatic<T: 'static> {
    shared: &'static Shared<T>,
    optional: bool,
}

impl<T> InStatic<T> {
    /// Allows a test to be skipped if the program is missing.
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }
}

#[diagnostic::do_not_recommend]
impl<T: 'static> Recipe for InStatic<T> {
    several!(&'static T);

    fn __join<'a>(self, system: &mut System<'a>, joining: Joining) -> Slot<&'static T>
    where
        Self: 'a,
    {
        system.make(joining, move || {
            let this_start = self.shared.cell.attempt();
            Shared::try_get(self.shared).map_err(|error| match (error.__missing_again(), error) {
                (Some(missing), _) => missing.__optional(self.optional),
                (None, Error::System { attempt, source, .. }) if *attempt == this_start => {
                    Error::other(this_start, source.to_string())
                }
                (None, error) => Error::other(this_start, error.to_string()),
            })
        })
    }
}

/// Selects the implementation of [`Named`] for a static that holds a fixture.
pub struct Held;

/// A name in capital letters: a static, or a constant with a recipe. (`How` tells the two apart.)
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be started",
    label = "neither a static of a fixture nor a recipe",
    note = "a name in capital letters must be a `static` with `#[mirakuru::fixture(..)]`, or a \
        constant whose type implements `mirakuru::Recipe` and `Clone`"
)]
pub trait Named<'s, How> {
    /// The type of the recipe.
    type Recipe: Recipe;

    /// Returns the recipe.
    fn recipe(&'s self) -> Self::Recipe;
}

#[diagnostic::do_not_recommend]
impl<T: 'static> Named<'static, Held> for Shared<T> {
    type Recipe = InStatic<T>;

    fn recipe(&'static self) -> InStatic<T> {
        InStatic {
            shared: self,
            optional: false,
        }
    }
}

#[diagnostic::do_not_recommend]
impl<'s, R: Recipe + Clone> Named<'s, AsItIs> for R {
    type Recipe = R;

    fn recipe(&'s self) -> R {
        self.clone()
    }
}

/// A generic struct may have a name in capitals, such as `DB`. Its recipe is returned by a
/// function.
#[diagnostic::do_not_recommend]
impl<'s, F: Fn() -> Plan<S>, S> Named<'s, Called> for F {
    type Recipe = Plan<S>;

    fn recipe(&'s self) -> Plan<S> {
        self()
    }
}

/// Returns the recipe for a name in capital letters.
pub fn recipe_in_static<'s, How, N: Named<'s, How>>(named: &'s N) -> N::Recipe {
    named.recipe()
}

/// A name in capital letters. For a static, the methods are inherent, which rustc prefers. For
/// every other name, they come from [`AnyTaken`].
pub struct Taken<'a, N>(pub &'a N);

impl<S> Taken<'_, Shared<S>> {
    /// Returns the handle for a parameter of type `T` or `&mut T`.
    pub fn take<T: OfStatic<S>>(self, handle: &'static S) -> T::Handle {
        T::of(handle)
    }
}

impl<S> Taken<'static, Shared<S>> {
    /// Returns the handle for a fixture function that returns `&'static S`. The static itself holds
    /// the handle.
    #[track_caller]
    pub fn share<T>(self, _: &'static Once<T>, _: impl FnOnce() -> Result<&'static S, Error>) -> &'static S {
        Shared::get(self.0)
    }
}

/// The methods of [`Taken`] for a name that is not a static.
pub trait AnyTaken<H>: Sized {
    /// Returns the handle for a parameter of type `T` or `&mut T`.
    fn take<T>(self, handle: H) -> H {
        handle
    }

    /// Returns the handle for a fixture function that returns `&'static H`.
    #[track_caller]
    fn share(self, once: &'static Once<H>, start: impl FnOnce() -> Result<H, Error>) -> &'static H {
        once.get_or_start(start)
    }
}

impl<N, H> AnyTaken<H> for Taken<'_, N> {}

/// A parameter type that accepts the handle of a static: `&'static S`, also through a type alias.
#[diagnostic::on_unimplemented(
    message = "a static is shared: take it as `&{S}` or `&'static {S}`",
    label = "this is not a reference to it",
    note = "a test that stops, restarts or keeps a service needs its own: name a recipe in its \
        attribute, not a static"
)]
pub trait OfStatic<S> {
    /// The parameter type, which is `Self`.
    type Handle;

    /// Returns the handle as this type.
    fn of(handle: &'static S) -> Self::Handle;
}

#[diagnostic::do_not_recommend]
impl<S> OfStatic<S> for &'static S {
    type Handle = &'static S;

    fn of(handle: &'static S) -> &'static S {
        handle
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    /// Returns the service, as [`Shared::get`] does.
    #[track_caller]
    fn deref(&self) -> &T {
        Shared::get(self)
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    /// Shows the handle if the service has been started, but does not start it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cell.peek() {
            None => f.write_str("Shared(not started)"),
            Some(Ok(value)) => f.debug_tuple("Shared").field(value).finish(),
            Some(Err(error)) => f.debug_tuple("Shared").field(error).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn broken() -> Error {
        Error::other("start", "it is broken")
    }

    #[test]
    fn many_threads_start_it_once() {
        static STARTS: AtomicU32 = AtomicU32::new(0);
        static SHARED: Shared<u32> = Shared::new(|| {
            thread::sleep(Duration::from_millis(20));
            Ok(STARTS.fetch_add(1, Ordering::SeqCst))
        });
        assert_eq!(format!("{SHARED:?}"), "Shared(not started)");
        let barrier = Barrier::new(16);
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    barrier.wait();
                    assert_eq!(*SHARED, 0);
                });
            }
        });
        assert_eq!(STARTS.load(Ordering::SeqCst), 1);
        assert_eq!(format!("{SHARED:?}"), "Shared(0)");
    }

    #[test]
    fn a_failure_is_remembered_and_reported_at_each_users_line() {
        static STARTS: AtomicU32 = AtomicU32::new(0);
        static SHARED: Shared<u32> = Shared::named("SERVICE", || {
            STARTS.fetch_add(1, Ordering::SeqCst);
            Err(broken())
        });
        let first: *const Error = Shared::try_get(&SHARED).unwrap_err();
        let second: *const Error = Shared::try_get(&SHARED).unwrap_err();
        assert_eq!(first, second, "the same error");
        assert_eq!(STARTS.load(Ordering::SeqCst), 1);

        let panic = |line: u32, poll: fn() -> u32| {
            let (sender, receiver) = std::sync::mpsc::channel();
            // The hook belongs to the whole process, where other tests panic too, so only this
            // thread's panics are recorded.
            let me = thread::current().id();
            let earlier = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                if thread::current().id() == me {
                    let place = info
                        .location()
                        .map(|place| (place.file().to_owned(), place.line()));
                    let _ = sender.send((place, info.payload().downcast_ref::<String>().cloned()));
                }
            }));
            let result = catch_unwind(poll);
            std::panic::set_hook(earlier);
            assert!(result.is_err());
            let (place, message) = receiver.recv().unwrap();
            assert_eq!(place, Some((file!().to_owned(), line)));
            let message = message.unwrap();
            assert!(message.contains("`SERVICE` could not be started"), "{message}");
        };
        panic(line!(), || *Shared::get(&SHARED));
        panic(line!(), || *SHARED);
    }

    #[test]
    fn a_panic_in_the_start_neither_poisons_nor_hangs() {
        static STARTS: AtomicU32 = AtomicU32::new(0);
        static SHARED: Shared<u32> = Shared::new(|| {
            assert!(
                STARTS.fetch_add(1, Ordering::SeqCst) > 0,
                "the first start panics"
            );
            Ok(7)
        });
        assert!(catch_unwind(|| *SHARED).is_err());
        assert_eq!(*SHARED, 7);
    }

    #[test]
    fn an_error_names_each_failed_static_once() {
        static A: Shared<u32> = Shared::named("A", || recipe_in_static(&B).start().copied());
        static B: Shared<u32> = Shared::named("B", || recipe_in_static(&A).start().copied());
        let message = Shared::try_get(&A).unwrap_err().to_string();
        assert_eq!(message.matches("the shared fixture `A`").count(), 1, "{message}");
        assert_eq!(message.matches("the shared fixture `B`").count(), 1, "{message}");
    }

    #[test]
    fn a_start_that_needs_itself_by_others_names_all_of_them() {
        fn needs(other: &'static Shared<u32>) -> Result<u32, Error> {
            match Shared::try_get(other) {
                Ok(value) => Ok(*value),
                Err(error) => Err(Error::other("use it", error.to_string())),
            }
        }
        static A: Shared<u32> = Shared::named("A", || needs(&B));
        static B: Shared<u32> = Shared::named("B", || needs(&C));
        static C: Shared<u32> = Shared::named("C", || needs(&A));
        let message = Shared::try_get(&A).unwrap_err().to_string();
        assert!(message.contains("`A` -> `B` -> `C` -> `A`"), "{message}");
    }

    #[test]
    fn starts_in_two_threads_that_need_each_other_do_not_wait_for_ever() {
        /// Holds each thread until both have begun to start their fixture.
        static BOTH: Barrier = Barrier::new(2);
        fn needs(other: &'static Shared<u32>) -> Result<u32, Error> {
            BOTH.wait();
            match Shared::try_get(other) {
                Ok(value) => Ok(*value),
                Err(error) => Err(Error::other("use it", error.to_string())),
            }
        }
        static A: Shared<u32> = Shared::named("A", || needs(&B));
        static B: Shared<u32> = Shared::named("B", || needs(&A));
        let other = thread::spawn(|| Shared::try_get(&B).unwrap_err().to_string());
        let messages = [
            Shared::try_get(&A).unwrap_err().to_string(),
            other.join().unwrap(),
        ];
        let is_circle =
            |message: &String| message.contains("`A` -> `B` -> `A`") || message.contains("`B` -> `A` -> `B`");
        assert!(messages.iter().all(is_circle), "{messages:?}");
    }

    #[test]
    fn a_start_that_uses_itself_is_an_error_and_no_deadlock() {
        static SHARED: Shared<u32> = Shared::named("SERVICE", || {
            assert!(matches!(
                Shared::try_get(&SHARED),
                Err(Error::System { attempt, .. }) if attempt.contains("`SERVICE`")
            ));
            assert!(catch_unwind(AssertUnwindSafe(|| *SHARED)).is_err());
            Ok(7)
        });
        assert_eq!(*SHARED, 7);
    }

    #[test]
    fn a_service_in_a_static_can_be_borrowed_for_ever() {
        static SHARED: Shared<String> = Shared::new(|| Ok("x".to_owned()));
        fn forever(text: &'static str) -> &'static str {
            text
        }
        assert_eq!(forever(&SHARED), "x");
    }
}
