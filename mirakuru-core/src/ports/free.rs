//! Checks before a start that a port, a socket or a pid file is free for the service.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::error::Error;
use crate::error::Evidence;
use crate::error::secrets::Unmasked;
use crate::ports::address;
use crate::ports::holder::{Holder, holder_of_path, holder_of_port, user_name};
use crate::ports::table;
use crate::sys::procfs;
use crate::sys::sockets::{self, UnixAnswer, UnixKind};
use crate::sys::{self, Protocol};
use crate::util::backoff::Pauses;

/// A service's endpoint that another process already uses.
///
/// Displayed as `port 6379 is already in use by redis-server (pid 812)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Busy {
    /// The endpoint's name, for example `port 6379` or `socket /run/x.sock`.
    pub(crate) endpoint: String,
    /// The process that uses the endpoint, if it is visible.
    pub(crate) holder: Option<Holder>,
}

impl Busy {
    pub(crate) fn into_error(self, command: &str) -> Unmasked {
        let is_port = self.endpoint.starts_with("port ") || self.endpoint.starts_with("UDP port ");
        let remedy = self.holder.as_ref().and_then(Holder::remedy);
        let is_pid_file = self.endpoint.starts_with("pid file ");
        let hint = match (remedy, is_port) {
            (None, _) if is_pid_file => {
                "remove the file, which an earlier service left behind, or use a path in `{dir}`".to_owned()
            }
            (Some(remedy), _) if is_pid_file => format!(
                "remove the file if that process is another program (then an earlier service left it \
                    behind); otherwise {remedy}"
            ),
            (Some(remedy), true) => format!("{remedy}, or use `{{port}}` to get a free port"),
            (Some(remedy), false) => format!("{remedy}, or use a path in `{{dir}}`, which is private"),
            (None, true) => "use `{port}` to get a free port".to_owned(),
            (None, false) => "use a path in `{dir}`, which is private".to_owned(),
        };
        Error::AlreadyRunning {
            command: command.into(),
            endpoint: self.endpoint,
            evidence: Box::new(Evidence {
                about: self.holder.as_ref().and_then(Holder::about),
                hint: Some(hint),
                ..Evidence::default()
            }),
            holder: self.holder.map(|holder| holder.to_string()),
        }
        .into()
    }
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is already in use", self.endpoint)?;
        match &self.holder {
            Some(holder) => write!(f, " by {holder}"),
            None => Ok(()),
        }
    }
}

/// How long to wait for a busy port that may soon be free. If the holder is a child that this
/// process has just forked, its copy of the socket is closed when it executes a program. A holder
/// that is not visible may be exiting, or may already have closed the port.
fn patience_with(holder: Option<&Holder>) -> Duration {
    let is_ours = |holder: &Holder| holder.user == Some(user_name(sys::euid()));
    match holder.map(|holder| (holder.pid, holder)) {
        Some((Some(pid), _)) if is_fork_of_ours(pid) => Duration::from_secs(1),
        Some((Some(_), _)) => Duration::ZERO,
        Some((None, holder)) if is_ours(holder) => Duration::from_secs(1),
        _ => Duration::from_millis(50),
    }
}

/// Whether a process is a child of this process and still runs the same program. Such a child will
/// probably execute another program or exit soon.
fn is_fork_of_ours(pid: u32) -> bool {
    let me = std::process::id();
    let is_same = procfs::program(pid).is_none_or(|program| procfs::program(me) == Some(program));
    is_same && procfs::stat(pid).is_some_and(|stat| stat.parent == me)
}

/// Checks before a start that a server could listen on these addresses.
///
/// Skips addresses of other machines. A port that this process is not allowed to bind counts as
/// free unless the kernel lists a socket on it. A port that is held for a later service (bound with
/// SO_REUSEADDR, not listening) also counts as free.
pub(crate) fn check_free(addrs: &[SocketAddr]) -> Result<(), Busy> {
    check(Protocol::Tcp, addrs)
}

/// Checks UDP addresses as [`check_free`] checks TCP addresses.
pub(crate) fn check_udp_free(addrs: &[SocketAddr]) -> Result<(), Busy> {
    check(Protocol::Udp, addrs)
}

fn check(protocol: Protocol, addrs: &[SocketAddr]) -> Result<(), Busy> {
    for &addr in addrs {
        if !address::is_local(addr.ip()) {
            continue;
        }
        let mut pauses = Pauses::new();
        // The kernel is asked first, because even a short bind can disturb a server that is
        // starting.
        while table::is_taken(protocol, addr)
            || sockets::try_bind(protocol, addr).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        {
            let holder = holder_of_port(protocol, addr);
            let patience = patience_with(holder.as_ref());
            if pauses.elapsed() >= patience {
                return Err(Busy {
                    endpoint: match protocol {
                        Protocol::Tcp => format!("port {}", addr.port()),
                        Protocol::Udp => format!("UDP port {}", addr.port()),
                    },
                    holder,
                });
            }
            pauses.sleep(patience);
        }
    }
    Ok(())
}

/// Checks that a server can create a socket or a pid file at this path. Fails if a process accepts
/// connections there, or if the path is the pid file of a live process.
///
/// A socket on which no process answers counts as free; see [`remove_stale_socket`]. A path that
/// this process cannot inspect also counts as free, because the service may have more rights.
pub(crate) fn check_path_free(path: &Path) -> Result<(), Busy> {
    if let Some(pid) = living_pid_in(path) {
        return Err(Busy {
            endpoint: format!("pid file {}", path.display()),
            holder: Some(Holder::of_pid(pid)),
        });
    }
    let is_taken = match sockets::try_connect_unix(path, UnixKind::Stream) {
        Ok(UnixAnswer::Accepted(_) | UnixAnswer::Full) => true,
        Err(error) => sockets::is_another_kind(&error),
    };
    if is_taken {
        return Err(Busy {
            endpoint: format!("socket {}", path.display()),
            holder: holder_of_path(path),
        });
    }
    Ok(())
}

/// The process id in a pid file, if that process is alive and older than the file.
///
/// The system reuses process ids, so a process that started after the file was written is a
/// different one.
fn living_pid_in(path: &Path) -> Option<u32> {
    /// Larger files are not read. PostgreSQL's pid file has several lines.
    const LONGEST: u64 = 4096;
    /// Tolerance for comparing times: start times are exact to 10 ms, and clocks may be adjusted.
    const SLACK: Duration = Duration::from_secs(1);
    let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    if metadata.len() > LONGEST {
        return None;
    }
    let pid = first_number(&fs::read(path).ok()?)?;
    let stat = procfs::stat(pid).filter(procfs::Stat::is_alive)?;
    let written: SystemTime = metadata.modified().ok()?;
    (stat.started()? <= written + SLACK).then_some(pid)
}

/// The number on the first line of a pid file.
pub(crate) fn first_number(content: &[u8]) -> Option<u32> {
    let line = content.split(|byte| *byte == b'\n').next()?;
    let pid = std::str::from_utf8(line).ok()?.trim().parse().ok()?;
    (pid != 0).then_some(pid)
}

/// Removes a Unix socket that a killed server left behind. Returns whether it has removed one.
///
/// A killed service leaves its socket behind, and most servers then fail with "address in use".
/// Only a socket that belongs to this user and refuses connections is removed. Call this
/// immediately before a start, while holding the lock on the path.
pub(crate) fn remove_stale_socket(path: &Path) -> io::Result<bool> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() || metadata.uid() != sockets::user() {
        return Ok(false);
    }
    match sockets::try_connect_unix(path, UnixKind::Stream) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

#[cfg(all(test, target_os = "linux", not(mirakuru_portable)))]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::error::secrets::Secrets;
    use crate::sys::sockets::tests::{Made, listen_v6, tcp, unix};
    use crate::sys::tests::in_time;

    /// A directory for one test, removed when the test ends.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let dir = std::env::temp_dir().join(format!("mk-holder-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            Dir(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    struct Kill(Child);

    impl Drop for Kill {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Starts a Python process that listens on a free port and prints the port.
    fn server(environment: &[(&str, &str)]) -> (Kill, SocketAddr) {
        use std::io::BufRead;
        let script = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); \
             print(s.getsockname()[1], flush=True); time.sleep(60)";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        io::BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], line.trim().parse().unwrap()));
        (Kill(child), addr)
    }

    #[test]
    fn a_fork_that_closes_the_port_in_a_moment_is_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let child = crate::sys::tests::fork_with(&listener, Duration::from_millis(20));
        drop(listener);
        assert!(patience_with(Some(&Holder::of_pid(child.pid()))) > Duration::ZERO);
        assert_eq!(check_free(&[addr]), Ok(()));
    }

    #[test]
    fn another_process_is_told_at_once() {
        assert_eq!(patience_with(Some(&Holder::of_pid(1))), Duration::ZERO);
        let ourselves = Holder::of_pid(std::process::id());
        assert_eq!(patience_with(Some(&ourselves)), Duration::ZERO);
    }

    #[test]
    fn a_busy_udp_port_names_its_holder() {
        // Finds a UDP port whose TCP port is free as well.
        let socket = loop {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            if TcpListener::bind(socket.local_addr().unwrap()).is_ok() {
                break socket;
            }
        };
        let addr = socket.local_addr().unwrap();
        let busy = check_udp_free(&[addr]).unwrap_err();
        assert_eq!(busy.endpoint, format!("UDP port {}", addr.port()));
        assert_eq!(busy.holder.unwrap().pid, Some(std::process::id()));
        // The TCP port stays free although the UDP port is busy.
        in_time(|| check_free(&[addr]).is_ok());
        drop(socket);
        in_time(|| check_udp_free(&[addr]).is_ok());
    }

    #[test]
    fn a_busy_port_names_its_holder() {
        let (child, addr) = server(&[]);
        let pid = child.0.id();
        let busy = check_free(&[addr]).unwrap_err();
        let holder = busy.holder.clone().unwrap();
        assert_eq!(holder.pid, Some(pid));
        assert!(!holder.marked && !holder.ourselves);
        assert!(holder.age.unwrap() < Duration::from_secs(3600));
        let text = busy.to_string();
        let begin = format!("port {} is already in use by python3", addr.port());
        assert!(text.starts_with(&begin), "{text}");
        assert!(text.ends_with(&format!(" (pid {pid})")), "{text}");
        let about = holder.about().unwrap();
        let user = holder.user.unwrap();
        assert!(
            about.starts_with("started ") && about.ends_with(&format!(" ago by user {user}")),
            "{about}"
        );
        // The port is busy for the wildcard address as well, but free for another address.
        assert!(check_free(&[SocketAddr::from(([0, 0, 0, 0], addr.port()))]).is_err());
        check_free(&[SocketAddr::from(([127, 0, 0, 2], addr.port()))]).unwrap();
        drop(child);
        check_free(&[addr]).unwrap();
    }

    #[test]
    fn this_process_as_holder() {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let busy = check_free(&[listener.local_addr().unwrap()]).unwrap_err();
        let Error::AlreadyRunning {
            endpoint,
            holder,
            evidence,
            ..
        } = Secrets::default().mask_error(busy.into_error("x"))
        else {
            panic!()
        };
        assert!(endpoint.starts_with("port "));
        assert!(
            holder
                .unwrap()
                .ends_with(&format!(" (pid {})", std::process::id()))
        );
        assert!(evidence.about.unwrap().contains("this test process"));
        assert!(evidence.hint.unwrap().starts_with("drop the value that holds it"));
    }

    #[test]
    fn bound_without_listening_is_busy_unless_it_is_held_for_a_service() {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let (_bound, port) = tcp(loopback, false, false, None, false).unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        assert!(check_free(&[addr]).is_err());
        let (_held, port) = tcp("[::]:0".parse().unwrap(), true, true, Some(false), false).unwrap();
        for addr in [
            format!("127.0.0.1:{port}"),
            format!("[::1]:{port}"),
            format!("0.0.0.0:{port}"),
        ] {
            check_free(&[addr.parse().unwrap()]).unwrap();
        }
    }

    #[test]
    fn a_wildcard_listener_is_in_the_way_of_its_families_only() {
        let (_only, port) = listen_v6(true);
        check_free(&[SocketAddr::from(([127, 0, 0, 1], port))]).unwrap();
        let v6 = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
        assert_eq!(
            check_free(&[v6]).unwrap_err().holder.unwrap().pid,
            Some(std::process::id())
        );
        let (_dual, port) = listen_v6(false);
        assert!(check_free(&[SocketAddr::from(([127, 0, 0, 1], port))]).is_err());
    }

    #[test]
    fn what_is_not_ours_to_bind_is_passed_over() {
        let (_everywhere, port) = listen_v6(false);
        for ip in ["192.0.2.1", "2001:db8::1"] {
            check_free(&[SocketAddr::new(ip.parse().unwrap(), port)]).unwrap();
        }
    }

    #[test]
    fn a_socket_on_which_somebody_accepts_is_busy() {
        let dir = Dir::new("accepts");
        let path = dir.0.join("a b.sock");
        check_path_free(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        let busy = check_path_free(&path).unwrap_err();
        assert_eq!(busy.endpoint, format!("socket {}", path.display()));
        assert_eq!(busy.holder.unwrap().pid, Some(std::process::id()));
        // `link` is a second path to the same socket.
        let link = dir.0.join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(
            check_path_free(&link).unwrap_err().holder.unwrap().pid,
            Some(std::process::id())
        );
        assert!(!remove_stale_socket(&path).unwrap());
        drop(listener);
        in_time(|| check_path_free(&path).is_ok());
        assert!(path.exists());
        assert!(remove_stale_socket(&path).unwrap());
        assert!(!path.exists());
        assert!(!remove_stale_socket(&path).unwrap());
    }

    #[test]
    fn other_kinds_and_full_ones_are_busy_and_never_removed() {
        let dir = Dir::new("kinds");
        for made in [Made::Datagram, Made::SeqPacket, Made::Stream] {
            let path = dir.0.join(format!("{made:?}"));
            let _held = unix(&path, made, 0);
            // Fills the backlog, if this kind of socket has connections.
            for _ in 0..3 {
                let _ = sockets::try_connect_unix(&path, UnixKind::Stream);
            }
            assert!(check_path_free(&path).is_err(), "{made:?}");
            assert!(!remove_stale_socket(&path).unwrap(), "{made:?}");
        }
        let file = dir.0.join("file");
        fs::write(&file, "text").unwrap();
        check_path_free(&file).unwrap();
        assert!(!remove_stale_socket(&file).unwrap());
        assert!(file.exists());
    }

    #[test]
    fn an_abstract_name_is_busy_while_somebody_listens() {
        let name = PathBuf::from(format!("@mk-holder-{}", std::process::id()));
        let held = unix(&name, Made::Stream, 1);
        let holder = check_path_free(&name).unwrap_err().holder.unwrap();
        assert_eq!(holder.pid, Some(std::process::id()));
        drop(held);
        in_time(|| check_path_free(&name).is_ok());
    }

    #[test]
    fn a_pid_file_is_busy_while_its_process_lives() {
        let dir = Dir::new("pid");
        let path = dir.0.join("x.pid");
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        fs::write(&path, format!("{pid}\n/var/lib/postgresql\n")).unwrap();
        let busy = check_path_free(&path).unwrap_err();
        assert_eq!(busy.endpoint, format!("pid file {}", path.display()));
        assert_eq!(busy.holder.unwrap().pid, Some(pid));
        // Makes the file older than the process, as if the system had reused the process id.
        let yesterday = SystemTime::now() - Duration::from_secs(86_400);
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(yesterday)
            .unwrap();
        check_path_free(&path).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        fs::write(&path, format!("{pid}\n")).unwrap();
        check_path_free(&path).unwrap();
        assert!(path.exists());
    }
    #[test]
    fn what_mirakuru_left_is_known_by_its_mark() {
        let (child, addr) = server(&[("MIRAKURU_ID", "some-run")]);
        let pid = child.0.id();
        let holder = check_free(&[addr]).unwrap_err().holder.unwrap();
        let about = holder.about().unwrap();
        assert!(
            about.ends_with(", left behind by an earlier run of mirakuru"),
            "{about}"
        );
        assert_eq!(holder.remedy().unwrap(), format!("end it with `kill {pid}`"));
        // The text `MIRAKURU_ID=` counts only at the beginning of a variable.
        let (_child, addr) = server(&[("NOT_MIRAKURU_ID", "MIRAKURU_ID=1")]);
        assert!(!holder_of_port(Protocol::Tcp, addr).unwrap().marked);
    }
}
