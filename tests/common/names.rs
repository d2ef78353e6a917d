//! Names of tests, as the harness of their binary knows them.

/// The name of a test, from the test's path in this module: `test_name!(failing::a_panic)`. If the
/// test is removed, this does not compile.
#[allow(unused_macros)]
macro_rules! test_name {
    ($($part:ident)::+) => {{
        let _ = &$($part)::+;
        $crate::common::names::without_the_crate(concat!(module_path!() $(, "::", stringify!($part))+))
    }};
}
#[allow(unused_imports)]
pub(crate) use test_name;

/// `it::ports::racer` is `ports::racer` for the harness.
pub(crate) fn without_the_crate(path: &'static str) -> &'static str {
    path.split_once("::").map_or(path, |(_, name)| name)
}
