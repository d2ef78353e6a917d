//! A service in a podman container. Its processes belong to the service's tree, and its `on_end`
//! command removes the container. `at_the_end` tests a client of a daemon such as Docker.
//!
//! If podman is missing or cannot run a container, each test prints that and does nothing.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use mirakuru::{Executor, ExecutorBuilder, Tcp, TcpExecutor};

use crate::common::{
    LONG, ODD, SIGKILL, Scratch, descendants, find, random, say, send, stat, test_name, victim, victim_dir,
    wait_until,
};

const IMAGE: &str = "mirakuru-odd-service";

/// Podman with separate storage, so that the user's own containers and images stay untouched.
struct Podman {
    dir: PathBuf,
}

impl Podman {
    /// Imports an image of the helper service. Returns `None` if podman cannot run it.
    fn usable(dir: &Path) -> Option<Podman> {
        let test = thread::current().name().unwrap_or("a test").to_owned();
        let skip = |reason: &str| say(&format!("\n*** {test}: SKIPPED, {reason} ***\n"));
        if find("podman").is_none() {
            skip("podman is not installed");
            return None;
        }
        let podman = Podman::at(dir);
        let image = dir.join("image");
        let libraries = Command::new("ldd").arg(ODD).output().expect("ldd");
        let libraries = String::from_utf8_lossy(&libraries.stdout).into_owned();
        let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
        for file in libraries.chain([ODD]) {
            let to = image.join(file.trim_start_matches('/'));
            fs::create_dir_all(to.parent().expect("a directory")).expect("a writable directory");
            fs::copy(file, to).expect("a copy");
        }
        for empty in ["dev", "proc", "sys", "tmp", "etc", "run"] {
            fs::create_dir_all(image.join(empty)).expect("a writable directory");
        }
        let tar = dir.join("image.tar");
        let packed = Command::new("tar")
            .arg("-C")
            .arg(&image)
            .arg("-cf")
            .arg(&tar)
            .arg(".")
            .status();
        assert!(packed.expect("tar").success());
        let mut said = String::new();
        // If one runtime cannot use this machine's control groups, tries the next.
        for runtime in ["", "crun", "runc"] {
            let engine = match runtime {
                "" => String::new(),
                _ => format!("[engine]\nruntime = \"{runtime}\"\n"),
            };
            // podman raises these limits by default, which root in a container may not do.
            let limits = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1000:1000\"]\n";
            fs::write(dir.join("containers.conf"), limits.to_owned() + &engine).expect("a file");
            let imported = podman.run(&["import", tar.to_str().expect("UTF-8"), IMAGE]);
            said += &String::from_utf8_lossy(&imported.stderr);
            let tried = podman.run(&[
                "run",
                "--rm",
                "--network=host",
                "--init",
                "--pull=never",
                IMAGE,
                ODD,
                "--help",
            ]);
            if tried.status.success() {
                return Some(podman);
            }
            said += &String::from_utf8_lossy(&tried.stderr);
        }
        skip(&format!("podman cannot make a container here: {said}"));
        None
    }

    fn at(dir: &Path) -> Podman {
        Podman { dir: dir.to_owned() }
    }

    fn words(&self) -> Vec<String> {
        let dir = self.dir.display();
        let options = [
            "podman".to_owned(),
            format!("--root={dir}/root"),
            format!("--runroot={dir}/runroot"),
        ];
        options.into()
    }

    fn run(&self, args: &[&str]) -> Output {
        let words = self.words();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(args);
        command.env("CONTAINERS_CONF", self.dir.join("containers.conf"));
        command.output().expect("podman")
    }

    /// The recipe that the guide shows.
    fn service(&self) -> ExecutorBuilder<Tcp> {
        let on_end = ["rm", "-f", "-i", "-t", "0", "mk-{id}"].map(str::to_owned);
        Executor::builder(self.words())
            .args([
                "run",
                "--rm",
                "--name=mk-{id}",
                "--network=host",
                "--init",
                "--pull=never",
                "--sig-proxy=false",
            ])
            .args([IMAGE, ODD, "--listen", "127.0.0.1:{port}"])
            .env("CONTAINERS_CONF", self.dir.join("containers.conf"))
            .expected_exit(143)
            .on_end([self.words(), on_end.into()].concat())
            .wait_for(Tcp::addr("127.0.0.1:{port}"))
            .timeout(LONG)
    }

    /// The names of all containers, including those that have ended.
    fn records(&self) -> String {
        let listed = self.run(&["ps", "--all", "--format={{.Names}} {{.Status}}"]);
        assert!(listed.status.success(), "{listed:?}");
        String::from_utf8_lossy(&listed.stdout).into_owned()
    }

    fn mounts(&self) -> Vec<String> {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let dir = self.dir.to_str().expect("UTF-8");
        // Podman also mounts its own storage, which does not belong to a container.
        let is_container = |line: &&str| line.contains(dir) && line.contains("/merged");
        mounts.lines().filter(is_container).map(str::to_owned).collect()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if victim_dir().is_none() {
            // `system reset` would also remove `/run/libpod`, which other podman processes use.
            let _ = self.run(&["rm", "--all", "--force", "--time=0"]);
            let _ = Command::new("umount").arg(self.dir.join("root/overlay")).output();
        }
    }
}

#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end does not find processes that leave the process group"
)]
#[test]
fn a_container_of_podman_starts_stops_and_restarts_like_a_program() {
    let scratch = Scratch::new();
    let Some(podman) = Podman::usable(scratch.path()) else {
        return;
    };
    let mut service: TcpExecutor = podman.service().start().unwrap();
    assert!(podman.records().starts_with("mk-"), "{}", podman.records());
    let address = service.addr();
    service.restart().unwrap();
    assert_eq!(service.addr(), address);
    service.stop().unwrap();
    assert_eq!(podman.records(), "");
    service.start().unwrap();
    service.kill().unwrap();
    assert_eq!((podman.records(), podman.mounts()), (String::new(), Vec::new()));
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
#[ignore = "a victim"]
fn has_a_container() {
    let Some(dir) = victim_dir() else { return };
    loop {
        say_up();
        drop(Podman::at(&dir).service().start());
    }
}

fn say_up() {
    use std::io::Write;
    println!("\nup now");
    std::io::stdout().flush().expect("a reader");
}

/// Kills the test process at random moments. `MIRAKURU_KILL_ROUNDS` sets the number of rounds.
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end does not find processes that leave the process group"
)]
#[test]
fn a_test_that_is_killed_at_any_moment_leaves_no_container() {
    let rounds: u32 = std::env::var("MIRAKURU_KILL_ROUNDS").map_or(2, |n| n.parse().expect("a number"));
    let scratch = Scratch::new();
    let Some(podman) = Podman::usable(scratch.path()) else {
        return;
    };
    for round in 0..rounds {
        let mut command = victim(test_name!(has_a_container), scratch.path());
        let mut child = crate::at_the_end::start(&mut command);
        // A random pause, so that the kill may hit any moment of the test.
        thread::sleep(Duration::from_micros(random() % 2_500_000));
        let tree = descendants(child.id());
        send(child.id(), SIGKILL);
        child.wait().expect("it ends");
        let is_gone = |pid: &u32| stat(*pid).is_none_or(|(state, _)| state == 'Z');
        assert!(
            wait_until(|| tree.iter().all(is_gone), LONG),
            "round {round}: a process is left"
        );
        assert_eq!(
            (podman.records(), podman.mounts()),
            (String::new(), Vec::new()),
            "round {round}"
        );
    }
}
