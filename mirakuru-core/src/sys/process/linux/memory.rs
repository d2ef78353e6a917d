//! Keeps the fork of the supervisor cheap, however large the test process is.
//!
//! A fork copies the page tables of the whole process, which takes 8 ms for 200 MB. It also makes
//! each page copy-on-write, so that the next write to each page costs a fault: 45 ms for 200 MB.
//! The supervisor needs almost none of that memory. So, during the fork, all anonymous memory is
//! marked `MADV_DONTFORK`, except for these parts:
//!
//! * the arena (stacks, buffers, the plan);
//! * the thread-local block of the forking thread, which holds libc's `errno` and the kernel's
//!   `rseq` area;
//! * the top of the forking thread's stack: since musl 1.2.5, `clone` leaves data there, which the
//!   child reads before it calls its function;
//! * `.bss`, which the kernel lists as an anonymous mapping right after a file mapping.
//!
//! The child inherits file mappings (code, `.data`, `.got`) as usual.
//!
//! The supervisor runs only mirakuru's code and simple calls of libc, so it needs no other memory.
//! A preloaded library, a sanitizer or lazy binding would run other code, whose data may be
//! anywhere. If the process has one of these, or a supervisor has died before its first message,
//! forks copy all memory: see [`needs_all`].
//!
//! If another thread forked at the same time, its child would lack the marked memory. So a
//! `pthread_atfork` handler delays libc's `fork` until the marks are removed. `vfork`,
//! `posix_spawn` and new threads need no delay, because they share the memory.
//!
//! Two cases are not covered. Another thread may make a raw `clone` system call without `CLONE_VM`.
//! And a mapping that `mremap` moves during the fork keeps its mark.

use std::cell::UnsafeCell;
use std::ffi::{CStr, OsString, c_int, c_void};
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::{Once, OnceLock};

use once_cell::sync::Lazy;

use super::super::arena::page_size;

/// Keeps other threads from forking during our fork. It is a pthread mutex, because one handler of
/// `pthread_atfork` locks it and another unlocks it.
struct ForkLock(UnsafeCell<libc::pthread_mutex_t>);

// SAFETY: a pthread mutex is designed to be shared between threads.
unsafe impl Sync for ForkLock {}

static FORK_LOCK: ForkLock = ForkLock(UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER));

unsafe extern "C" fn lock() {
    // SAFETY: the mutex is initialised and never destroyed.
    unsafe { libc::pthread_mutex_lock(FORK_LOCK.0.get()) };
}

unsafe extern "C" fn unlock() {
    // SAFETY: the mutex is initialised and never destroyed. This thread has locked it. In a forked
    // child, this thread is a copy of the thread that has locked it.
    unsafe { libc::pthread_mutex_unlock(FORK_LOCK.0.get()) };
}

/// The reason that [`needs_all`] returns under valgrind, which aborts a process that creates a
/// child in any way other than a plain fork.
pub(super) const VALGRIND: &str = "it runs under valgrind";

fn preloads() -> OsString {
    std::env::var_os("LD_PRELOAD").unwrap_or_default()
}

/// Whether valgrind is among the preloaded libraries of this process.
pub(super) fn is_under_valgrind() -> bool {
    let preloads = preloads();
    let mut parts = preloads.as_encoded_bytes().windows(b"vgpreload".len());
    parts.any(|part| part == b"vgpreload")
}

/// The reason recorded by [`note_need`].
static DIED: OnceLock<&'static str> = OnceLock::new();

/// The reason why supervisors need a copy of all memory, if there is one. Such a process may run
/// other code after the fork, and that code may need any part of the memory.
pub(super) fn needs_all() -> Option<&'static str> {
    static SHOWN: Lazy<Option<&'static str>> = Lazy::new(|| {
        if is_under_valgrind() {
            Some(VALGRIND)
        } else if !preloads().is_empty() || Path::new("/etc/ld.so.preload").exists() {
            Some("a library is preloaded")
        } else if has_sanitizer() {
            Some("it is built with a sanitizer")
        } else if binds_lazily() {
            Some("its calls are bound lazily (partial RELRO)")
        } else {
            None
        }
    });
    SHOWN.or_else(|| DIED.get().copied())
}

/// Makes all later forks copy the whole memory, and records the reason.
pub(super) fn note_need(reason: &'static str) {
    let _ = DIED.set(reason);
}

fn has_sanitizer() -> bool {
    let names = [c"__asan_init", c"__tsan_init", c"__msan_init", c"__hwasan_init"];
    // SAFETY: `dlsym` only looks up the name, which ends in a zero byte.
    let is_there = |name: &CStr| unsafe { !libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()).is_null() };
    names.into_iter().any(is_there)
}

/// Whether the first call of another library's function goes through the dynamic linker, whose data
/// is in anonymous memory.
#[cfg(target_env = "gnu")]
fn binds_lazily() -> bool {
    /// One entry of the dynamic section.
    #[repr(C)]
    struct Entry {
        tag: usize,
        value: usize,
    }
    const RELOCATIONS_OF_CALLS: usize = 23;
    const BIND_NOW: usize = 24;
    const FLAGS: usize = 30;
    const FLAGS_1: usize = 0x6fff_fffb;

    /// The linker calls this for each loaded object. Returns 1 for the object that contains this
    /// code, which ends the iteration.
    unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _: usize, lazy: *mut c_void) -> c_int {
        // SAFETY: the linker passes the program headers of a loaded object, and `lazy` points to a
        // `bool`.
        unsafe {
            let info = &*info;
            let base = info.dlpi_addr as usize;
            let headers = std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
            let here = visit as *const () as usize;
            let is_ours = headers.iter().any(|header| {
                let start = base.wrapping_add(header.p_vaddr as usize);
                header.p_type == libc::PT_LOAD && (start..start + header.p_memsz as usize).contains(&here)
            });
            if !is_ours {
                return 0;
            }
            let dynamic = headers.iter().find(|header| header.p_type == libc::PT_DYNAMIC);
            let Some(dynamic) = dynamic else { return 1 };
            let (mut has_calls, mut now) = (false, false);
            let mut entry = base.wrapping_add(dynamic.p_vaddr as usize) as *const Entry;
            while (*entry).tag != 0 {
                match (*entry).tag {
                    RELOCATIONS_OF_CALLS => has_calls = true,
                    BIND_NOW => now = true,
                    FLAGS => now |= (*entry).value & 8 != 0,
                    FLAGS_1 => now |= (*entry).value & 1 != 0,
                    _ => {}
                }
                entry = entry.add(1);
            }
            *lazy.cast::<bool>() = has_calls && !now;
            1
        }
    }
    let mut lazy = false;
    // SAFETY: `dl_iterate_phdr` calls `visit` only before it returns, so `lazy` outlives the calls.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut lazy).cast()) };
    lazy && std::env::var_os("LD_BIND_NOW").is_none_or(|value| value.is_empty())
}

/// musl binds all calls when the program starts.
#[cfg(not(target_env = "gnu"))]
fn binds_lazily() -> bool {
    false
}

/// Calls `fork` for each range of memory that `own` returns, while no other thread can fork. If
/// `little` is set, each child inherits only its own range and the memory that libc needs.
pub(super) fn with_memory(
    little: bool,
    own: impl FnOnce() -> Vec<Range<usize>>,
    mut fork: impl FnMut(&Range<usize>),
) {
    static HANDLERS: Once = Once::new();
    HANDLERS.call_once(|| {
        // SAFETY: the handlers only lock and unlock a mutex.
        unsafe { libc::pthread_atfork(Some(lock), Some(unlock), Some(unlock)) };
    });

    // SAFETY: this thread unlocks the mutex that it locks, even if a panic unwinds (see `Restore`).
    unsafe { lock() };
    let mut restore = Restore(Vec::new());
    let own = own();
    let Some(first) = own.first() else { return };
    if little {
        restore.0 = anonymous_memory(&[first.clone(), thread_local_block(), stack_top()]);
    }
    for range in &restore.0 {
        advise(range, libc::MADV_DONTFORK);
    }
    for (at, range) in own.iter().enumerate() {
        if at > 0 {
            advise(&own[at - 1], libc::MADV_DONTFORK);
            advise(range, libc::MADV_DOFORK);
        }
        fork(range);
    }
    for range in &own {
        advise(range, libc::MADV_DOFORK);
    }
}

/// Removes the marks, then lets other code fork again. `drop` also runs when a panic unwinds.
struct Restore(Vec<Range<usize>>);

impl Drop for Restore {
    fn drop(&mut self) {
        for range in &self.0 {
            advise(range, libc::MADV_DOFORK);
        }
        // SAFETY: `with_memory` has locked the mutex on this thread.
        unsafe { unlock() };
    }
}

fn advise(range: &Range<usize>, advice: libc::c_int) {
    // Failure does no harm: the mapping may be gone, or may not accept this advice. SAFETY: this
    // advice changes the copy that a fork makes, never the memory that this process sees.
    unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), advice) };
}

/// Number of bytes to keep on each side of the thread pointer and of `errno`. The range holds
/// libc's description of the thread (about 2.5 kB) and the kernel's `rseq` area. The architecture
/// and the version of libc decide which side holds them.
const THREAD_LOCAL_REACH: usize = 32 * 1024;

/// The memory that holds this thread's `errno` and libc's own data about the thread.
fn thread_local_block() -> Range<usize> {
    // SAFETY: both calls only return an address.
    let (errno, me) = unsafe { (libc::__errno_location() as usize, libc::pthread_self() as usize) };
    let page = page_size();
    let start = errno.min(me).saturating_sub(THREAD_LOCAL_REACH);
    let end = errno.max(me) + THREAD_LOCAL_REACH;
    start / page * page..end.next_multiple_of(page)
}

/// Number of bytes of stack that the calls up to the fork may use.
const STACK_REACH: usize = 32 * 1024;

/// The part of this thread's stack that the calls up to the fork use.
#[inline(never)]
fn stack_top() -> Range<usize> {
    let here = 0_u8;
    let here = std::ptr::from_ref(&here) as usize;
    let page = page_size();
    here.saturating_sub(STACK_REACH) / page * page..(here + page).next_multiple_of(page)
}

/// The private anonymous mappings of this process, except for `.bss` and the ranges in `keep`.
fn anonymous_memory(keep: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut maps = String::with_capacity(64 * 1024);
    match File::open("/proc/self/maps").and_then(|mut file| file.read_to_string(&mut maps)) {
        Ok(_) => parse_maps(&maps, keep),
        // Without /proc the fork copies everything, which is slower but just as correct.
        Err(_) => Vec::new(),
    }
}

fn parse_maps(maps: &str, keep: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut found = Vec::with_capacity(64);
    let mut end_of_file_mapping = 0;
    for line in maps.lines() {
        let Some(mapping) = Mapping::parse(line) else {
            continue;
        };
        if !mapping.anonymous {
            if mapping.file {
                end_of_file_mapping = mapping.range.end;
            }
            continue;
        }
        if mapping.range.start == end_of_file_mapping {
            continue; // this mapping is .bss
        }
        cut(mapping.range, keep, &mut found);
    }
    found
}

struct Mapping {
    range: Range<usize>,
    /// Whether the mapping is private, is backed by no file, and can be read or written.
    anonymous: bool,
    file: bool,
}

impl Mapping {
    /// Parses a line such as `7f12-7f34 rw-p 00000000 00:00 0    [heap]`.
    fn parse(line: &str) -> Option<Mapping> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        let permissions = fields.next()?.as_bytes();
        let inode = fields.nth(2)?;
        let name = fields.next().unwrap_or("");
        let plain = name.is_empty() || name == "[heap]" || name.starts_with("[anon");
        let used = permissions.starts_with(b"r") || permissions.get(1) == Some(&b'w');
        let anonymous = plain && inode == "0" && used && permissions.get(3) == Some(&b'p');
        Some(Mapping {
            range,
            anonymous,
            file: inode != "0",
        })
    }
}

/// Appends `range` to `found`, without the parts that are in `keep`. The kernel merges neighbouring
/// mappings into one line of `maps`, so a line often contains parts to keep.
fn cut(range: Range<usize>, keep: &[Range<usize>], found: &mut Vec<Range<usize>>) {
    let Some((first, others)) = keep.split_first() else {
        if !range.is_empty() {
            found.push(range);
        }
        return;
    };
    cut(range.start..range.end.min(first.start), others, found);
    cut(range.start.max(first.end)..range.end, others, found);
}

#[cfg(test)]
// Some of these lists hold a single range.
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    #[test]
    fn cuts_what_must_stay_out_of_a_mapping() {
        let mut found = Vec::new();
        cut(0..100, &[20..30, 50..60], &mut found);
        assert_eq!(found, [0..20, 30..50, 60..100]);
    }

    #[test]
    fn cuts_nothing_that_does_not_overlap() {
        for keep in [0..10, 100..120] {
            let mut found = Vec::new();
            cut(10..100, &[keep], &mut found);
            assert_eq!(found.as_slice(), std::slice::from_ref(&(10..100)));
        }
        let mut found = Vec::new();
        cut(10..20, std::slice::from_ref(&(0..50)), &mut found);
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn leaves_files_bss_shared_and_special_mappings_alone() {
        let maps = "\
1000-2000 rw-p 00000000 08:01 77 /bin/test
2000-3000 rw-p 00000000 00:00 0
4000-5000 rw-p 00000000 00:00 0 [heap]
5000-6000 ---p 00000000 00:00 0
6000-7000 rw-s 00000000 00:01 88 /dev/zero (deleted)
8000-9000 rw-p 00000000 00:00 0 [stack]
a000-b000 r--p 00000000 00:00 0 [vvar]
c000-d000 rw-p 00000000 00:00 0 [anon: mine]
";
        assert_eq!(parse_maps(maps, &[]), [0x4000..0x5000, 0xc000..0xd000]);
    }

    #[test]
    fn this_process_has_a_heap_that_is_found_and_restored() {
        let boxed = vec![7_u8; 4 << 20];
        let address = boxed.as_ptr() as usize;
        let inside = |ranges: &[Range<usize>]| ranges.iter().any(|range| range.contains(&address));
        assert!(inside(&anonymous_memory(&[])));
        let page = address / 4096 * 4096..address + 4096;
        assert!(!inside(&anonymous_memory(std::slice::from_ref(&page))));
        with_memory(true, || vec![0..0], |_| ());
        // SAFETY: the child only reads memory and exits.
        let status = unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::_exit(i32::from(std::ptr::read_volatile(boxed.as_ptr()) != 7));
            }
            let mut status = 0;
            libc::waitpid(child, &mut status, 0);
            status
        };
        assert_eq!(status, 0, "a fork after the marks were taken off has all memory");
    }
}
