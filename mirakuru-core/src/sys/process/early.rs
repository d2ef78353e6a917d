//! Code that runs when a program starts, before its `main`.

/// Lets a function run when the program that this crate is linked into starts, before `main`. Every
/// test binary calls the function, so it must return at once if it has nothing to do.
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
