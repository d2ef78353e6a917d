//! Finds the services that a service needs: services of this process whose port or directory
//! appears in its command, environment or files. At the end of the process or the run, a needed
//! service ends after the services that need it.
//!
//! For example, an application that is given the address of its database ends before the database.
//! A wrong guess only makes one service end later than the other.
//!
//! Services that name each other, such as the nodes of a cluster, end one by one, the last built
//! first. To avoid a cycle, each service searches for its needs when it is built, among the
//! services built before it. Each later start searches again, but leaves out services that need
//! this one.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::util::insert_sorted;

/// A service that has been built, or to which this process has attached.
struct Known {
    /// The service's position in the order in which services were built.
    number: u64,
    /// The service's private directory, the parent of `{dir}`.
    private: PathBuf,
    ports: Vec<u16>,
    /// The service's `{dir}`, and the socket or pid file that its readiness condition waits for.
    paths: Vec<PathBuf>,
    /// Numbers of the services that this one needs, as found when it was built or last started.
    needs: Vec<u64>,
}

impl Known {
    /// Whether `text` contains one of the service's ports or paths.
    fn is_named_in(&self, text: &[u8]) -> bool {
        let has_port = |port: &u16| has_number(text, port.to_string().as_bytes());
        let has_path = |path: &PathBuf| contains(text, path.as_os_str().as_bytes());
        self.ports.iter().any(has_port) || self.paths.iter().any(has_path)
    }
}

/// When the list has reached this length, services that no longer exist are removed from it.
const MANY: usize = 64;

static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());

fn all() -> MutexGuard<'static, Vec<Known>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds a service that others may need. If it is already in the list, updates its endpoints.
pub(super) fn note(private: &Path, ports: Vec<u16>, paths: Vec<PathBuf>) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let mut known = all();
    if let Some(known) = known.iter_mut().find(|known| known.private == private) {
        (known.ports, known.paths) = (ports, paths);
        return;
    }
    if known.len() >= MANY {
        known.retain(|known| is_there(&known.private));
    }
    known.push(Known {
        number: NUMBER.fetch_add(1, Ordering::Relaxed),
        private: private.to_owned(),
        ports,
        paths,
        needs: Vec::new(),
    });
}

/// Removes a service from the list.
pub(super) fn forget(private: &Path) {
    all().retain(|known| known.private != private);
}

/// Finds and records the services that `own` needs: those in `given`, and those that `texts` name.
/// Leaves out services that need `own`. Returns their private directories.
pub(super) fn find(own: &Path, given: &[PathBuf], texts: &[&[u8]]) -> Vec<PathBuf> {
    let mut known = all();
    let Some(at) = known.iter().position(|known| known.private == own) else {
        return Vec::new();
    };
    let dependents = dependents(&known, known[at].number);
    let (mut needs, mut dirs) = (Vec::new(), Vec::new());
    for known in &*known {
        let is_needed = given.contains(&known.private) || texts.iter().any(|text| known.is_named_in(text));
        if is_needed && known.private != own && dependents.binary_search(&known.number).is_err() {
            needs.push(known.number);
            dirs.push(known.private.clone());
        }
    }
    known[at].needs = needs;
    dirs
}

/// For each of these services, returns the indexes of those that need it, directly or through
/// others.
pub(super) fn dependents_among(services: &[&Path]) -> Vec<Vec<usize>> {
    dependents_in(&all(), services)
}

fn dependents_in(known: &[Known], services: &[&Path]) -> Vec<Vec<usize>> {
    // Each service is looked up once, because comparing paths is slow.
    let mut numbers = Vec::new();
    for service in services {
        let known = known.iter().find(|known| known.private == *service);
        numbers.push(known.map(|known| known.number));
    }
    let mut all = Vec::new();
    for number in &numbers {
        let found = number.map_or_else(Vec::new, |number| dependents(known, number));
        let mut places = Vec::new();
        if !found.is_empty() {
            for (at, other) in numbers.iter().enumerate() {
                if other.is_some_and(|other| found.binary_search(&other).is_ok()) {
                    places.push(at);
                }
            }
        }
        all.push(places);
    }
    all
}

/// Numbers of the services that need this one, directly or through others, in ascending order.
fn dependents(known: &[Known], number: u64) -> Vec<u64> {
    let mut found = Vec::new();
    loop {
        let before = found.len();
        for known in known {
            let is_needed = |need: &u64| *need == number || found.binary_search(need).is_ok();
            if known.needs.iter().any(is_needed) {
                insert_sorted(&mut found, known.number);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// Whether a service still exists. Its `lock` is removed last.
pub(super) fn is_there(private: &Path) -> bool {
    private.join("lock").exists()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}

/// Whether `text` contains `digits` as a complete number, not as part of a longer one.
fn has_number(text: &[u8], digits: &[u8]) -> bool {
    let is_digit = |at: Option<usize>| at.and_then(|at| text.get(at)).is_some_and(u8::is_ascii_digit);
    text.windows(digits.len()).enumerate().any(|(at, window)| {
        window == digits && !is_digit(at.checked_sub(1)) && !is_digit(at.checked_add(digits.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_whole() {
        assert!(has_number(b"redis://127.0.0.1:6379/0", b"6379"));
        assert!(has_number(b"6379", b"6379"));
        assert!(!has_number(b"16379 63791", b"6379"));
        assert!(!has_number(b"637", b"6379"));
    }

    /// Creates the directory of a service without ports, and adds the service to the list.
    fn noted(dir: &Path, name: &str) -> PathBuf {
        let private = dir.join(name);
        std::fs::create_dir(&private).unwrap();
        std::fs::write(private.join("lock"), "").unwrap();
        note(&private, Vec::new(), vec![private.join("d")]);
        private
    }

    fn find_in(own: &Path, text: &str) -> Vec<PathBuf> {
        find(own, &[], &[text.as_bytes()])
    }

    #[test]
    fn a_service_is_named_by_its_port_or_its_directory_until_it_is_forgotten() {
        let dir = crate::sys::tests::TestDir::new();
        let (db, app) = (noted(dir.path(), "db"), noted(dir.path(), "app"));
        note(&db, vec![54_321], vec![db.join("d")]);
        let socket = format!("--socket={}/s", db.join("d").display());
        assert_eq!(find_in(&app, "tcp://localhost:54321"), std::slice::from_ref(&db));
        assert_eq!(find_in(&app, &socket), std::slice::from_ref(&db));
        assert_eq!(
            find(&app, std::slice::from_ref(&db), &[]),
            std::slice::from_ref(&db)
        );
        assert!(find_in(&app, "tcp://localhost:54320").is_empty());
        assert!(find_in(&db, &socket).is_empty(), "itself");
        forget(&db);
        assert!(find_in(&app, &socket).is_empty());
        forget(&app);
    }

    #[test]
    fn services_that_name_each_other_form_no_circle() {
        let dir = crate::sys::tests::TestDir::new();
        let text = ["a", "b", "c"].map(|name| dir.path().join(name).join("d").display().to_string());
        let text = text.join(",");
        // Add each service to the list before it searches for its needs.
        let nodes = ["a", "b", "c"].map(|name| {
            let node = noted(dir.path(), name);
            find_in(&node, &text);
            node
        });
        for _ in 0..2 {
            for (at, node) in nodes.iter().enumerate() {
                assert_eq!(find_in(node, &text), &nodes[..at]);
            }
        }
        // A service may need one that was built after it, unless the later one needs the earlier
        // one.
        find_in(&nodes[2], "");
        assert_eq!(find_in(&nodes[0], &text), &nodes[2..]);
        assert_eq!(find_in(&nodes[2], &text), &[] as &[PathBuf], "{nodes:?}");
        let listed = [&nodes[1], &nodes[0], dir.path(), &nodes[2]].map(|dir: &Path| dir);
        assert_eq!(dependents_among(&listed), [vec![], vec![0], vec![], vec![0, 1]]);
        for node in nodes {
            forget(&node);
        }
    }

    #[test]
    fn the_dependents_of_hundreds_of_services_are_found() {
        // Every second service needs the one before it.
        let known: Vec<Known> = (0..400)
            .map(|number| Known {
                number,
                private: PathBuf::from(format!("/tmp/mirakuru-0/{number}")),
                ports: Vec::new(),
                paths: Vec::new(),
                needs: (number - number % 2..number).collect(),
            })
            .collect();
        let services: Vec<&Path> = known.iter().map(|known| known.private.as_path()).collect();
        let found = dependents_in(&known, &services);
        for (at, dependents) in found.into_iter().enumerate() {
            assert_eq!(dependents, if at % 2 == 0 { vec![at + 1] } else { vec![] });
        }
    }
}
