//! Sockets that mirakuru opens and a service inherits: `listen_fd`.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::thread;

use crate::common::{self, fixed_port, odd};
use crate::reports::{report, start};
use mirakuru::{Executor, Tcp};

#[test]
fn a_service_inherits_sockets_that_listen_already() {
    // `start` returns at once, long before the service accepts connections. A client that connects
    // in the meantime waits, and gets an answer.
    let mut service = odd(["--delay", "300", "--inherited", "--ready-line", "serving"])
        .name("web server")
        .listen("127.0.0.1:{port}")
        .listen_as("admin", "127.0.0.1:{port:admin}")
        .start()
        .unwrap();
    let addr = service.addr();
    assert_eq!(addr.port(), service.port());
    assert_eq!(common::who_answers(addr), service.pid());
    let admin = SocketAddr::from(([127, 0, 0, 1], service.port_named("admin")));
    assert_eq!(common::who_answers(admin), service.pid());
    assert!(
        service
            .logs()
            .stdout()
            .contains("inherited: 2 web_server:admin\n"),
        "{}",
        service.logs()
    );
    // While the service is stopped, nothing listens. The restart listens on the same ports.
    service
        .stopped(|| assert!(TcpStream::connect(addr).is_err(), "somebody still listens"))
        .unwrap();
    assert_eq!(service.addr(), addr);
    assert_eq!(common::who_answers(addr), service.pid());
    // Only the service holds the sockets, so they are closed when it is killed.
    service.kill().unwrap();
    assert!(TcpStream::connect(addr).is_err(), "somebody still listens");
}

#[test]
fn inherited_sockets_are_in_order_whatever_is_open() {
    // The service gets these sockets as descriptors 3 to 22. In the supervisor, other sockets of
    // the list may have these numbers.
    let mut recipe = Executor::builder("sleep 60");
    for n in 0..20 {
        recipe = recipe.listen_as(format!("n{n}"), format!("127.0.0.1:{{port:n{n}}}"));
    }
    let service = recipe.start().unwrap();
    for n in 0..20 {
        let link = fs::read_link(format!("/proc/{}/fd/{}", service.pid(), 3 + n)).unwrap();
        let inode = link
            .to_str()
            .unwrap()
            .trim_matches(|c: char| !c.is_ascii_digit())
            .to_owned();
        let port = service.port_named(&format!("n{n}"));
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let line = table
            .lines()
            .find(|line| line.split_whitespace().nth(9) == Some(&inode))
            .unwrap();
        assert!(
            line.contains(&format!(":{port:04X} ")),
            "descriptor {} is not of port {port}: {line}",
            3 + n
        );
    }
    let fds = fs::read_dir(format!("/proc/{}/fd", service.pid()))
        .unwrap()
        .flatten();
    let others: Vec<_> = fds
        .map(|fd| (fd.file_name(), fs::read_link(fd.path()).unwrap_or_default()))
        .filter(|(fd, _)| fd.to_str().unwrap().parse::<u32>().unwrap() >= 23)
        .collect();
    assert!(others.is_empty(), "and nothing else: {others:?}");
    for supervisor in common::supervisors(service.pid()) {
        let sockets = fs::read_dir(format!("/proc/{supervisor}/fd")).unwrap().flatten();
        let count = sockets.filter(|fd| {
            fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
        });
        assert!(count.count() <= 1, "a supervisor keeps an inherited socket");
    }
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn an_inherited_fixed_port_is_checked_and_tcp_knows_its_owner() {
    let port = fixed_port();
    let addr = format!("127.0.0.1:{port}");
    let recipe = odd(["--inherited"]).listen(&addr).wait_for(Tcp::addr(&addr));
    let service = recipe.clone().start().unwrap();
    assert_eq!(common::who_answers(&addr), service.pid());
    let error = thread::scope(|scope| scope.spawn(|| start(recipe)).join().unwrap());
    let text = report(&error);
    assert!(
        text.contains(&format!(
            ": port {port} is already in use by mirakuru-odd-service (pid {})\n",
            service.pid()
        )),
        "{text}"
    );
}
