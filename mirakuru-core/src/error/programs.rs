//! Finds a program's path, and the package that contains it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use once_cell::sync::Lazy;

/// The directories to search if `PATH` is not set, as in glibc's `execvp`.
pub(crate) const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The Debian packages of servers that tests often start, and of programs that query them.
const PACKAGES: [(&str, &str); 44] = [
    ("redis-server", "redis-server"),
    ("redis-cli", "redis-tools"),
    ("redis-sentinel", "redis-sentinel"),
    ("valkey-server", "valkey-server"),
    ("memcached", "memcached"),
    ("postgres", "postgresql"),
    ("initdb", "postgresql"),
    ("pg_ctl", "postgresql"),
    ("pg_isready", "postgresql-client"),
    ("psql", "postgresql-client"),
    ("pgbouncer", "pgbouncer"),
    ("mysqld", "default-mysql-server"),
    ("mariadbd", "mariadb-server"),
    ("mysqladmin", "default-mysql-client"),
    ("mysql", "default-mysql-client"),
    ("mariadb-install-db", "mariadb-server"),
    ("mariadb", "mariadb-client"),
    ("mariadb-admin", "mariadb-client"),
    ("nginx", "nginx"),
    ("apache2", "apache2"),
    ("haproxy", "haproxy"),
    ("caddy", "caddy"),
    ("lighttpd", "lighttpd"),
    ("traefik", "traefik"),
    ("varnishd", "varnish"),
    ("squid", "squid"),
    ("envoy", "envoy"),
    ("rabbitmq-server", "rabbitmq-server"),
    ("mosquitto", "mosquitto"),
    ("nats-server", "nats-server"),
    ("beanstalkd", "beanstalkd"),
    ("etcd", "etcd-server"),
    ("consul", "consul"),
    ("named", "bind9"),
    ("dnsmasq", "dnsmasq-base"),
    ("slapd", "slapd"),
    ("sshd", "openssh-server"),
    ("postfix", "postfix"),
    ("prometheus", "prometheus"),
    ("chromedriver", "chromium-driver"),
    ("Xvfb", "xvfb"),
    ("java", "default-jre-headless"),
    ("node", "nodejs"),
    ("python3", "python3"),
];

/// The packages of the presets' servers on Fedora, Arch Linux and Alpine, and in Homebrew. The name
/// is empty if the package is uncertain.
const ELSEWHERE: [(&str, [&str; 4]); 10] = [
    ("redis-server", ["redis", "valkey", "redis", "redis"]),
    (
        "postgres",
        ["postgresql-server", "postgresql", "postgresql", "postgresql@17"],
    ),
    (
        "psql",
        ["postgresql", "postgresql-libs", "postgresql-client", "libpq"],
    ),
    ("mariadbd", ["mariadb-server", "mariadb", "mariadb", "mariadb"]),
    (
        "rabbitmq-server",
        ["rabbitmq-server", "rabbitmq", "rabbitmq-server", "rabbitmq"],
    ),
    ("memcached", ["memcached", "memcached", "memcached", "memcached"]),
    ("nginx", ["nginx", "nginx", "nginx", "nginx"]),
    ("mosquitto", ["mosquitto", "mosquitto", "mosquitto", "mosquitto"]),
    ("nats-server", ["", "nats-server", "nats-server", "nats-server"]),
    ("etcd", ["etcd", "", "", "etcd"]),
];

/// The remedy for a program that no directory on PATH contains.
#[must_use]
pub fn not_found(program: &str, similar: &[String]) -> String {
    let mut text = format!("no directory on PATH contains `{program}`");
    if let Some(path) = off_path(program) {
        return format!("{text}, but it is installed: use `{}`", path.display());
    }
    if !similar.is_empty() {
        text = format!("{text}; did you mean {}?", similar.join(" or "));
    }
    match install(program) {
        Some(install) if similar.is_empty() => {
            format!("{text}: install it with `{install}` ({})", system().name())
        }
        Some(install) => format!("{text} Or install it with `{install}` ({})", system().name()),
        None if similar.is_empty() => format!("{text}: install the package that contains it"),
        None => text,
    }
}

/// An operating system, distinguished by its package manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// Debian, Ubuntu and similar systems, and every unknown system.
    Debian,
    /// Fedora, and other systems with `dnf`.
    Fedora,
    /// Arch Linux and similar systems.
    Arch,
    /// Alpine Linux.
    Alpine,
    /// macOS, where Homebrew is assumed.
    Homebrew,
}

impl System {
    fn name(self) -> &'static str {
        match self {
            System::Debian => "Debian",
            System::Fedora => "Fedora",
            System::Arch => "Arch Linux",
            System::Alpine => "Alpine",
            System::Homebrew => "macOS",
        }
    }

    /// The command that installs a package.
    #[must_use]
    pub fn install(self, package: &str) -> String {
        let command = match self {
            System::Debian => "apt-get install",
            System::Fedora => "dnf install",
            System::Arch => "pacman -S",
            System::Alpine => "apk add",
            System::Homebrew => "brew install",
        };
        format!("{command} {package}")
    }

    /// The package that contains a program, if known.
    fn package(self, program: &str) -> Option<&'static str> {
        let debian = PACKAGES.iter().find(|(name, _)| *name == program);
        let other = ELSEWHERE.iter().find(|(name, _)| *name == program);
        let package = match (self, other) {
            (System::Debian, _) => debian?.1,
            (System::Fedora, Some((_, [fedora, ..]))) => fedora,
            (System::Arch, Some((_, [_, arch, ..]))) => arch,
            (System::Alpine, Some((_, [_, _, alpine, _]))) => alpine,
            (System::Homebrew, Some((_, [.., homebrew]))) => homebrew,
            (_, None) => return None,
        };
        (!package.is_empty()).then_some(package)
    }

    /// Determines the system from the text of `/etc/os-release`.
    fn of(os_release: &str) -> System {
        let value = |name: &str| {
            let line = os_release
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches('"').to_owned()
        };
        let ids = format!("{} {}", value("ID"), value("ID_LIKE"));
        let found = ids.split_whitespace().find_map(|id| match id {
            "debian" | "ubuntu" => Some(System::Debian),
            "fedora" | "rhel" | "centos" => Some(System::Fedora),
            "arch" | "archlinux" => Some(System::Arch),
            "alpine" => Some(System::Alpine),
            _ => None,
        });
        found.unwrap_or(System::Debian)
    }
}

/// The operating system of this machine.
#[must_use]
pub fn system() -> System {
    static SYSTEM: Lazy<System> = Lazy::new(|| match cfg!(target_os = "macos") {
        true => System::Homebrew,
        false => System::of(&std::fs::read_to_string("/etc/os-release").unwrap_or_default()),
    });
    *SYSTEM
}

/// The command that installs a program on this machine, if its package is known.
pub(crate) fn install(program: &str) -> Option<String> {
    let system = system();
    system.package(program).map(|package| system.install(package))
}

/// Finds a program on PATH, or in one of the usual places outside PATH.
#[must_use]
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|path| is_executable(path))
        .or_else(|| off_path(program))
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Finds a program outside PATH: in the `sbin` directories, which are often only on root's PATH, or
/// in the directory of the newest PostgreSQL.
fn off_path(program: &str) -> Option<PathBuf> {
    for dir in ["/usr/sbin", "/usr/local/sbin", "/sbin"] {
        let path = Path::new(dir).join(program);
        if path.is_file() {
            return Some(path);
        }
    }
    let mut newest = None;
    for entry in std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten() {
        let path = entry.path().join("bin").join(program);
        let version = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let version: u32 = version.unwrap_or_default();
        if path.is_file() && newest.as_ref().is_none_or(|(other, _)| *other < version) {
            newest = Some((version, path));
        }
    }
    newest.map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_is_that_of_the_system() {
        let of = |release: &str, program| {
            let system = System::of(release);
            system.package(program).map(|package| system.install(package))
        };
        let debian = "NAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nID=debian\n";
        assert_eq!(
            of(debian, "mariadbd").as_deref(),
            Some("apt-get install mariadb-server")
        );
        let mint = "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n";
        assert_eq!(of(mint, "etcd").as_deref(), Some("apt-get install etcd-server"));
        let rocky = "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n";
        assert_eq!(
            of(rocky, "postgres").as_deref(),
            Some("dnf install postgresql-server")
        );
        assert_eq!(of("ID=arch", "redis-server").as_deref(), Some("pacman -S valkey"));
        assert_eq!(
            of("ID=alpine", "rabbitmq-server").as_deref(),
            Some("apk add rabbitmq-server")
        );
        // The table leaves out uncertain packages.
        assert_eq!(of("ID=alpine", "etcd"), None);
        assert_eq!(of("ID=arch", "beanstalkd"), None);
        let homebrew = System::Homebrew
            .package("postgres")
            .map(|package| System::Homebrew.install(package));
        assert_eq!(homebrew.as_deref(), Some("brew install postgresql@17"));
    }

    #[test]
    fn packages_are_named() {
        let text = not_found("beanstalkd", &[]);
        assert!(
            text.contains("`apt-get install beanstalkd`") || text.contains("but it is there"),
            "{text}"
        );
        let text = not_found("no-such-server", &["`no-such-serve`".to_owned()]);
        assert!(text.ends_with("; did you mean `no-such-serve`?"), "{text}");
        assert!(not_found("no-such-server", &[]).ends_with(": install the package that contains it"));
    }
}
