//! Code that runs when a program starts, before its `main`.

/// Calls a function when the program starts, before `main`. Every test binary that links this crate
/// calls it, so it must return immediately if it has nothing to do.
#[doc(hidden)]
#[macro_export]
macro_rules! __before_main {
    ($function:path) => {
        const _: () = {
            extern "C" fn early() {
                $function();
            }
            // SAFETY: the sections hold pointers to functions of this type. The loader calls each.
            #[used]
            #[cfg_attr(
                target_vendor = "apple",
                unsafe(link_section = "__DATA,__mod_init_func")
            )]
            #[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
            static EARLY: extern "C" fn() = early;
        };
    };
}
