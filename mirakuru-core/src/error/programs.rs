//! Where a program is, and the package that has it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The Debian packages of servers that tests like to start, and of programs that ask them.
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

/// What to do about a program that no directory on PATH has.
#[must_use]
pub fn not_found(program: &str, similar: &[String]) -> String {
    let mut text = format!("no directory on PATH has `{program}`");
    if let Some(path) = off_path(program) {
        return format!("{text}, but it is there: use `{}`", path.display());
    }
    if !similar.is_empty() {
        text = format!("{text}; did you mean {}?", similar.join(" or "));
    }
    match PACKAGES.iter().find(|(name, _)| *name == program) {
        Some((_, package)) => format!("{text}; on Debian it comes with `apt-get install {package}`"),
        None if similar.is_empty() => format!("{text}; is the package that has it installed?"),
        None => text,
    }
}

/// Where a program is: on PATH, or in the places that are often not on it.
#[must_use]
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|path| is_executable(path))
        .or_else(|| off_path(program))
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Where programs are that are often not on PATH: daemons on the PATH of root alone, and each
/// version of PostgreSQL in a folder of its own, the newest first.
fn off_path(program: &str) -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut versions: Vec<PathBuf> = versions.map(|entry| entry.path()).collect();
    let number = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str()?.parse::<u32>().ok())
    };
    versions.sort_by_key(|path| std::cmp::Reverse(number(path)));
    let sbin = ["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from);
    let dirs = sbin
        .into_iter()
        .chain(versions.into_iter().map(|dir| dir.join("bin")));
    dirs.map(|dir| dir.join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_named() {
        let text = not_found("beanstalkd", &[]);
        assert!(
            text.contains("`apt-get install beanstalkd`") || text.contains("but it is there"),
            "{text}"
        );
        let text = not_found("no-such-server", &["`no-such-serve`".to_owned()]);
        assert!(text.ends_with("; did you mean `no-such-serve`?"), "{text}");
        assert!(not_found("no-such-server", &[]).ends_with("installed?"));
    }
}
