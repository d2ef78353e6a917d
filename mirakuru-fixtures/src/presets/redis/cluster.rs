//! A Redis cluster that forms in a fraction of a second.
//!
//! A master that joins a cluster refuses commands for two seconds. A replica that takes over from
//! its master does not. So every node begins as a replica of a *phantom*: a master with slots, at
//! an address where nothing listens. Once all nodes are running, the masters take over from the
//! phantoms, and every node forgets the phantoms. [`ready`] lists the steps in order. If a step is
//! late, the cluster takes two seconds longer.

use std::io;
use std::path::Path;
use std::time::Duration;

use mirakuru_core::__private::hash;
use mirakuru_core::{Check, Probe};

use super::{ask, authenticate, bulk};
use crate::cluster::Node;
use crate::presets::connection::Connection;

const SLOTS: usize = 16384;

/// The first digit of a node's id, which encodes its initial role.
const MASTER: char = 'a';
const REPLICA: char = 'b';
const PHANTOM: char = 'f';

/// A node, and its position in the cluster.
#[derive(Clone, Debug)]
pub(super) struct Place {
    node: Node,
    pub(super) masters: usize,
    /// The client port and the cluster bus port of each node.
    ports: Vec<(u16, u16)>,
}

impl Place {
    pub(super) fn new(node: &Node, masters: usize) -> Place {
        let mut ports = Vec::new();
        for node in node.nodes() {
            ports.push((node.port(), node.port_named("bus")));
        }
        Place {
            node: node.clone(),
            masters,
            ports,
        }
    }

    /// The contents of `nodes.conf`, in which a node keeps its view of the cluster. Ids are hashes
    /// of the private directories, so no other cluster has the same ids.
    pub(super) fn nodes_conf(&self) -> String {
        let masters = self.masters;
        let mut nodes = self.node.nodes();
        let first = nodes.next().map(|node| node.dir()).unwrap_or_default();
        let phantom = |index: usize| id(PHANTOM, index, &first);
        let mut text = String::new();
        for index in 0..masters {
            let (from, to) = (index * SLOTS / masters, (index + 1) * SLOTS / masters - 1);
            let (id, epoch) = (phantom(index), index + 1);
            text.push_str(&format!(
                "{id} 127.0.0.1:1@1 master - 0 0 {epoch} connected {from}-{to}\n"
            ));
        }
        for node in self.node.nodes() {
            let index = node.index();
            let (port, bus) = self.ports[index];
            let id = id(if index < masters { MASTER } else { REPLICA }, index, &node.dir());
            let flags = match index == self.node.index() {
                true => "myself,slave",
                false => "slave",
            };
            let (master, epoch) = (phantom(index % masters), index % masters + 1);
            text.push_str(&format!(
                "{id} 127.0.0.1:{port}@{bus} {flags} {master} 0 0 {epoch} connected\n"
            ));
        }
        text + &format!("vars currentEpoch {masters} lastVoteEpoch 0\n")
    }
}

/// Computes a node's id, which has 40 hexadecimal digits.
fn id(kind: char, index: usize, dir: &Path) -> String {
    let dir = dir.to_string_lossy();
    format!("{kind}{index:07x}{:016x}{:016x}", hash(0, &dir), hash(1, &dir))
}

/// Whether the node itself is ready: its cluster is up, or the node still knows phantoms because
/// the cluster has not formed yet.
pub(super) fn is_up(connection: &mut Connection) -> io::Result<bool> {
    Ok(is_ok(connection)? || view(connection)?.lines().any(is_phantom))
}

/// The steps in which a cluster of `nodes` nodes, `masters` of which are masters, becomes ready.
pub(super) fn ready(masters: usize, nodes: usize, password: Option<&str>) -> [Check; 3] {
    let check = |sentence: &str, step: fn(&mut Connection, usize, usize) -> io::Result<bool>| {
        let password = password.map(str::to_owned);
        Check::new(sentence, move |probe: &Probe<'_>| {
            const POLL: Duration = Duration::from_millis(100);
            let port = probe.port().ok_or(io::ErrorKind::InvalidInput)?;
            let within = POLL.max(probe.remaining());
            let mut connection = Connection::open(([127, 0, 0, 1], port).into(), within)?;
            authenticate(&mut connection, None, password.as_deref())?;
            step(&mut connection, masters, nodes)
        })
    };
    [
        check("took over its slots", |connection, _, _| take_over(connection)),
        check("knew the masters of all slots", |connection, masters, _| {
            Ok(knows_masters(&view(connection)?, masters))
        }),
        check(
            "reported `cluster_state:ok`, with all slots and all nodes",
            |connection, _, nodes| is_whole(connection, nodes),
        ),
    ]
}

fn take_over(connection: &mut Connection) -> io::Result<bool> {
    let view = view(connection)?;
    let own = view.lines().find(|line| line.contains(" myself,"));
    let own = own.ok_or(io::ErrorKind::InvalidData)?;
    if !own.starts_with(MASTER) {
        return introduce(connection, &view, own);
    }
    if own.contains("myself,master") {
        return Ok(true);
    }
    // On a slow machine, the nodes may already count the phantoms as failed, and the cluster is
    // then not `ok`.
    let misses_phantoms = view.lines().any(|line| is_phantom(line) && line.contains("fail"));
    if !is_ok(connection)? && !misses_phantoms {
        return Ok(false);
    }
    ask(connection, &["CLUSTER", "FAILOVER", "TAKEOVER"]).map(|_| true)
}

/// Tells all other nodes which master a replica follows. Without this message, they would find out
/// from the next ping, up to a second later.
fn introduce(connection: &mut Connection, view: &str, own: &str) -> io::Result<bool> {
    if own.split(' ').nth(3).is_none_or(is_phantom) {
        return Ok(false);
    }
    for line in view.lines() {
        let place = line.split([' ', ',']).nth(1);
        let Some(place) = place.filter(|_| line != own && !is_phantom(line)) else {
            continue;
        };
        // `place` has the form `IP:PORT@BUS`.
        let mut words = vec!["CLUSTER", "MEET"];
        for word in place.split([':', '@']) {
            words.push(word);
        }
        ask(connection, &words)?;
    }
    Ok(true)
}

/// Whether exactly `masters` real masters have slots, and no phantom has slots or replicas.
fn knows_masters(view: &str, masters: usize) -> bool {
    let mut real = 0;
    for line in view.lines() {
        // Fields: id, address, flags, master, ping, pong, epoch, link, slots.
        let field = |at: usize| line.split(' ').nth(at).unwrap_or_default();
        let has_slots = !field(8).is_empty();
        match is_phantom(line) {
            true if has_slots => return false,
            false if is_phantom(field(3)) => return false,
            _ => {}
        }
        if has_slots && field(2).contains("master") {
            real += 1;
        }
    }
    real == masters
}

/// Makes the node forget the phantoms. Returns whether the node sees all slots served and knows
/// exactly `nodes` nodes. A replica must also be connected to its master.
fn is_whole(connection: &mut Connection, nodes: usize) -> io::Result<bool> {
    let known = view(connection)?;
    for phantom in known.lines().filter(|line| is_phantom(line)) {
        let id = phantom.split(' ').next().unwrap_or_default();
        ask(connection, &["CLUSTER", "FORGET", id])?;
    }
    let info = bulk(connection, &["CLUSTER", "INFO"])?;
    let says = |wanted: &str| info.lines().any(|line| line == wanted);
    if !says("cluster_state:ok")
        || !says(&format!("cluster_slots_ok:{SLOTS}"))
        || !says(&format!("cluster_known_nodes:{nodes}"))
    {
        return Ok(false);
    }
    let replication = bulk(connection, &["INFO", "replication"])?;
    Ok(replication.contains("role:master") || replication.contains("master_link_status:up"))
}

fn is_ok(connection: &mut Connection) -> io::Result<bool> {
    Ok(bulk(connection, &["CLUSTER", "INFO"])?.contains("cluster_state:ok"))
}

fn view(connection: &mut Connection) -> io::Result<String> {
    bulk(connection, &["CLUSTER", "NODES"])
}

/// Whether a string begins with the id of a phantom.
fn is_phantom(id: &str) -> bool {
    id.starts_with(PHANTOM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_masters_are_known_when_no_phantom_has_slots_or_replicas() {
        let real = "a0 127.0.0.1:7000@7001 myself,master - 0 0 4 connected 0-16383\n";
        let phantom = "f0 127.0.0.1:1@1 master - 0 0 1 connected";
        let replica = "b1 127.0.0.1:7002@7003 slave";
        assert!(knows_masters(real, 1));
        assert!(!knows_masters(real, 2));
        assert!(knows_masters(&format!("{real}{phantom}\n"), 1));
        assert!(!knows_masters(&format!("{real}{phantom} 5-6\n"), 1));
        assert!(knows_masters(&format!("{real}{replica} a0 0 0 4 connected\n"), 1));
        assert!(!knows_masters(
            &format!("{real}{replica} f0 0 0 4 connected\n"),
            1
        ));
    }
}
