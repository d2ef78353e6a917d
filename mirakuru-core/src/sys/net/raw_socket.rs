//! Wraps the `libc` socket calls that `std` does not offer. The other files of this folder use
//! them.
//!
//! The `nix` crate offers these calls, but its socket features add two more crates to every user's
//! build. Every new descriptor gets an owner immediately, and is close-on-exec.

use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libc::c_int;

/// Whether `socket` accepts `SOCK_CLOEXEC`. If not, a second call must set the flag.
const CAN_CLOSE_ON_EXEC: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// Flags to add to the type of a new socket.
#[cfg(any(target_os = "linux", target_os = "android"))]
const NEW: c_int = libc::SOCK_CLOEXEC;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const NEW: c_int = 0;

/// Shuts down a socket in both directions, for all copies of the descriptor.
pub(in crate::sys) fn hang_up(fd: &OwnedFd) {
    // SAFETY: the call takes no pointers.
    unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) };
}

/// Creates a socket as `socket(2)` does, and makes it close-on-exec. `family` is for example
/// `AF_INET`, and `kind` for example `SOCK_STREAM`. `protocol` is usually 0.
pub(in crate::sys) fn socket(family: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = check(unsafe { libc::socket(family, kind | NEW, protocol) })?;
    // SAFETY: the descriptor is new, and has no other owner.
    close_on_exec(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Creates a pair of connected Unix sockets, both close-on-exec.
pub(in crate::sys) fn pair(kind: c_int) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: the call writes two descriptors into the array, which has room for them.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind | NEW, 0, ends.as_mut_ptr()) })?;
    // SAFETY: the descriptors are new, and have no other owner.
    let [ours, theirs] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    #[cfg(target_vendor = "apple")]
    for fd in [&ours, &theirs] {
        // On these systems some versions of `send` lack the flag that prevents SIGPIPE.
        set_flag(fd, libc::SOL_SOCKET, libc::SO_NOSIGPIPE, true)?;
    }
    Ok((close_on_exec(ours)?, close_on_exec(theirs)?))
}

fn close_on_exec(fd: OwnedFd) -> io::Result<OwnedFd> {
    if !CAN_CLOSE_ON_EXEC {
        // SAFETY: the call takes no pointers, and the descriptor is open.
        check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) })?;
    }
    Ok(fd)
}

/// Makes `connect` on this socket return immediately.
pub(in crate::sys) fn set_non_blocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: the call takes no pointers, and the descriptor is open.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })?;
    Ok(())
}

/// Sets a boolean option.
pub(in crate::sys) fn set_flag(fd: &OwnedFd, level: c_int, option: c_int, on: bool) -> io::Result<()> {
    let on = c_int::from(on);
    // SAFETY: the reference is to an integer, the type of this option.
    unsafe { set_option(fd, level, option, &on) }
}

pub(in crate::sys) fn set_reuse_addr(fd: &OwnedFd, on: bool) -> io::Result<()> {
    set_flag(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, on)
}

pub(in crate::sys) fn set_reuse_port(fd: &OwnedFd, on: bool) -> io::Result<()> {
    set_flag(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, on)
}

/// Sets `IPV6_V6ONLY`, which makes an IPv6 socket accept only IPv6.
pub(in crate::sys) fn set_v6_only(fd: &OwnedFd, on: bool) -> io::Result<()> {
    set_flag(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, on)
}

/// Sets the receive timeout (`SO_RCVTIMEO`), in whole seconds.
#[cfg(all(target_os = "linux", not(mirakuru_portable)))]
pub(in crate::sys) fn set_receive_timeout(fd: &OwnedFd, seconds: i32) -> io::Result<()> {
    let limit = libc::timeval {
        tv_sec: seconds.into(),
        tv_usec: 0,
    };
    // SAFETY: this option takes a `timeval`.
    unsafe { set_option(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &limit) }
}

/// # Safety
///
/// `T` must be the type that the kernel expects for this option.
pub(in crate::sys) unsafe fn set_option<T>(
    fd: &impl AsRawFd,
    level: c_int,
    option: c_int,
    value: &T,
) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `length` is the size of the value, and `T` is the type that the kernel expects.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            length,
        )
    };
    check(result)?;
    Ok(())
}

/// Returns the id of the process that called `connect` or `listen` for the other end of a Unix
/// socket.
#[cfg(all(target_os = "linux", not(mirakuru_portable)))]
pub(in crate::sys) fn peer_pid(fd: &OwnedFd) -> io::Result<libc::pid_t> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, the size of the variable, and all bytes are
    // valid in a `ucred`.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            std::ptr::from_mut(&mut peer).cast(),
            &mut length,
        )
    })?;
    Ok(peer.pid)
}

pub(in crate::sys) fn bind(fd: &OwnedFd, addr: &Address) -> io::Result<()> {
    // SAFETY: `length` bytes of the `Address` are set.
    check(unsafe { libc::bind(fd.as_raw_fd(), addr.pointer(), addr.length) })?;
    Ok(())
}

pub(in crate::sys) fn connect(fd: &OwnedFd, addr: &Address) -> io::Result<()> {
    // SAFETY: `length` bytes of the `Address` are set.
    check(unsafe { libc::connect(fd.as_raw_fd(), addr.pointer(), addr.length) })?;
    Ok(())
}

/// Starts to accept connections, with a backlog of about `waiting`.
pub(in crate::sys) fn listen(fd: &OwnedFd, waiting: c_int) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::listen(fd.as_raw_fd(), waiting) })?;
    Ok(())
}

fn check(result: c_int) -> io::Result<c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

pub(in crate::sys) fn family(addr: &SocketAddr) -> c_int {
    match addr {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    }
}

/// An address in the kernel's format.
pub(in crate::sys) struct Address {
    storage: libc::sockaddr_storage,
    /// Number of bytes that are in use.
    length: libc::socklen_t,
}

impl Address {
    /// # Safety
    ///
    /// `T` must be a `sockaddr_*`: these types begin with the family and fit into a
    /// `sockaddr_storage`, and all bytes are valid in them.
    unsafe fn of<T>(fill: impl FnOnce(&mut T) -> usize) -> Address {
        // SAFETY: all fields are numbers, for which zero is a valid value.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        // SAFETY: the storage is initialised, and large enough and aligned for every address.
        let length = fill(unsafe { &mut *std::ptr::from_mut(&mut storage).cast::<T>() });
        Address {
            storage,
            length: length as libc::socklen_t,
        }
    }

    /// The address of a Unix socket: a path, or, with `is_abstract`, a name (Linux).
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] if the name is too long, or if a path contains a NUL.
    pub(in crate::sys) fn unix(name: &Path, is_abstract: bool) -> io::Result<Address> {
        let name = name.as_os_str().as_bytes();
        let start = std::mem::offset_of!(libc::sockaddr_un, sun_path);
        // A path ends with a NUL, and an abstract name begins with a NUL.
        let room = size_of::<libc::sockaddr_un>() - start - 1;
        if name.len() > room || (!is_abstract && name.contains(&0)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let skip = usize::from(is_abstract);
        // SAFETY: `sockaddr_un` is a `sockaddr_*` type.
        Ok(unsafe {
            Address::of(|addr: &mut libc::sockaddr_un| {
                addr.sun_family = libc::AF_UNIX as libc::sa_family_t;
                for (to, from) in addr.sun_path[skip..].iter_mut().zip(name) {
                    *to = *from as libc::c_char;
                }
                start + name.len() + 1
            })
        })
    }

    fn pointer(&self) -> *const libc::sockaddr {
        std::ptr::from_ref(&self.storage).cast()
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Address {
        let family = family(&addr) as libc::sa_family_t;
        let port = addr.port().to_be();
        match addr {
            // SAFETY: `sockaddr_in` is a `sockaddr_*` type.
            SocketAddr::V4(v4) => unsafe {
                Address::of(|addr: &mut libc::sockaddr_in| {
                    addr.sin_family = family;
                    addr.sin_port = port;
                    addr.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
                    size_of::<libc::sockaddr_in>()
                })
            },
            // SAFETY: `sockaddr_in6` is a `sockaddr_*` type.
            SocketAddr::V6(v6) => unsafe {
                Address::of(|addr: &mut libc::sockaddr_in6| {
                    addr.sin6_family = family;
                    addr.sin6_port = port;
                    addr.sin6_flowinfo = v6.flowinfo();
                    addr.sin6_addr.s6_addr = v6.ip().octets();
                    addr.sin6_scope_id = v6.scope_id();
                    size_of::<libc::sockaddr_in6>()
                })
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn addresses_arrive_as_they_are() {
        // Checks the byte order of port and address: a connection reaches the listener from the
        // address that was bound.
        for (ip, from) in [("127.7.8.9", "127.9.8.7"), ("::1", "::1")] {
            let listener = TcpListener::bind((ip, 0)).unwrap();
            let addr = listener.local_addr().unwrap();
            let fd = socket(family(&addr), libc::SOCK_STREAM, 0).unwrap();
            let from = SocketAddr::new(from.parse().unwrap(), 0);
            bind(&fd, &from.into()).unwrap();
            connect(&fd, &addr.into()).unwrap();
            let (_, peer) = listener.accept().unwrap();
            assert_eq!(peer.ip(), from.ip());
            assert_eq!(peer, TcpStream::from(fd).local_addr().unwrap());
        }
    }

    #[test]
    fn descriptors_are_not_inherited() {
        let single = socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        let (one, other) = pair(libc::SOCK_SEQPACKET).unwrap();
        for fd in [&single, &one, &other] {
            // SAFETY: the call takes no pointers.
            let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) };
            assert_eq!(flags, libc::FD_CLOEXEC);
        }
    }

    #[test]
    fn the_longest_path_fits_and_a_longer_one_is_an_error() {
        let room = size_of::<libc::sockaddr_un>() - std::mem::offset_of!(libc::sockaddr_un, sun_path);
        let longest = "x".repeat(room - 1);
        let address = Address::unix(Path::new(&longest), false).unwrap();
        assert_eq!(address.length as usize, size_of::<libc::sockaddr_un>());
        assert!(Address::unix(Path::new(&longest), true).is_ok());
        let error = Address::unix(Path::new(&format!("{longest}x")), false);
        assert_eq!(error.err().unwrap().kind(), io::ErrorKind::InvalidInput);
        assert!(Address::unix(Path::new("a\0b"), false).is_err());
    }
}
