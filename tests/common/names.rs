//! Names of tests, as the test harness knows them.

/// The harness's name for a test, which is given by its path in this module:
/// `test_name!(failing::a_panic)`. A name without a test does not compile.
#[allow(unused_macros)]
macro_rules! test_name {
    ($($part:ident)::+) => {{
        let _ = &$($part)::+;
        $crate::common::names::without_the_crate(concat!(module_path!() $(, "::", stringify!($part))+))
    }};
}
#[allow(unused_imports)]
pub(crate) use test_name;

/// Removes the crate's name: the harness knows `it::ports::racer` as `ports::racer`.
pub(crate) fn without_the_crate(path: &'static str) -> &'static str {
    path.split_once("::").map_or(path, |(_, name)| name)
}
