//! Tests of the directories. The sweep's tests use the helpers as well.

use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use super::base::ROOM_BELOW_BASE;
use super::*;

/// A temporary directory for one test.
pub(crate) struct Temp(pub(crate) PathBuf);

impl Temp {
    pub(crate) fn new() -> Temp {
        let path = std::env::temp_dir().join(format!("mirakuru-test-{}", random_id().unwrap()));
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        Temp(path)
    }
    pub(crate) fn base(&self) -> PathBuf {
        self.0.join("base")
    }
    pub(crate) fn service_dir(&self) -> ServiceDir {
        ServiceDir::create_in(&self.base(), None).unwrap()
    }
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.base())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        remove_tree(&self.0);
    }
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o7777
}

pub(crate) fn set_age(path: &Path, age: Duration) {
    let then = SystemTime::now() - age;
    File::open(path).unwrap().set_modified(then).unwrap();
}

/// The error with which `create_in` refuses an unsafe base.
pub(crate) fn refused(base: &Path) -> String {
    match ServiceDir::create_in(base, None).unwrap_err() {
        Error::System { source, .. } => source.to_string(),
        _ => panic!("another error"),
    }
}

/// Makes a service directory look as if its creator had been killed: no process holds the lock.
pub(crate) fn orphan(service_dir: ServiceDir) -> (String, PathBuf) {
    let (id, path) = (service_dir.id.clone(), service_dir.path.clone());
    let mut service_dir = std::mem::ManuallyDrop::new(service_dir);
    service_dir.lock = None;
    (id, path)
}

#[test]
fn a_home_is_private_and_goes_with_its_executor() {
    let temp = Temp::new();
    let service_dir = temp.service_dir();
    assert!(is_id(service_dir.id()), "{}", service_dir.id());
    for path in [&temp.base(), &service_dir.path, service_dir.dir()] {
        assert_eq!(mode(path), 0o700, "{}", path.display());
    }
    assert_eq!(mode(&service_dir.path.join("lock")), 0o600);
    fs::write(service_dir.log(), "log").unwrap();
    fs::write(service_dir.index(), "index").unwrap();
    assert_eq!(temp.names(), [service_dir.id()]);
    drop(service_dir);
    assert_eq!(temp.names(), [""; 0]);
}

#[test]
fn whatever_a_service_leaves_is_removed_and_links_are_not_followed() {
    let temp = Temp::new();
    let outside = temp.0.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "").unwrap();
    let service_dir = temp.service_dir();
    let dir = service_dir.dir();
    fs::create_dir_all(dir.join("a/b/c")).unwrap();
    fs::write(dir.join("a/b/file"), "").unwrap();
    symlink(&outside, dir.join("a/link")).unwrap();
    symlink("nowhere", dir.join("dangling")).unwrap();
    let _socket = UnixListener::bind(dir.join("s")).unwrap();
    fs::set_permissions(dir.join("a/b"), Permissions::from_mode(0o500)).unwrap();
    fs::set_permissions(dir.join("a"), Permissions::from_mode(0o000)).unwrap();
    drop(service_dir);
    assert_eq!(temp.names(), [""; 0]);
    assert!(outside.join("precious").exists());
}

#[test]
fn a_service_of_another_user_gets_its_own_directory_and_passage_to_it() {
    if sys::files::euid() != 0 {
        let temp = Temp::new();
        // Only root can make another user the owner, so the directory still belongs to this user. A
        // start would fail later, because it cannot change the user.
        let service_dir = ServiceDir::create_in(&temp.base(), Some((12345, 12345))).unwrap();
        assert_eq!(service_dir.dir().metadata().unwrap().uid(), sys::files::euid());
        return;
    }
    let temp = Temp::new();
    let service_dir = ServiceDir::create_in(&temp.base(), Some((12345, 12346))).unwrap();
    let metadata = service_dir.dir().metadata().unwrap();
    assert_eq!(
        (metadata.uid(), metadata.gid(), mode(service_dir.dir())),
        (12345, 12346, 0o700)
    );
    assert_eq!((mode(&temp.base()), mode(&service_dir.path)), (0o711, 0o711));
    // A later directory for this user does not change the mode of the base.
    let ours = temp.service_dir();
    assert_eq!((mode(&temp.base()), mode(&ours.path)), (0o711, 0o700));
    drop(service_dir);
    assert_eq!(temp.names(), [ours.id()]);
}

#[test]
fn a_temp_dir_that_only_root_can_enter_is_not_for_others() {
    let temp = Temp::new();
    let inside = temp.0.join("private/mirakuru-0");
    fs::create_dir_all(&inside).unwrap();
    let mode = |mode| fs::set_permissions(temp.0.join("private"), Permissions::from_mode(mode)).unwrap();
    fs::set_permissions(&temp.0, Permissions::from_mode(0o755)).unwrap();
    let (us, another) = ((sys::files::euid(), sys::files::egid()), (54_321, 54_321));
    mode(0o700);
    assert!(may_reach(&inside, us));
    assert!(!may_reach(&inside, another));
    mode(0o711);
    assert!(may_reach(&inside, another));
    mode(0o770);
    assert!(may_reach(&inside, (54_321, us.1)));
}

#[test]
fn socket_paths_stay_short() {
    let name = format!("mirakuru-{}", sys::files::euid());
    assert_eq!(base_in(Path::new("/var/tmp")), Path::new("/var/tmp").join(&name));
    let long = PathBuf::from(format!("/{}", "x".repeat(60)));
    assert_eq!(base_in(&long), Path::new("/tmp").join(&name));
    assert_eq!(
        base_in(Path::new("")),
        Path::new("/tmp").join(&name),
        "TMPDIR is empty"
    );
    let room = ROOM_BELOW_BASE - "/".len() - ID_LENGTH - "/d/".len();
    assert!(room >= 40, "{room}");
}

#[test]
fn a_copy_in_a_forked_process_removes_nothing() {
    let temp = Temp::new();
    let mut service_dir = temp.service_dir();
    let (path, us) = (service_dir.path.clone(), service_dir.creator);
    service_dir.creator = us + 1;
    drop(service_dir);
    assert!(path.exists());
}

#[test]
fn a_process_is_known_by_its_start_and_a_zombie_is_dead() {
    let (pid, started) = this_process();
    assert!(is_alive(pid, started));
    if !cfg!(target_os = "linux") {
        return;
    }
    assert!(!is_alive(pid, started + 1));
    let mut child = Command::new("true").spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    // The child becomes a zombie, because no process waits for it yet.
    while sys::procfs::start_time(child.id()).is_some() {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(1));
    }
    child.wait().unwrap();
}
