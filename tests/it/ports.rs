//! Chosen ports never collide, and tests use a fixed port one after another. If another process has
//! the port, the error names that process.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{
    self, LONG, OtherServer, Scratch, alive, error_of, fixed_port, numbers, odd, test_name, victim,
    victim_dir, wait_until, who_answers,
};
use mirakuru::{Error, Executor, ExecutorBuilder, Port, Tcp, TcpExecutor, Udp, UnixSocket};

fn chosen() -> ExecutorBuilder<Tcp> {
    odd(["--listen", "127.0.0.1:{port}"]).wait_for(Tcp::addr("127.0.0.1:{port}"))
}

fn fixed(port: u16) -> ExecutorBuilder<Tcp> {
    odd(["--listen", &format!("127.0.0.1:{port}")]).wait_for(Tcp::port(port))
}

// ---- chosen ports -------------------------------------------------------------------------------

#[test]
fn a_hundred_executors_side_by_side_get_a_hundred_ports() {
    let barrier = Barrier::new(100);
    let up = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| {
                barrier.wait();
                let service = chosen().start().unwrap();
                assert_eq!(who_answers(service.addr()), service.pid());
                up.lock().unwrap_or_else(|e| e.into_inner()).push(service);
            });
        }
    });
    let up = up.into_inner().unwrap_or_else(|e| e.into_inner());
    let ports: HashSet<u16> = up.iter().map(TcpExecutor::port).collect();
    assert_eq!(ports.len(), 100);
}

/// A server that waits a moment, binds a UDP port without any socket option, and answers each
/// datagram with its pid.
fn udp_server(addr: &str) -> ExecutorBuilder<Udp> {
    let script = "
import os, socket, sys, time
host, port = sys.argv[1].rsplit(':', 1)
time.sleep(.02)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((host, int(port)))
while True: s.sendto(str(os.getpid()).encode(), s.recvfrom(10)[1])
";
    Executor::builder(["python3", "-c", script, addr]).wait_for(Udp::addr(addr))
}

fn who_answers_udp(addr: std::net::SocketAddr) -> u32 {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(LONG)).unwrap();
    client.send_to(b"?", addr).unwrap();
    let mut answer = [0; 10];
    let length = client.recv(&mut answer).unwrap();
    std::str::from_utf8(&answer[..length]).unwrap().parse().unwrap()
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a UDP port"
)]
fn a_udp_server_is_ready_when_it_has_bound_its_port() {
    for addr in ["127.0.0.1:{port}", "0.0.0.0:{port}"] {
        let mut service = udp_server(addr).start().unwrap();
        let port = service.port();
        assert_eq!(who_answers_udp(service.addr()), service.pid());
        service.restart().unwrap();
        assert_eq!(service.port(), port);
        assert_eq!(who_answers_udp(service.addr()), service.pid());
        service.stop().unwrap();
    }
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a UDP port"
)]
fn udp_servers_keep_their_ports_beside_many_who_ask_for_any_port() {
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        for address in ["127.0.0.1:0", "0.0.0.0:0"] {
            let stop = &stop;
            scope.spawn(move || {
                let mut held = std::collections::VecDeque::new();
                while !stop.load(Ordering::Relaxed) {
                    held.push_back(UdpSocket::bind(address).unwrap());
                    held.drain(..held.len().saturating_sub(300));
                }
            });
        }
        let started: Vec<_> = (0..10).map(|_| udp_server("127.0.0.1:{port}").start()).collect();
        stop.store(true, Ordering::Relaxed);
        for service in started {
            let service = service.unwrap();
            assert_eq!(who_answers_udp(service.addr()), service.pid());
        }
    });
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a UDP port"
)]
fn a_fixed_udp_port_in_use_names_its_holder() {
    // The port is below the ephemeral range, so no other process's connection uses it for TCP.
    let mut tried = std::iter::from_fn(|| Some(UdpSocket::bind(("127.0.0.1", fixed_port()))));
    let taken = tried.find_map(Result::ok).unwrap();
    let port = taken.local_addr().unwrap().port();
    let addr = format!("127.0.0.1:{port}");
    let error = udp_server(&addr).start().unwrap_err();
    let Error::AlreadyRunning { endpoint, holder, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(*endpoint, format!("UDP port {port}"));
    assert!(
        holder
            .as_ref()
            .unwrap()
            .contains(&format!("(pid {})", std::process::id())),
        "{error}"
    );
    // TCP and UDP ports of the same number are independent.
    let mut tcp = TcpListener::bind(&addr);
    let _ = wait_until(
        || {
            // A child that was just forked may briefly hold the socket with which `fixed_port`
            // tested the port.
            tcp.is_ok() || {
                tcp = TcpListener::bind(&addr);
                false
            }
        },
        LONG,
    );
    let tcp = tcp.unwrap();
    drop(taken);
    let mut started = udp_server(&addr).start();
    let _ = wait_until(
        || {
            // A child that was just forked may briefly hold the socket.
            if started.is_err() {
                started = udp_server(&addr).start();
            }
            started.is_ok()
        },
        LONG,
    );
    started.unwrap().stop().unwrap();
    drop(tcp);
}

#[test]
fn a_port_can_be_chosen_below_50000() {
    let mut service = chosen().low_ports(true).start().unwrap();
    assert!((20_000..50_000).contains(&service.port()), "{}", service.port());
    assert_eq!(who_answers(service.addr()), service.pid());
    service.stop().unwrap();
}

#[test]
fn a_reserved_port_is_for_a_server_in_the_test_itself() {
    let port = Port::reserve().unwrap();
    let addr = port.addr();
    assert_eq!(addr.port(), port.number());
    // No service gets a port that the test has reserved.
    let other = chosen().start().unwrap();
    assert_ne!(other.port(), port.number());
    let listener = port.into_listener();
    TcpStream::connect(addr).unwrap();
    assert_eq!(listener.local_addr().unwrap(), addr);
    let port = Port::reserve().unwrap();
    assert_eq!(port.addr(), port.into_udp_socket().local_addr().unwrap());
}

#[test]
fn test_processes_side_by_side_get_different_ports() {
    let scratch = Scratch::new();
    let dir = scratch.path();
    let mut processes: Vec<_> = (0..4)
        .map(|_| {
            victim(test_name!(takes_twenty_ports), dir)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let file = scratch.file("ports");
    let all = wait_until(|| numbers(&file).len() >= 80, LONG);
    let ports = numbers(&file);
    // All ports were held at the same time. Closing their input lets the processes end.
    for process in &mut processes {
        drop(process.stdin.take());
    }
    for mut process in processes {
        assert!(process.wait().unwrap().success());
    }
    assert!(all, "{} of 80", ports.len());
    assert_eq!(ports.iter().collect::<HashSet<_>>().len(), 80, "{ports:?}");
}

#[test]
#[ignore = "a victim"]
fn takes_twenty_ports() {
    let Some(dir) = victim_dir() else { return };
    let services: Vec<_> = (0..20)
        .map(|_| {
            odd([])
                .arg("{port}")
                .build()
                .map(|service| (service.port(), service))
                .unwrap()
        })
        .collect();
    for (port, _) in &services {
        use std::io::Write;
        let mut file = fs::File::options()
            .create(true)
            .append(true)
            .open(dir.join("ports"))
            .unwrap();
        file.write_all(format!("{port}\n").as_bytes()).unwrap();
    }
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn a_port_is_kept_while_the_service_is_stopped() {
    let mut service = chosen().start().unwrap();
    let port = service.port();
    service.stop().unwrap();
    let others: Vec<_> = (0..50).map(|_| chosen().build().unwrap().port()).collect();
    assert!(!others.contains(&port), "{port} was given away");
    service.start().unwrap();
    assert_eq!(service.port(), port);
}

#[test]
fn a_service_without_reuseaddr_gets_a_port_as_well() {
    // Without SO_REUSEADDR, the service could not bind a port that a reservation still holds.
    for _ in 0..5 {
        let mut service = odd(["--no-reuseaddr", "--listen", "127.0.0.1:{port}"])
            .wait_for(Tcp::addr("127.0.0.1:{port}"))
            .start()
            .unwrap();
        assert_eq!(who_answers(service.addr()), service.pid());
        service.stop().unwrap();
    }
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn a_chosen_port_that_was_taken_in_between_is_replaced() {
    let scratch = Scratch::new();
    let pids = scratch.file("pids");
    let taken = thread::scope(|scope| {
        let thief = scope.spawn(|| {
            // The service's command line contains its port, which the service binds only after 300
            // ms.
            assert!(wait_until(|| !numbers(&pids).is_empty(), LONG));
            let line = fs::read(format!("/proc/{}/cmdline", numbers(&pids)[0])).unwrap();
            let line = String::from_utf8(line).unwrap();
            let address = line
                .split('\0')
                .find(|word| word.starts_with("127.0.0.1:"))
                .unwrap()
                .to_owned();
            TcpListener::bind(address).unwrap()
        });
        let service = odd(["--pids", &pids, "--delay", "300", "--listen", "127.0.0.1:{port}"])
            .wait_for(Tcp::addr("127.0.0.1:{port}"))
            .start()
            .unwrap();
        let stolen = thief.join().unwrap();
        assert_ne!(service.port(), stolen.local_addr().unwrap().port());
        assert_eq!(who_answers(service.addr()), service.pid());
        stolen
    });
    drop(taken);
    assert!(numbers(&pids).len() >= 2, "it was started again");
    assert!(numbers(&pids).into_iter().all(|pid| !alive(pid)));
}

/// Leaves a connection in TIME_WAIT on the service's port, because the stopped service closes its
/// side first.
fn linger(service: &mut TcpExecutor) {
    let mut clients: Vec<TcpStream> = (0..3)
        .map(|_| TcpStream::connect(service.addr()).unwrap())
        .collect();
    for client in &mut clients {
        client.write_all(b"PING\n").unwrap();
        assert_ne!(client.read(&mut [0; 64]).unwrap(), 0);
    }
    service.stop().unwrap();
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see closed connections that linger"
)]
fn a_restart_keeps_its_port_although_closed_connections_linger() {
    let mut service = odd(["--no-reuseaddr", "--listen", "127.0.0.1:{port}"])
        .wait_for(Tcp::addr("127.0.0.1:{port}"))
        .start()
        .unwrap();
    let address = service.addr();
    for _ in 0..5 {
        linger(&mut service);
        service.start().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(service.addr(), address);
        assert_eq!(who_answers(address), service.pid());
    }
    // A fixed port is freed like a chosen one.
    let port = fixed_port();
    let mut service = odd(["--no-reuseaddr", "--listen", &format!("127.0.0.1:{port}")])
        .wait_for(Tcp::port(port))
        .start()
        .unwrap();
    for _ in 0..5 {
        linger(&mut service);
        service.start().unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn a_restart_whose_port_cannot_be_had_says_why() {
    let mut service = odd(["--no-reuseaddr", "--listen", "127.0.0.1:{port}"])
        .wait_for(Tcp::addr("127.0.0.1:{port}"))
        .start()
        .unwrap();
    let address = service.addr();
    // The client keeps its end of the connection open.
    let client = TcpStream::connect(address).unwrap();
    assert_eq!(who_answers(address), service.pid());
    let error = error_of(service.restart()).to_string();
    assert_eq!(service.addr(), address);
    assert!(
        error.contains("TIME_WAIT") && error.contains("SO_REUSEADDR"),
        "{error}"
    );
    drop(client);
    service.start().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(service.addr(), address);

    service.stop().unwrap();
    let other = OtherServer::start(&["--listen", &address.to_string()]);
    let error = error_of(service.start());
    assert_already_running(&error, address.port(), other.pid());
    assert!(error.to_string().contains("a restart keeps the port"), "{error}");
}

#[test]
fn a_service_that_exits_during_its_restart_is_an_error_on_the_same_port() {
    let scratch = Scratch::new();
    let broken = scratch.file("broken");
    let script = format!(
        "test -e {broken} && echo 'bind: Address already in use' && exit 1
        exec {odd} --listen 127.0.0.1:$PORT",
        odd = common::ODD
    );
    let mut service = Executor::builder(script)
        .shell(true)
        .env("PORT", "{port}")
        .wait_for(Tcp::addr("127.0.0.1:{port}"))
        .start()
        .unwrap();
    let address = service.addr();
    fs::write(&broken, "").unwrap();
    let error = error_of(service.restart());
    assert!(matches!(error, Error::Exited { .. }), "{error}");
    assert!(error.to_string().contains("Address already in use"), "{error}");
    assert_eq!(service.addr(), address);
    fs::remove_file(&broken).unwrap();
    service.start().unwrap();
    assert_eq!(service.addr(), address);
}

#[test]
fn output_that_speaks_of_something_in_use_starts_nothing_again() {
    let scratch = Scratch::new();
    let starts = scratch.file("starts");
    let script = format!(
        "echo start >> {starts}; echo 'FATAL: the database may be already in use: a.db is locked'; exit 1"
    );
    let error = error_of(
        Executor::builder(script)
            .shell(true)
            .wait_for(Tcp::addr("127.0.0.1:{port}"))
            .start(),
    );
    assert!(matches!(error, Error::Exited { .. }), "{error}");
    assert!(!error.to_string().contains("the port"), "{error}");
    assert_eq!(fs::read_to_string(&starts).unwrap().lines().count(), 1);
}

// ---- ports that somebody has --------------------------------------------------------------------

/// Fails unless the error names the port and the process.
#[track_caller]
fn assert_already_running(error: &Error, port: u16, pid: u32) {
    let Error::AlreadyRunning { holder, endpoint, .. } = error else {
        panic!("{error}");
    };
    assert!(endpoint.contains(&port.to_string()), "{endpoint}");
    let holder = holder.as_deref().expect("a holder");
    assert!(common::names_pid(holder, pid), "{holder}, and not pid {pid}");
    let text = error.to_string();
    assert!(
        text.contains(&format!("port {port} is already in use by {holder}")),
        "{text}"
    );
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn a_fixed_port_of_another_executor_is_refused_and_the_holder_named() {
    let port = fixed_port();
    let mut first = fixed(port).start().unwrap();
    let scratch = Scratch::new();
    let pids = scratch.file("pids");
    let second = odd(["--pids", &pids, "--listen", &format!("127.0.0.1:{port}")]).wait_for(Tcp::port(port));
    let begin = Instant::now();
    let error = error_of(second.clone().start());
    assert!(begin.elapsed() < LONG, "it waited");
    assert_already_running(&error, port, first.pid());
    assert!(error.to_string().contains("mirakuru-odd"), "{error}");
    assert_eq!(numbers(&pids), [0; 0], "the second one was executed");
    assert_eq!(
        who_answers(first.addr()),
        first.pid(),
        "the first one is untouched"
    );

    first.stop().unwrap();
    let mut second = second.start().unwrap();
    second.stop().unwrap();
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn another_server_on_the_port_is_refused_whatever_it_does_there() {
    // `--bind-only` with SO_REUSEADDR is not tested. Such a socket disturbs only services without
    // SO_REUSEADDR, and mirakuru cannot know what a service will set.
    let ways: [&[&str]; 4] = [
        &["--listen"],
        &["--no-reuseaddr", "--listen"],
        &["--no-reuseaddr", "--bind-only"],
        &["--accept-never-answer"],
    ];
    for how in ways {
        let port = fixed_port();
        let other = OtherServer::start(&[how, &[&format!("127.0.0.1:{port}")]].concat());
        // `queue` waits only for services of mirakuru. If another server has the port, the start
        // fails immediately.
        for queue in [false, true] {
            let error = error_of(fixed(port).queue(queue).start());
            assert_already_running(&error, port, other.pid());
        }
    }
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn another_server_on_every_address_is_refused_too() {
    let port = fixed_port();
    let other = OtherServer::start(&["--listen", &format!("0.0.0.0:{port}")]);
    assert_already_running(&error_of(fixed(port).start()), port, other.pid());
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn a_listener_of_the_test_itself_is_another_server_too() {
    // The kernel gives this port to no client, so it stays free once the listener is closed.
    let port = fixed_port();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    assert_already_running(&error_of(fixed(port).start()), port, std::process::id());
    drop(listener);
    fixed(port).start().unwrap().stop().unwrap();
}

#[test]
fn a_port_full_of_closed_connections_is_free() {
    // A server with SO_REUSEADDR can bind a port with connections in TIME_WAIT.
    let port = fixed_port();
    for _ in 0..3 {
        let mut service = fixed(port).start().unwrap();
        for _ in 0..20 {
            who_answers(service.addr());
        }
        service.stop().unwrap();
    }
}

// ---- locks --------------------------------------------------------------------------------------

#[test]
fn forty_threads_share_a_fixed_port_one_after_another() {
    let port = fixed_port();
    let inside = AtomicUsize::new(0);
    let most = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| {
                let mut service = fixed(port).queue(true).start().unwrap();
                let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                assert_eq!(who_answers(service.addr()), service.pid());
                inside.fetch_sub(1, Ordering::SeqCst);
                service.stop().unwrap();
            });
        }
    });
    assert_eq!(most.into_inner(), 1);
}

#[test]
fn a_wait_for_the_port_does_not_count_towards_the_timeout() {
    let port = fixed_port();
    let mut first = fixed(port).start().unwrap();
    thread::scope(|scope| {
        let second = scope.spawn(|| fixed(port).queue(true).timeout(Duration::from_secs(4)).start());
        // The wait is longer than the second start's timeout of 4 s.
        thread::sleep(Duration::from_millis(4500));
        first.stop().unwrap();
        drop(second.join().unwrap().unwrap());
    });
}

#[test]
fn test_processes_share_a_fixed_port_one_after_another() {
    let scratch = Scratch::new();
    let port = fixed_port();
    fs::write(scratch.file("port"), port.to_string()).unwrap();
    let processes: Vec<_> = (0..6)
        .map(|_| {
            victim(test_name!(uses_the_port_five_times), scratch.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for process in processes {
        let output = process.wait_with_output().unwrap();
        common::assert_success(&output);
    }
}

#[test]
#[ignore = "a victim"]
fn uses_the_port_five_times() {
    let Some(dir) = victim_dir() else { return };
    let port = numbers(dir.join("port").to_str().unwrap())[0] as u16;
    for _ in 0..5 {
        let mut service = fixed(port).queue(true).start().unwrap();
        assert_eq!(who_answers(service.addr()), service.pid());
        service.stop().unwrap();
    }
}

#[test]
fn a_killed_test_process_gives_its_port_back() {
    let scratch = Scratch::new();
    let port = fixed_port();
    fs::write(scratch.file("port"), port.to_string()).unwrap();
    let mut holder = victim(test_name!(holds_the_port), scratch.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    assert!(wait_until(
        || TcpStream::connect(("127.0.0.1", port)).is_ok(),
        LONG
    ));
    thread::scope(|scope| {
        let next = scope.spawn(|| fixed(port).queue(true).start());
        // The next start is probably waiting by now. If not, it still gets the port.
        thread::sleep(Duration::from_millis(50));
        holder.kill().unwrap();
        holder.wait().unwrap();
        let service = next.join().unwrap().unwrap();
        assert_eq!(who_answers(service.addr()), service.pid());
    });
}

#[test]
#[ignore = "a victim"]
fn holds_the_port() {
    let Some(dir) = victim_dir() else { return };
    let port = numbers(dir.join("port").to_str().unwrap())[0] as u16;
    let _service = fixed(port).start().unwrap();
    // The test that started this process kills it.
    thread::sleep(2 * LONG);
}

#[test]
fn services_on_the_same_socket_path_wait_for_each_other_as_well() {
    let scratch = Scratch::new();
    let path = scratch.file("socket");
    let recipe = odd(["--unix", &path]).wait_for(UnixSocket::path(path.as_str()));
    let mut first = recipe.clone().start().unwrap();
    let error = error_of(recipe.clone().start());
    assert!(matches!(error, Error::AlreadyRunning { .. }), "{error}");
    assert!(error.to_string().contains(&path), "{error}");
    thread::scope(|scope| {
        let second = scope.spawn(|| recipe.clone().queue(true).start());
        // The second start is probably waiting by now. If not, it still gets the path.
        thread::sleep(Duration::from_millis(50));
        first.stop().unwrap();
        drop(second.join().unwrap().unwrap());
    });
}
