//! `host:port`: how it is read, and the addresses that it stands for.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};

pub(crate) const ZERO: &str =
    "with port 0 the service chooses a port that nobody else knows; let one be chosen for it with `{port}`";

/// What `host:port` stands for, or what is wrong with it and what would be right.
pub(crate) fn resolve(text: &str) -> Result<Vec<SocketAddr>, String> {
    let (host, port) = split(text)?;
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let resolved = (host, port).to_socket_addrs().map_err(|error| {
        format!("the host `{host}` cannot be resolved ({error}); use `localhost`, or an address such as `127.0.0.1`")
    })?;
    let mut addrs: Vec<SocketAddr> = Vec::new();
    for addr in resolved {
        if !addrs.contains(&addr) {
            addrs.push(addr);
        }
    }
    if addrs.is_empty() {
        return Err(format!(
            "the host `{host}` has no address; use `localhost`, or an address such as `127.0.0.1`"
        ));
    }
    Ok(addrs)
}

fn split(text: &str) -> Result<(&str, u16), String> {
    if let Some((scheme, rest)) = text.split_once("://") {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        let host = if host.is_empty() { "localhost:{port}" } else { host };
        return Err(match scheme {
            "http" => format!("it is a URL; use `Http` for one, or give an address as `host:port`, `{host}`"),
            _ => format!("it is a URL; give an address as `host:port`, `{host}`"),
        });
    }
    if text.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) {
        return Err(format!(
            "an IPv6 address stands in brackets, and the port after them: `[{text}]:{{port}}`, or `[::1]:6379`"
        ));
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest
                .split_once(']')
                .ok_or("the bracket of the IPv6 address is not closed; write it as `[::1]:6379`")?;
            if after.is_empty() {
                return Err(no_port(text));
            }
            let port = after
                .strip_prefix(':')
                .ok_or("after the bracket of an IPv6 address stands a colon and the port: `[::1]:6379`")?;
            let ip = host.split_once('%').map_or(host, |(ip, _)| ip);
            if ip.parse::<Ipv6Addr>().is_err() {
                return Err(format!(
                    "`{host}` is not an IPv6 address, and only those stand in brackets; write it as `[::1]:6379`"
                ));
            }
            (host, port)
        }
        None => text.rsplit_once(':').ok_or_else(|| {
            if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
                format!("there is no host; write `127.0.0.1:{text}`, or use `Tcp::port({text})`")
            } else {
                no_port(text)
            }
        })?,
    };
    if host.is_empty() {
        return Err(format!(
            "there is no host before the port; write `localhost:{port}`"
        ));
    }
    if host.contains(|c: char| c.is_whitespace() || matches!(c, '/' | '@' | ',')) {
        return Err(format!(
            "`{host}` is not a host; give one name or address and a port, such as `localhost:6379`"
        ));
    }
    if host.contains(':') && !text.starts_with('[') {
        return Err(format!("an IPv6 address stands in brackets: `[{host}]:{port}`"));
    }
    match port.parse::<u16>() {
        Ok(0) => Err(ZERO.to_owned()),
        // `parse` would take a sign.
        Ok(port) if !text.ends_with(&format!("+{port}")) => Ok((host, port)),
        _ if port.is_empty() => Err(no_port(text.trim_end_matches(':'))),
        _ => Err(format!(
            "`{port}` is not a port; give a number from 1 to 65535, or `{{port}}` for one that is free"
        )),
    }
}

fn no_port(text: &str) -> String {
    let host = if text.is_empty() { "localhost" } else { text };
    format!("there is no port; write `{host}:{{port}}` for one that is free, or a number as in `{host}:6379`")
}
