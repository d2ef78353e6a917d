//! A test that is still running when its runner is interrupted.

use std::time::Duration;
use std::{env, fs, thread};

use mirakuru::TcpExecutor;

/// Every run has its own service, although its name and command are always the same.
#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "{env:RUNNERS_SERVICE} --listen 127.0.0.1:{port}")]
static SHARED: TcpExecutor;

#[mirakuru::fixture(
    tcp = "127.0.0.1:{port}",
    cmd = "{env:RUNNERS_SERVICE} --listen 127.0.0.1:{port} --pids {env:RUNNERS_DIR}/pids --fork 2 \
        --deaf-daemons 1",
    stop_timeout = Duration::from_millis(150),
)]
#[test]
fn endless(own: &TcpExecutor) {
    let dir = env::var("RUNNERS_DIR").unwrap();
    let up = format!("{}\n{}\n", own.pid(), SHARED.pid());
    fs::write(format!("{dir}/half"), up).unwrap();
    fs::rename(format!("{dir}/half"), format!("{dir}/up")).unwrap();
    for _ in 0..1200 {
        assert!(own.is_running() && SHARED.is_running());
        if fs::metadata(format!("{dir}/end")).is_ok() {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("nobody has ended this");
}
