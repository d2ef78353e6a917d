//! Tests presets that start several servers: clusters, and replicas of one server.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{in_a_child, is_child, require, test_name};
use mirakuru::presets::{self, Etcd, Nats, Postgres, Redis};
use mirakuru::{Cluster, Recipe};
use redis::Commands;

/// Waits until the condition holds. Panics after 30 s.
#[track_caller]
fn soon(mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it did not come true");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Calls etcd's JSON interface, and returns the last line of the answer. Keys and values are in
/// base64.
fn call(etcd: &Etcd, method: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(etcd.addr()).unwrap();
    let length = body.len();
    write!(
        stream,
        "POST /v3/{method} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn members_of_an_etcd_go_on_without_one() {
    if !require("etcd") {
        return;
    }
    let begun = Instant::now();
    let mut members: Cluster<Etcd> = presets::etcd().cluster(3).start().unwrap();
    // The start would take longer if a member waited for one that is not launched yet.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(members.len(), 3);
    call(&members[0], "kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#);
    for member in &members {
        assert!(call(member, "kv/range", r#"{"key":"Zm9v"}"#).contains("YmFy"));
        let list = call(member, "cluster/member/list", "{}");
        assert_eq!(list.matches("\"peerURLs\"").count(), 3, "{list}");
    }
    members[0].kill().unwrap();
    soon(|| call(&members[1], "kv/put", r#"{"key":"Zm9v","value":"YmF6"}"#).contains("revision"));
    members[0].start().unwrap();
    soon(|| call(&members[0], "kv/range", r#"{"key":"Zm9v"}"#).contains("YmF6"));
}

/// If all members got SIGTERM at once, they would take five seconds or more to exit.
#[test]
fn members_of_an_etcd_are_gone_soon_after_their_test_was_killed() {
    if !require("etcd") {
        return;
    }
    let output = in_a_child(test_name!(it_is_killed_with_an_etcd), &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    let pids = text.lines().find_map(|line| line.split_once("the members are "));
    let pids: Vec<&str> = pids.unwrap_or_else(|| panic!("{text}")).1.split(' ').collect();
    assert_eq!(pids.len(), 3, "{text}");
    let begun = Instant::now();
    soon(|| !pids.iter().any(|pid| Path::new("/proc").join(pid).exists()));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[test]
#[ignore = "for the test above"]
fn it_is_killed_with_an_etcd() {
    if is_child() {
        let members = presets::etcd().cluster(3).start().unwrap();
        let pids: Vec<String> = members.iter().map(|member| member.pid().to_string()).collect();
        println!("the members are {}", pids.join(" "));
        let me = process::id().to_string();
        process::Command::new("kill")
            .args(["-KILL", &me])
            .status()
            .unwrap();
        // The signal ends the process before this time is over.
        thread::sleep(Duration::from_secs(60));
    }
}

#[test]
fn a_replica_of_redis_has_the_masters_data() {
    if !require("redis-server") {
        return;
    }
    let recipe = presets::redis().config("requirepass", "p@ss").replicas(1);
    let nodes: Cluster<Redis> = recipe.start().unwrap();
    let (mut master, mut replica) = (connect(&nodes[0]), connect(&nodes[1]));
    master.set::<_, _, ()>("x", 7).unwrap();
    let acknowledged: u32 = redis::cmd("WAIT").arg(1).arg(10_000).query(&mut master).unwrap();
    assert_eq!(acknowledged, 1);
    assert_eq!(replica.get::<_, u32>("x").unwrap(), 7);
    let error = replica.set::<_, _, ()>("x", 8).unwrap_err();
    assert_eq!(error.code(), Some("READONLY"), "{error}");
}

fn connect(node: &Redis) -> redis::Connection {
    let client = redis::Client::open(node.url()).unwrap();
    client.get_connection().unwrap()
}

/// Finds a key for each master by trial: a master refuses the keys of other masters.
fn keys_of(nodes: &[Redis]) -> Vec<String> {
    let has = |node: &Redis, key: &String| connect(node).set::<_, _, ()>(key, 7).is_ok();
    let key = |node: &Redis| (0..1000).map(|n| format!("key{n}")).find(|key| has(node, key));
    nodes.iter().map(|node| key(node).unwrap()).collect()
}

#[mirakuru::fixture(presets::redis().config("requirepass", "p@ss").cluster(3))]
#[test]
fn masters_of_redis_share_the_slots(mut nodes: Cluster<Redis>) {
    for node in &nodes {
        let info: String = redis::cmd("CLUSTER")
            .arg("INFO")
            .query(&mut connect(node))
            .unwrap();
        for wanted in [
            "cluster_state:ok",
            "cluster_slots_ok:16384",
            "cluster_known_nodes:3",
            "cluster_size:3",
        ] {
            assert!(info.lines().any(|line| line == wanted), "{wanted}: {info}");
        }
    }
    let keys = keys_of(&nodes);
    let error = connect(&nodes[1]).get::<_, u32>(&keys[0]).unwrap_err();
    assert_eq!(error.code(), Some("MOVED"), "{error}");
    assert!(
        error.to_string().contains(&nodes[0].addr().to_string()),
        "{error}"
    );
    // `start` waits until the whole cluster is ready again.
    nodes[0].kill().unwrap();
    nodes[0].start().unwrap();
    connect(&nodes[0]).set::<_, _, ()>(&keys[0], 8).unwrap();
    assert_eq!(connect(&nodes[0]).get::<_, u32>(&keys[0]).unwrap(), 8);
    assert!(nodes[0].try_database().is_err(), "a cluster has one database");
}

#[mirakuru::fixture(presets::redis().config("cluster-node-timeout", "500").cluster_with_replicas(3, 1))]
#[test]
fn a_replica_in_a_cluster_of_redis_takes_over(mut nodes: Cluster<Redis>) {
    assert_eq!(nodes.len(), 6);
    let key = keys_of(&nodes[..1]).remove(0);
    let mut master = connect(&nodes[0]);
    // `WAIT` counts only the writes of its own connection.
    master.set::<_, _, ()>(&key, 7).unwrap();
    let acknowledged: u32 = redis::cmd("WAIT").arg(1).arg(10_000).query(&mut master).unwrap();
    assert_eq!(acknowledged, 1);
    nodes[0].kill().unwrap();
    // The replica takes over with the value of its master.
    soon(|| {
        connect(&nodes[3])
            .incr::<_, _, u32>(&key, 1)
            .is_ok_and(|value| value == 8)
    });
}

#[mirakuru::fixture(presets::nats().accounts(2).cluster(2))]
static NATS: Cluster<Nats>;

#[mirakuru::fixture(presets::redis().cluster(3))]
static REDIS: Cluster<Redis>;

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn processes_of_a_run_share_their_clusters() {
    if !require("nats-server") || !require("redis-server") {
        return;
    }
    let run = [("MIRAKURU_SESSION_ID", &*format!("clusters-{}", process::id()))];
    let said = [(), ()].map(|()| {
        let output = in_a_child(test_name!(it_uses_the_clusters_of_the_run), &run);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = text.lines().find_map(|line| line.split_once("the nodes are "));
        said.unwrap_or_else(|| panic!("{text}")).1.to_owned()
    });
    assert_eq!(said[0], said[1]);
}

#[test]
#[ignore = "for the test above"]
fn it_uses_the_clusters_of_the_run() {
    if is_child() {
        let accounts = [NATS[0].account(), NATS[1].account()];
        assert_ne!(accounts[0].user(), accounts[1].user());
        assert!(NATS[1].try_account().is_err(), "both are leased");
        assert_eq!(keys_of(&REDIS).len(), 3);
        let nats = NATS.iter().map(|node| node.pid());
        let pids: Vec<u32> = nats.chain(REDIS.iter().map(|node| node.pid())).collect();
        println!("the nodes are {pids:?} of {}", NATS[0].password());
    }
}

#[test]
fn a_replica_of_postgres_has_the_databases_of_the_primary() {
    if !require("postgres") {
        return;
    }
    let schema = "CREATE TABLE visits (who TEXT); INSERT INTO visits VALUES ('me')";
    let recipe = presets::postgres().load_sql(schema).replicas(1);
    let mut nodes: Cluster<Postgres> = recipe.start().unwrap();
    let connect = |url: &str| postgres::Client::connect(url, postgres::NoTls);
    let who = |client: &mut postgres::Client| -> Vec<String> {
        let rows = client.query("SELECT who FROM visits", &[]).unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    let replica_url = nodes[1].url();
    // A client of the replica finds the loaded data at once.
    assert_eq!(who(&mut connect(&replica_url).unwrap()), ["me"]);
    let error = nodes[1].try_database().unwrap_err().to_string();
    assert!(error.contains("use the primary, which is node 0"), "{error}");
    let database = nodes[0].database();
    let url = format!("{}/{}", replica_url.rsplit_once('/').unwrap().0, database.name());
    // The replica gets the new database a moment later.
    soon(|| connect(&url).is_ok());
    let mut replica = connect(&url).unwrap();
    assert_eq!(who(&mut replica), ["me"]);
    let error = replica.execute("DELETE FROM visits", &[]).unwrap_err();
    assert!(
        error.as_db_error().unwrap().message().contains("read-only"),
        "{error:?}"
    );
    connect(&database.url())
        .unwrap()
        .execute("INSERT INTO visits VALUES ('you')", &[])
        .unwrap();
    soon(|| who(&mut replica) == ["me", "you"]);
    // A replica that was down catches up.
    drop(replica);
    nodes[1].stop().unwrap();
    connect(&database.url())
        .unwrap()
        .execute("DELETE FROM visits", &[])
        .unwrap();
    nodes[1].start().unwrap();
    soon(|| connect(&url).is_ok_and(|mut client| who(&mut client).is_empty()));
}

#[test]
fn a_nats_cluster_of_one_node_has_jetstream() {
    if !require("nats-server") {
        return;
    }
    let nodes = presets::nats().accounts(1).cluster(1).start().unwrap();
    let account = nodes[0].account();
    let mut stream = TcpStream::connect(nodes[0].addr()).unwrap();
    let (user, password) = (account.user(), account.password());
    let log_in = format!("CONNECT {{\"verbose\":false,\"user\":\"{user}\",\"pass\":\"{password}\"}}\r\n");
    let text = log_in + "SUB inbox 1\r\nPUB $JS.API.INFO inbox 0\r\n\r\n";
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    let mut buffer = [0; 4096];
    while !answer.contains("\"streams\":") {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0 && !answer.contains("-ERR"), "{answer}");
        answer.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    assert!(!answer.contains("\"error\""), "{answer}");
}

#[test]
fn a_preset_refuses_a_cluster_without_nodes() {
    let errors = [
        presets::nats().cluster(0).start().map(drop),
        presets::redis().cluster(0).start().map(drop),
        presets::redis().cluster_with_replicas(0, 1).start().map(drop),
        presets::etcd().cluster(0).start().map(drop),
    ];
    for error in errors {
        let text = error.unwrap_err().to_string();
        assert!(
            text.ends_with("its size is 0, but a cluster needs at least one node"),
            "{text}"
        );
    }
}
