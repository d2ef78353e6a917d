//! Reports, log lines and descriptions show no secret.

// Tests inside a function are called by that function.
#![allow(unnameable_test_items)]

use std::os::unix::net::UnixListener;

use crate::common::{Scratch, odd, test_name, victim, victim_dir};
use crate::reports::{start, timed_out_when};
use mirakuru::{Error, Exec, Executor, ExecutorBuilder, Http, Recipe, Tcp, UnixSocket, UnixSocketExecutor};

/// A service whose socket is at a secret path.
fn server(name: &str) -> ExecutorBuilder<UnixSocket> {
    let path = victim_dir()
        .expect("only the victim calls this")
        .join("{env:MK_SECRET}");
    let path = path.to_str().expect("a path in UTF-8");
    odd(["--unix", path]).wait_for(UnixSocket::path(path)).name(name)
}

/// The message of a panic.
fn panic_of(test: fn()) -> String {
    let payload = std::panic::catch_unwind(test).unwrap_err();
    payload.downcast_ref::<String>().unwrap().clone()
}

/// The errors of services whose socket another service holds.
fn errors_about_a_socket() -> Vec<String> {
    #[mirakuru::fixture(server("one"))]
    #[mirakuru::fixture(server("two"))]
    #[test]
    fn with_two_services(one: UnixSocketExecutor, two: UnixSocketExecutor) {
        let _ = (one, two);
    }

    #[mirakuru::fixture(mirakuru::cluster(2, |_| server("node")))]
    #[test]
    fn with_a_cluster(nodes: mirakuru::Cluster<UnixSocketExecutor>) {
        let _ = nodes;
    }

    #[mirakuru::fixture(server("second"))]
    #[test]
    fn with_one_service(second: UnixSocketExecutor) {
        let _ = second;
    }

    let two = || (server("one"), server("two"));
    let mut texts = vec![
        panic_of(with_two_services),
        panic_of(with_a_cluster),
        mirakuru::start_all(two()).unwrap_err().to_string(),
        mirakuru::cluster(2, |_| server("node"))
            .start()
            .unwrap_err()
            .to_string(),
    ];
    let first = server("first").start().unwrap();
    texts.push(panic_of(with_one_service));
    for queue in [false, true] {
        texts.push(start(server("second").queue(queue)).to_string());
    }
    drop(first);
    let path = victim_dir().expect("the victim's").join("swordfish");
    let _socket = UnixListener::bind(path).unwrap();
    texts.push(start(server("second")).to_string());
    for text in &texts {
        assert!(text.contains("already in use"), "{text}");
    }
    texts
}

#[test]
#[ignore = "a part of another test"]
fn knows_a_secret() {
    if victim_dir().is_none() {
        return;
    }
    // The secrets are in variables of the recipe and of the test's environment, and in URLs. The
    // command, the conditions and their probes use them.
    let recipe = odd([
        "--line",
        "{env:MK_SECRET}x",
        "--line",
        "redis://me:hunter2@localhost/0?token=hunter2",
    ])
    .args(["--line", "hunter2"])
    .env("MK_PASSWORD", "hunter2")
    .env("MK_OTHER", "correct-horse")
    .fail_on("no such line");
    // Waits for a report that shows a probe.
    let was_probed = |error: &Error| error.to_string().contains("\n  last probe: ");
    let texts = [
        timed_out_when(
            &recipe
                .clone()
                .wait_for(Exec::succeeds("test -e /nowhere/{env:MK_SECRET}")),
            was_probed,
        )
        .to_string(),
        timed_out_when(
            &recipe
                .clone()
                .wait_for(Exec::succeeds("sh -c 'echo {env:MK_SECRET}; exit 1'")),
            was_probed,
        )
        .to_string(),
        timed_out_when(
            &recipe.clone().wait_for(UnixSocket::path("{dir}/{env:MK_SECRET}")),
            |_| true,
        )
        .to_string(),
        start(recipe.clone().wait_for(Tcp::addr("{env:MK_SECRET}:80"))).to_string(),
        timed_out_when(
            &recipe
                .clone()
                .wait_for(Http::get("http://me:hunter2@127.0.0.1:{port}/?q={env:MK_SECRET}")),
            was_probed,
        )
        .to_string(),
        start(Executor::builder("/nowhere/{env:MK_SECRET}")).to_string(),
        start(Executor::builder("sleep 1 redis://me:hunter2@x {nonsense}")).to_string(),
        start(Executor::builder("sleep hunter2 {nonsense}").env("MK_PASSWORD", "hunter2")).to_string(),
        start(Executor::builder("sleep 1").current_dir("/nowhere/{env:MK_SECRET}")).to_string(),
        format!(
            "{:?}",
            Executor::builder("sleep {env:MK_SECRET}").build().unwrap()
        ),
    ];
    for text in texts.into_iter().chain(errors_about_a_socket()) {
        println!("{text}\n");
    }
}

#[test]
fn no_report_shows_a_secret() {
    let scratch = Scratch::new();
    let output = victim(test_name!(knows_a_secret), scratch.path())
        .env("MK_SECRET", "swordfish")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let own: Vec<&str> = text
        .lines()
        // Lines of the service's own output are not masked.
        .filter(|line| !line.starts_with("    | "))
        .collect();
    for secret in ["swordfish", "hunter2", "correct-horse"] {
        let told: Vec<_> = own.iter().filter(|line| line.contains(secret)).collect();
        assert!(told.is_empty(), "{told:#?}");
    }
    for shown in [
        "--line {env:MK_SECRET}x",
        "redis://me:***@localhost/0?token=***",
        "--line ***:",
        "\n  last probe: `sh -c 'echo {env:MK_SECRET}; exit 1'` exited with status 1: {env:MK_SECRET}\n",
        "/d/{env:MK_SECRET}\n",
        "failed to execute `/nowhere/{env:MK_SECRET}`",
        "working directory `/nowhere/{env:MK_SECRET}`",
        "sleep 1 redis://me:***@x {nonsense}",
        "invalid command `sleep *** {nonsense}`",
    ] {
        assert!(text.contains(shown), "no `{shown}` in\n{text}");
    }
}
