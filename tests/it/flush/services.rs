//! A database, and an application that writes into it when it gets the stop signal. Tests use them,
//! and so does a program that is built with `panic = "abort"`.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};

use mirakuru::{Executor, ExecutorBuilder, Tcp, TcpExecutor};

/// The environment variable that tells a victim how to end.
pub(crate) const DEATH: &str = "MIRAKURU_FLUSH_DEATH";
/// The environment variable that names the database's file. The application writes an error there
/// if it cannot reach the database.
pub(crate) const KEPT: &str = "MIRAKURU_FLUSH_KEPT";

/// A database that appends its input to a file.
const DATABASE: &str = r#"
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    client = server.accept()[0]
    text = client.recv(100)
    if text:
        open(sys.argv[2], "ab").write(text)
        client.sendall(b"kept")
    client.close()
"#;

/// An application that stops slowly, and then sends a line to its database.
const APPLICATION: &str = r#"
import os, signal, socket, sys, time
def flush(*_):
    time.sleep(.05)
    try:
        database = socket.create_connection(("127.0.0.1", int(sys.argv[2])), 5)
        database.sendall(b"flushed")
        assert database.recv(10) == b"kept"
    except Exception as error:
        open(sys.argv[3], "w").write("LOST: %r" % error)
    os._exit(0)
signal.signal(signal.SIGTERM, flush)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    time.sleep(1)
"#;

fn python(script: &str) -> ExecutorBuilder<Tcp> {
    Executor::builder(["python3", "-ISc", script, "{port}"])
        .timeout(std::time::Duration::from_secs(60))
        .wait_for(Tcp::addr("127.0.0.1:{port}"))
}

fn kept() -> PathBuf {
    env::var_os(KEPT).expect("only in victims").into()
}

pub(crate) fn database() -> ExecutorBuilder<Tcp> {
    database_in(&kept())
}

pub(crate) fn application(database: &TcpExecutor) -> ExecutorBuilder<Tcp> {
    application_of(database, &kept())
}

pub(crate) fn database_in(kept: &Path) -> ExecutorBuilder<Tcp> {
    python(DATABASE).arg(kept)
}

pub(crate) fn application_of(database: &TcpExecutor, kept: &Path) -> ExecutorBuilder<Tcp> {
    python(APPLICATION).arg(database.port().to_string()).arg(kept)
}

/// Reports that the services are up, and waits for the end of the input.
pub(crate) fn say_and_wait() {
    println!("\nup {}", std::process::id());
    std::io::stdout().flush().expect("a reader");
    let _ = std::io::stdin().read_line(&mut String::new());
}
