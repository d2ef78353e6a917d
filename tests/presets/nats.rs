//! Tests `presets::nats()` with the crate `async-nats`.

use std::process;
use std::time::Duration;

use crate::common::{
    any_server, assert_names_the_holder, assert_names_the_package, assert_nothing_is_left, in_a_child,
    is_child, own_server, require, test_name, without_url,
};
use async_nats::jetstream::{self, stream};
use async_nats::{Client, ConnectError, ConnectOptions};
use futures_util::StreamExt;
use mirakuru::presets::{self, Nats, NatsAccount};
use mirakuru::{Cluster, Recipe};
use tokio::time::timeout;

#[mirakuru::fixture(presets::nats().jetstream(true))]
static NATS: Nats;

/// Connects with a login, because the client ignores the user in the URL.
async fn connect(user: &str, password: &str, url: &str) -> Result<Client, ConnectError> {
    let options = ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned());
    options.connect(url).await
}

async fn connect_to(account: &NatsAccount) -> Client {
    let client = connect(account.user(), account.password(), &account.url()).await;
    client.unwrap()
}

async fn publishes_and_stores() {
    if !own_server("nats-server") {
        return;
    }
    let account = NATS.account();
    let client = connect_to(&account).await;
    let mut subscriber = client.subscribe("visits").await.unwrap();
    for visit in ["1", "2", "3"] {
        client.publish("visits", visit.into()).await.unwrap();
        let message = timeout(Duration::from_secs(30), subscriber.next()).await;
        assert_eq!(
            message.expect("a message in time").expect("a message").payload,
            visit
        );
    }

    let jetstream = jetstream::new(client);
    let mut stream = jetstream.create_stream(orders()).await.unwrap();
    let stored = jetstream
        .publish("orders.new", "one".into())
        .await
        .unwrap()
        .await
        .unwrap();
    assert_eq!(stored.sequence, 1);
    assert_eq!(stream.get_raw_message(1).await.unwrap().payload, "one");
    assert_eq!(stream.info().await.unwrap().state.messages, 1);
}

fn orders() -> stream::Config {
    stream::Config {
        name: "ORDERS".to_owned(),
        subjects: vec!["orders.*".to_owned()],
        ..Default::default()
    }
}

#[tokio::test]
async fn one_test_has_an_account() {
    publishes_and_stores().await;
}

#[tokio::test]
async fn another_test_has_another() {
    publishes_and_stores().await;
}

async fn publishes_and_stores_by_prefix() {
    if !any_server("nats-server") {
        return;
    }
    let prefix = NATS.subject_prefix();
    let client = connect(NATS.user(), NATS.password(), &NATS.url()).await.unwrap();
    let mut subscriber = client.subscribe(format!("{prefix}>")).await.unwrap();
    client.publish(prefix.join("visits"), "1".into()).await.unwrap();
    let message = timeout(Duration::from_secs(30), subscriber.next()).await;
    let message = message.expect("a message in time").expect("a message");
    assert_eq!(
        (&*message.subject, &*message.payload),
        (&*prefix.join("visits"), &b"1"[..])
    );

    let jetstream = jetstream::new(client);
    let own = stream::Config {
        name: prefix.trim_end_matches('.').to_owned(),
        subjects: vec![prefix.join("orders.*")],
        ..Default::default()
    };
    jetstream.create_stream(own).await.unwrap();
    let stored = jetstream
        .publish(prefix.join("orders.new"), "one".into())
        .await
        .unwrap();
    assert_eq!(stored.await.unwrap().sequence, 1);
}

#[tokio::test]
async fn one_test_has_subjects_of_its_own() {
    publishes_and_stores_by_prefix().await;
}

#[tokio::test]
async fn another_test_has_other_subjects() {
    publishes_and_stores_by_prefix().await;
}

/// The names of an account's streams.
async fn streams(client: Client) -> Vec<String> {
    let jetstream = jetstream::new(client);
    let names: Vec<_> = jetstream.stream_names().collect().await;
    names.into_iter().map(Result::unwrap).collect()
}

#[tokio::test]
async fn accounts_are_leased_emptied_and_given_back() {
    if !own_server("nats-server") {
        return;
    }
    let mut server = presets::nats()
        .jetstream(true)
        .accounts(2)
        .config("max_payload", "64KB")
        .start()
        .unwrap();
    let first = server.account();
    let user = first.user().to_owned();
    let client = connect_to(&first).await;
    assert_eq!(client.server_info().max_payload, 64 * 1024);
    let jetstream = jetstream::new(client);
    jetstream.create_stream(orders()).await.unwrap();
    let odd = stream::Config {
        name: "R&D-é".to_owned(),
        subjects: vec!["r".to_owned()],
        ..Default::default()
    };
    jetstream.create_stream(odd).await.unwrap();

    let second = server.account();
    assert_ne!(second.user(), user);
    assert!(streams(connect_to(&second).await).await.is_empty());
    let error = server.try_account().unwrap_err().to_string();
    assert!(error.contains("all 2 are leased"), "{error}");
    assert!(!format!("{second:?}{server:?}").contains(server.password()));

    // A restart keeps the streams and the accounts.
    server.restart().unwrap();
    assert_eq!(streams(connect_to(&first).await).await.len(), 2);
    drop(first);
    let again = server.account();
    assert_eq!(again.user(), user);
    assert!(streams(connect_to(&again).await).await.is_empty());
    let everybody = connect(server.user(), server.password(), &server.url())
        .await
        .unwrap();
    assert!(streams(everybody).await.is_empty());
    drop((second, again));
    assert_nothing_is_left(server);
}

#[mirakuru::fixture(presets::nats().jetstream(true).accounts(1))]
static WITH_ONE_ACCOUNT: Nats;

#[tokio::test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
async fn a_test_that_is_killed_leaves_no_streams_to_the_next() {
    if !own_server("nats-server") {
        return;
    }
    // With the same session id, both children belong to one run and share a server.
    let run = [("MIRAKURU_SESSION_ID", &*format!("nats-{}", process::id()))];
    let killed = in_a_child(test_name!(it_leaves_a_stream_and_aborts), &run);
    assert!(!killed.status.success());
    let next = in_a_child(test_name!(it_finds_no_stream), &run);
    let said = [&killed.stdout, &next.stdout].map(|output| String::from_utf8_lossy(output));
    let servers = said.each_ref().map(|text| {
        let pid = text
            .split_once("the server is ")
            .and_then(|(_, rest)| rest.lines().next());
        pid.unwrap_or_else(|| panic!("{text}"))
    });
    assert_eq!(servers[0], servers[1]);
}

#[tokio::test]
#[ignore = "for the test above"]
async fn it_leaves_a_stream_and_aborts() {
    if is_child() {
        let account = WITH_ONE_ACCOUNT.account();
        let jetstream = jetstream::new(connect_to(&account).await);
        jetstream.create_stream(orders()).await.unwrap();
        println!("the server is {}", WITH_ONE_ACCOUNT.pid());
        process::abort();
    }
}

#[tokio::test]
#[ignore = "for the test above"]
async fn it_finds_no_stream() {
    if is_child() {
        let account = WITH_ONE_ACCOUNT.account();
        assert!(streams(connect_to(&account).await).await.is_empty());
        println!("the server is {}", WITH_ONE_ACCOUNT.pid());
    }
}

#[tokio::test]
async fn without_jetstream_there_are_accounts_too() {
    if !own_server("nats-server") {
        return;
    }
    let server = presets::nats().start().unwrap();
    let (one, two) = (server.account(), server.account());
    let (one, two) = (connect_to(&one).await, connect_to(&two).await);
    let mut theirs = two.subscribe(">").await.unwrap();
    two.flush().await.unwrap();
    one.publish("x", "for one".into()).await.unwrap();
    one.flush().await.unwrap();
    two.publish("x", "for two".into()).await.unwrap();
    let message = timeout(Duration::from_secs(30), theirs.next()).await;
    assert_eq!(
        message.expect("a message in time").expect("a message").payload,
        "for two"
    );
    let refused = connect(server.user(), "wrong", &server.url()).await;
    assert!(refused.is_err());
    assert!(
        server
            .url()
            .contains(&format!("{}:{}@", server.user(), server.password()))
    );
}

fn replicated() -> stream::Config {
    stream::Config {
        num_replicas: 3,
        ..orders()
    }
}

#[tokio::test]
async fn nodes_of_a_cluster_go_on_without_one() {
    if !require("nats-server") {
        return;
    }
    let mut nodes: Cluster<Nats> = presets::nats().accounts(2).cluster(3).start().unwrap();
    assert!(nodes.iter().all(|node| node.password() == nodes[0].password()));
    // All nodes lease from the same list.
    let (one, other) = (nodes[0].account(), nodes[1].account());
    assert_ne!(one.user(), other.user());
    assert!(nodes[2].try_account().is_err());
    drop(one);

    let client = connect(other.user(), other.password(), &nodes[2].url())
        .await
        .unwrap();
    let mut subscriber = client.subscribe("visits").await.unwrap();
    client.flush().await.unwrap();
    let jetstream = jetstream::new(connect_to(&other).await);
    jetstream.create_stream(replicated()).await.unwrap();
    let stored = jetstream.publish("orders.new", "one".into()).await.unwrap();
    assert_eq!(stored.await.unwrap().sequence, 1);

    nodes[0].kill().unwrap();
    // The election of a new leader takes a moment.
    let again = async {
        loop {
            let stored = jetstream.publish("orders.new", "two".into()).await.unwrap();
            if let Ok(stored) = stored.await {
                break stored.sequence;
            }
        }
    };
    assert!(timeout(Duration::from_secs(60), again).await.unwrap() > 1);
    let account = connect_to(&other).await;
    account.publish("visits", "from node 1".into()).await.unwrap();
    account.flush().await.unwrap();
    let message = timeout(Duration::from_secs(30), subscriber.next()).await;
    let message = message.expect("a message in time").expect("a message");
    assert_eq!(message.payload, "from node 1");

    nodes[0].start().unwrap();
    let back = connect(other.user(), other.password(), &nodes[0].url())
        .await
        .unwrap();
    let found = async {
        let jetstream = jetstream::new(back);
        loop {
            if let Ok(stream) = jetstream.get_stream("ORDERS").await {
                break stream.get_raw_message(1).await.unwrap().payload;
            }
        }
    };
    assert_eq!(timeout(Duration::from_secs(60), found).await.unwrap(), "one");
}

#[mirakuru::fixture(presets::nats().jetstream(false).cluster(2))]
#[tokio::test]
async fn a_cluster_without_jetstream_knows_its_nodes(nodes: &Cluster<Nats>) {
    let connect = async |node: &Nats| connect(node.user(), node.password(), &node.url()).await.unwrap();
    let (one, two) = (connect(&nodes[0]).await, connect(&nodes[1]).await);
    let mut theirs = two.subscribe("x").await.unwrap();
    two.flush().await.unwrap();
    // The other node hears of the subscription a moment later.
    let arrives = async {
        loop {
            one.publish("x", "".into()).await.unwrap();
            one.flush().await.unwrap();
            if timeout(Duration::from_millis(20), theirs.next()).await.is_ok() {
                break;
            }
        }
    };
    timeout(Duration::from_secs(30), arrives).await.unwrap();
    assert!(jetstream::new(one).create_stream(orders()).await.is_err());
}

#[test]
fn who_has_its_port_is_named() {
    if own_server("nats-server") {
        assert_names_the_holder(|port| presets::nats().port(port).start());
    }
}

#[test]
fn a_missing_program_is_named_and_its_package() {
    if !without_url("nats-server") {
        return;
    }
    let error = presets::nats().program("/no/such/program").start().unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    // The preset also searches /usr/sbin, so it finds a server there without `PATH`.
    if !std::path::Path::new("/usr/sbin/nats-server").exists() {
        assert_names_the_package(test_name!(the_program_is_not_on_path), "nats-server");
    }
}

#[test]
#[ignore = "for the test above"]
fn the_program_is_not_on_path() {
    if is_child() {
        println!("{}", presets::nats().start().unwrap_err());
    }
}

#[test]
fn what_it_says_of_a_broken_configuration_is_in_the_report() {
    if !own_server("nats-server") {
        return;
    }
    let error = presets::nats().config("no_such_key", "1").start().unwrap_err();
    assert!(
        error.to_string().contains("unknown field \"no_such_key\""),
        "{error}"
    );
}
