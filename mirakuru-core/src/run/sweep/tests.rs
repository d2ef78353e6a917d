use std::collections::HashSet;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::Stdio;
use std::time::Instant;

use super::*;
use crate::service_dir::tests::{Temp, orphan, refused, set_age};
use crate::service_dir::{ServiceDir, this_process};
use crate::util::own_process::{process_of, test_name};

/// Sweeps until it finds something, because processes that other tests have just forked hold copies
/// of all locks.
fn sweep_one(temp: &Temp) -> Stale {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let mut stale = sweep_in(&temp.base());
        match stale.pop() {
            Some(one) => {
                assert!(stale.is_empty());
                return one;
            }
            None => assert!(Instant::now() < until, "nothing to sweep"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_kept_log_is_all_that_stays() {
    let temp = Temp::new();
    let service_dir = temp.service_dir();
    let (log, dir) = (service_dir.log(), service_dir.dir().to_owned());
    fs::write(&log, "why").unwrap();
    service_dir.keep();
    drop(service_dir);
    assert_eq!(fs::read_to_string(&log).unwrap(), "why");
    assert!(!dir.exists());
    assert_eq!(sweep_in(&temp.base()).len(), 0);
    assert!(log.exists(), "a sweep removed it at once");
    assert_eq!(sweep_in(&temp.base()).len(), 0);
    assert!(log.exists(), "a sweep that knew it removed it");
    set_age(
        &temp.base().join("kept-logs"),
        CHECK_EVERY + Duration::from_secs(60),
    );
    set_age(&log.with_file_name("kept"), KEPT_FOR + Duration::from_secs(60));
    assert_eq!(sweep_in(&temp.base()).len(), 0);
    assert_eq!(temp.names(), [""; 0]);
}

#[test]
fn of_many_kept_logs_the_newest_stay() {
    let temp = Temp::new();
    let logs: Vec<PathBuf> = (0..MANY_KEPT + 5)
        .map(|number| {
            let service_dir = temp.service_dir();
            let log = service_dir.log();
            fs::write(&log, "why").unwrap();
            service_dir.keep();
            drop(service_dir);
            // The first three logs are older than an hour.
            let old = MANY_KEPT_FOR + Duration::from_secs(60);
            let age = if number < 3 { old } else { Duration::ZERO };
            set_age(&log.with_file_name("kept"), age);
            log
        })
        .collect();
    assert_eq!(sweep_in(&temp.base()).len(), 0);
    let left: Vec<bool> = logs.iter().map(|log| log.exists()).collect();
    assert_eq!(left.iter().filter(|left| **left).count(), MANY_KEPT + 2);
    assert!(left[..3].iter().all(|left| !left), "the old ones go");
}

#[test]
fn kept_logs_are_bounded_in_size() {
    let temp = Temp::new();
    let log_of = |size: u64, age: u64| {
        let service_dir = temp.service_dir();
        let log = service_dir.log();
        // A sparse file takes no space on the disk.
        File::create(&log).unwrap().set_len(size).unwrap();
        service_dir.keep();
        drop(service_dir);
        set_age(&log.with_file_name("kept"), Duration::from_secs(age));
        log
    };
    let (newest, middle, oldest) = (log_of(10, 0), log_of(MOST_BYTES - 20, 60), log_of(20, 120));
    assert_eq!(sweep_in(&temp.base()).len(), 0);
    assert!(newest.exists() && middle.exists() && !oldest.exists());
    // If one log alone exceeds the limit, all others are removed.
    let large = log_of(MOST_BYTES + 1, 0);
    set_age(
        &temp.base().join("kept-logs"),
        CHECK_EVERY + Duration::from_secs(60),
    );
    set_age(&newest.with_file_name("kept"), Duration::from_secs(30));
    assert_eq!(sweep_in(&temp.base()).len(), 0);
    assert!(large.exists() && !newest.exists());
}

#[test]
fn a_base_that_is_not_safe_is_refused() {
    let temp = Temp::new();
    let target = temp.0.join("target");
    fs::create_dir(&target).unwrap();
    let base = temp.base();
    symlink(&target, &base).unwrap();
    assert!(refused(&base).contains("symbolic link"));
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "the link was followed");
    assert_eq!(sweep_in(&base).len(), 0);
    fs::remove_file(&base).unwrap();

    fs::write(&base, "").unwrap();
    assert!(refused(&base).contains("not a directory"));
    fs::remove_file(&base).unwrap();

    fs::create_dir(&base).unwrap();
    for unsafe_mode in [0o777, 0o720, 0o702] {
        fs::set_permissions(&base, fs::Permissions::from_mode(unsafe_mode)).unwrap();
        let refusal = refused(&base);
        assert!(refusal.contains(&format!("mode {unsafe_mode:04o}")), "{refusal}");
    }
    fs::set_permissions(&base, fs::Permissions::from_mode(0o711)).unwrap();
    ServiceDir::create_in(&base, None).unwrap();

    assert!(refused(&temp.0.join("missing/base")).contains("TMPDIR"));
    if sys::files::euid() == 0 {
        chown(&base, Some(12345), None).unwrap();
        assert!(refused(&base).contains("user 12345"));
    }
}

#[test]
fn a_living_process_s_homes_are_not_swept() {
    let temp = Temp::new();
    let service_dir = temp.service_dir();
    assert_eq!(sweep_in(&temp.base()).len(), 0);
    assert!(service_dir.dir().exists());
}

#[test]
fn a_dead_process_s_home_is_reported_then_removed() {
    let temp = Temp::new();
    let service_dir = temp.service_dir();
    fs::write(service_dir.dir().join("data"), "").unwrap();
    let (id, path) = orphan(service_dir);
    let stale = sweep_one(&temp);
    assert_eq!(stale.id(), id);
    assert!(path.exists(), "it is there until its processes have been killed");
    assert_eq!(sweep_in(&temp.base()).len(), 0, "one sweeper at a time");
    drop(stale);
    assert_eq!(temp.names(), [""; 0]);
}

#[test]
fn a_dead_process_s_home_stays_while_the_supervisor_has_its_lock() {
    let temp = Temp::new();
    let service_dir = temp.service_dir();
    let lock = service_dir.lock_fd().unwrap();
    let (_, path) = orphan(service_dir);
    assert_eq!(sweep_in(&temp.base()).len(), 0);
    assert!(path.exists());
    drop(lock);
    drop(sweep_one(&temp));
    assert!(!path.exists());
}

#[test]
fn a_log_that_was_to_be_kept_survives_the_death_of_its_process() {
    let temp = Temp::new();
    let service_dir = temp.service_dir();
    let log = service_dir.log();
    fs::write(&log, "why").unwrap();
    service_dir.keep();
    let (id, path) = orphan(service_dir);
    let stale = sweep_one(&temp);
    assert_eq!(stale.id(), id);
    drop(stale);
    assert!(log.exists());
    assert!(!path.join("d").exists());
    assert_eq!(sweep_in(&temp.base()).len(), 0, "it is reported once");
}

#[test]
fn debris_is_removed_and_what_is_not_ours_is_left() {
    let temp = Temp::new();
    drop(temp.service_dir());
    let make = |name: &str| fs::create_dir(temp.base().join(name)).unwrap();
    let (pid, started) = this_process();
    let alive = format!("new-{pid}-{started}-1-a");
    // Two directories belong to another pid namespace, and the next one to ours.
    let (dead_new, dead_old) = ("new-4194305-1-1-a", "new-4194305-1-1-b");
    let dead_here = format!("new-4194305-1-{}-c", sys::procfs::pid_namespace());
    let leftovers = ["abcdefghijkl", dead_old, &dead_here];
    let others = ["ABCDEFGHIJKL", "locks", "new-x", dead_new, alive.as_str()];
    for name in leftovers.iter().chain(&others) {
        make(name);
    }
    set_age(&temp.base().join(dead_old), ABANDONED_AFTER * 2);
    set_age(&temp.base().join(&alive), ABANDONED_AFTER * 2);
    assert_eq!(sweep_in(&temp.base()).len(), 0);
    let left: HashSet<String> = temp.names().into_iter().collect();
    assert_eq!(left, others.map(str::to_owned).into());
}

const BASE: &str = "MIRAKURU_TEST_BASE";

/// One process of the race: creates service directories, checks them while other processes sweep,
/// and sweeps itself. Leaves one service directory whose creator is dead.
#[test]
#[ignore = "a part of the race"]
fn racer() {
    let base = PathBuf::from(std::env::var_os(BASE).unwrap());
    let mut stale = HashSet::new();
    for _ in 0..10 {
        let service_dirs: Vec<ServiceDir> = (0..3)
            .map(|_| ServiceDir::create_in(&base, None).unwrap())
            .collect();
        for service_dir in &service_dirs {
            fs::write(service_dir.log(), service_dir.id()).unwrap();
            fs::write(service_dir.dir().join("x"), service_dir.id()).unwrap();
        }
        stale.extend(sweep_in(&base).iter().map(|stale| stale.id().to_owned()));
        for service_dir in &service_dirs {
            assert_eq!(fs::read_to_string(service_dir.log()).unwrap(), service_dir.id());
            assert_eq!(
                fs::read_to_string(service_dir.dir().join("x")).unwrap(),
                service_dir.id()
            );
        }
    }
    let left = ServiceDir::create_in(&base, None).unwrap();
    println!("\nleft {}", left.id());
    for id in stale {
        println!("stale {id}");
    }
    std::mem::forget(left);
}

#[test]
fn processes_that_create_and_sweep_side_by_side_do_each_other_no_harm() {
    const PROCESSES: usize = 80;
    let temp = Temp::new();
    let racers: Vec<_> = (0..PROCESSES)
        .map(|_| {
            process_of(test_name!(racer))
                .env(BASE, temp.base())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let (mut left, mut stale) = (HashSet::new(), Vec::new());
    for racer in racers {
        let output = racer.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            if let Some(id) = line.strip_prefix("left ") {
                left.insert(id.to_owned());
            } else if let Some(id) = line.strip_prefix("stale ") {
                stale.push(id.to_owned());
            }
        }
    }
    assert_eq!(left.len(), PROCESSES);
    stale.extend(sweep_in(&temp.base()).iter().map(|stale| stale.id().to_owned()));
    assert_eq!(temp.names(), [""; 0]);
    let reported: HashSet<String> = stale.iter().cloned().collect();
    assert_eq!(
        reported, left,
        "each directory that was left is reported, and no other"
    );
    assert_eq!(reported.len(), stale.len(), "and once");
}
