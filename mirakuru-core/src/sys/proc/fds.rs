//! Finds the processes that hold a socket, by searching the descriptors in `/proc`.

use std::fs;
use std::io;

use super::{numbers, stat, tree_until};

/// The result of a search for sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Search {
    /// The inodes of the sockets found, each with the id of a process that holds it.
    pub(crate) found: Vec<(u64, u32)>,
    /// Whether the descriptors of a live process could not be read.
    pub(crate) denied: bool,
}

impl Search {
    pub(crate) fn has(&self, inode: u64) -> bool {
        self.found.iter().any(|(found, _)| *found == inode)
    }
}

/// How thoroughly to search one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closely {
    /// The descriptors of the process, which its threads normally share.
    Process,
    /// The descriptors of each thread. A thread may have its own table, and the table of the
    /// process is empty once its first thread has ended.
    Threads,
}

/// Searches the descriptors of processes for sockets, given by their inodes.
pub(crate) fn search(pids: &[u32], inodes: &[u64], closely: Closely) -> Search {
    let mut search = Search::default();
    for &pid in pids {
        search.visit(pid, inodes, closely);
    }
    search
}

/// Looks for sockets among the processes of a tree, nearest first, until all are found. The root
/// comes last, because it is a supervisor, which holds no socket of the service.
///
/// The main process nearly always holds the sockets, so the walk ends before it reads that
/// process's `task` directory. Such a read costs time later, because the kernel caches entries for
/// each thread. When the thread ends, the kernel discards them, and the process that reaps the
/// thread spins in the meantime.
pub(crate) fn search_tree(root: u32, inodes: &[u64], closely: Closely) -> Search {
    let mut search = Search::default();
    tree_until(root, &mut |pid| {
        if pid != root {
            search.visit(pid, inodes, closely);
        }
        inodes.iter().all(|inode| search.has(*inode))
    });
    if !inodes.iter().all(|inode| search.has(*inode)) {
        search.visit(root, inodes, closely);
    }
    search
}

impl Search {
    fn visit(&mut self, pid: u32, inodes: &[u64], closely: Closely) {
        let mut mine = Vec::new();
        let polled = match closely {
            Closely::Process => poll(&format!("/proc/{pid}/fd"), inodes, &mut mine),
            // Only root may read the descriptors of a first thread that has ended, so an error does
            // not stop the search of the other threads.
            Closely::Threads => numbers(&format!("/proc/{pid}/task"))
                .into_iter()
                .map(|task| poll(&format!("/proc/{pid}/task/{task}/fd"), inodes, &mut mine))
                .fold(Ok(()), Result::and),
        };
        for inode in mine {
            self.found.push((inode, pid));
        }
        // A zombie's descriptors cannot be read either, but a zombie has none.
        let is_denied = polled.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
        self.denied |= is_denied && stat(pid).is_some_and(|stat| stat.is_alive());
    }
}

fn poll(dir: &str, inodes: &[u64], found: &mut Vec<u64>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let link = match entry.and_then(|entry| fs::read_link(entry.path())) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            // The descriptor has been closed by now.
            Err(_) => continue,
        };
        let inode = link
            .to_str()
            .and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'))
            .and_then(|digits| digits.parse().ok());
        if let Some(inode) = inode {
            if inodes.contains(&inode) && !found.contains(&inode) {
                found.push(inode);
                if found.len() == inodes.len() {
                    break;
                }
            }
        }
    }
    Ok(())
}

#[cfg(all(test, target_os = "linux", not(mirakuru_portable)))]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_zombie_is_not_alive_and_denies_nothing() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id();
        while stat(pid).unwrap().is_alive() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(search(&[pid], &[1], Closely::Process), Search::default());
        child.wait().unwrap();
        assert_eq!(stat(pid), None);
    }

    #[test]
    fn finds_a_socket_of_our_own_either_way() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&listener));
        let link = fs::read_link(link).unwrap();
        let inode = link.to_str().unwrap()["socket:[".len()..]
            .trim_end_matches(']')
            .parse()
            .unwrap();
        for closely in [Closely::Process, Closely::Threads] {
            let search = search(&[std::process::id()], &[inode, 1], closely);
            assert_eq!(search.found, [(inode, std::process::id())]);
            assert!(search.has(inode) && !search.has(1) && !search.denied);
        }
    }
}
