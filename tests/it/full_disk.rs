//! The log of a service when the disk is full.

use std::process::{Command, Output};

use crate::common::{self, Scratch, is_root, odd, say, skip_without_root, test_name, victim, victim_dir};
use crate::reports::{normal, start};
use mirakuru::{Banner, Executor};

#[test]
#[ignore = "a part of another test"]
fn fills_the_disk() {
    if victim_dir().is_none() {
        return;
    }
    let recipe =
        odd(["--flood-before", "2000000", "--exit-before-ready", "3"]).wait_for(Banner::matching("never"));
    println!("{}", start(recipe));
}

/// The first run limits the size of files, which any user may do. If mounts are allowed, a second
/// run fills up a small file system.
#[test]
fn a_full_disk_loses_output_and_says_so() {
    let scratch = Scratch::new();
    let run = |script: &str| -> Output {
        let victim = victim(test_name!(fills_the_disk), scratch.path());
        let mut command = Command::new("sh");
        command
            .args(["-c", script, "sh"])
            .arg(victim.get_program())
            .args(victim.get_args());
        for (key, value) in victim.get_envs() {
            command.env(key, value.unwrap());
        }
        command.output().unwrap()
    };
    let mut runs = vec![run("ulimit -f 200 && exec \"$@\"")];
    let mounted =
        "exec unshare -m sh -c 'mount -t tmpfs -o size=400k none \"$TMPDIR\" && exec \"$@\"' sh \"$@\"";
    if can_mount() {
        runs.push(run(mounted));
    }
    for output in runs {
        let text = normal(&String::from_utf8_lossy(&output.stdout));
        println!("{text}");
        common::assert_success(&output);
        assert!(
            text.contains(": exited with status 3 after [time], before it printed"),
            "{text}"
        );
        let lost = text.lines().find_map(|line| line.strip_prefix("  lost:       "));
        let lost = lost.unwrap_or_else(|| panic!("nothing about what was lost in\n{text}"));
        assert!(
            lost.ends_with(
                " MB of its output could not be written to the log, and are missing: is the disk full?"
            ),
            "{text}"
        );
    }
}

/// Whether this process may mount a file system that no other process sees. If not, prints a
/// message.
fn can_mount() -> bool {
    if !is_root() {
        skip_without_root();
        return false;
    }
    // In a chroot whose root is not a mount point, not even root may mount.
    let unshare = Command::new("unshare").args(["-m", "true"]).output();
    let may = unshare.is_ok_and(|output| output.status.success());
    if !may {
        say("*** SKIPPED: a disk that is full. No file system can be mounted here (`unshare -m` fails). ***");
    }
    may
}

#[test]
#[ignore = "a part of another test"]
fn has_no_room_at_all() {
    if victim_dir().is_none() {
        return;
    }
    println!("{}", start(Executor::builder("sleep 60")));
}

#[test]
fn a_disk_that_is_full_from_the_beginning() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new();
    let victim = victim(test_name!(has_no_room_at_all), scratch.path());
    let fill = "mount -t tmpfs -o size=16k,nr_inodes=4 none \"$TMPDIR\" && touch \"$TMPDIR/a\" \"$TMPDIR/b\" \
        \"$TMPDIR/c\" && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", fill, "sh"])
        .arg(victim.get_program())
        .args(victim.get_args());
    for (key, value) in victim.get_envs() {
        command.env(key, value.unwrap());
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    common::assert_success(&output);
    assert!(
        text.contains("failed to use the directory `") && text.contains(": no space left on device"),
        "{text}"
    );
    assert!(
        text.contains("\n  hint:       free some space (`df -h` shows the full disk), or set TMPDIR"),
        "{text}"
    );
}
