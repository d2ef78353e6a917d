//! Reports, log lines and descriptions show no secret.

use crate::common::{Scratch, odd, test_name, victim, victim_dir};
use crate::reports::{start, timed_out_when};
use mirakuru::{Error, Exec, Executor, Http, Tcp, UnixSocket};

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
        start(Executor::builder("sleep 1").current_dir("/nowhere/{env:MK_SECRET}")).to_string(),
        format!(
            "{:?}",
            Executor::builder("sleep {env:MK_SECRET}").build().unwrap()
        ),
    ];
    for text in texts {
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
    ] {
        assert!(text.contains(shown), "no `{shown}` in\n{text}");
    }
}
