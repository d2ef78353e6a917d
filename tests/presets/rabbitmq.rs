//! Tests `presets::rabbitmq()` with the crate `lapin`.

use crate::common::{
    TinyDisk, any_server, assert_names_the_holder, assert_nothing_is_left, in_a_child, is_child, own_server,
    require_root, test_name, without_url,
};
use lapin::options::{BasicGetOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use mirakuru::Recipe;
use mirakuru::presets::{self, Rabbitmq};

#[mirakuru::fixture(presets::rabbitmq())]
static RABBITMQ: Rabbitmq;

async fn connect(url: &str) -> lapin::Result<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}

async fn declare(channel: &Channel) -> u32 {
    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let queue = channel
        .queue_declare("visits".into(), options, FieldTable::default())
        .await
        .unwrap();
    queue.message_count()
}

async fn publish(channel: &Channel, payload: &[u8]) {
    channel
        .basic_publish(
            "".into(),
            "visits".into(),
            BasicPublishOptions::default(),
            payload,
            BasicProperties::default().with_delivery_mode(2),
        )
        .await
        .unwrap()
        .await
        .unwrap();
}

async fn get(channel: &Channel) -> Option<Vec<u8>> {
    let message = channel
        .basic_get("visits".into(), BasicGetOptions { no_ack: true })
        .await
        .unwrap()?;
    Some(message.delivery.data)
}

async fn a_message_goes_round(payload: &[u8]) {
    if !any_server("rabbitmq-server") {
        return;
    }
    let vhost = RABBITMQ.vhost();
    let (_connection, channel) = connect(&vhost.url()).await.unwrap();
    assert_eq!(declare(&channel).await, 0);
    publish(&channel, payload).await;
    assert_eq!(get(&channel).await.unwrap(), payload);
    assert_eq!(get(&channel).await, None);
}

#[tokio::test]
async fn one_test_has_a_virtual_host() {
    a_message_goes_round(b"one").await;
}

#[tokio::test]
async fn another_test_has_another() {
    a_message_goes_round(b"another").await;
}

#[tokio::test]
async fn a_virtual_host_is_deleted_with_its_handle() {
    if !any_server("rabbitmq-server") {
        return;
    }
    let (one, two) = (RABBITMQ.vhost(), RABBITMQ.vhost());
    assert_ne!(one.name(), two.name());
    let url = one.url();
    assert!(connect(&url).await.is_ok());
    drop(one);
    assert!(connect(&url).await.is_err());
    assert!(connect(&two.url()).await.is_ok());
    assert!(connect(&RABBITMQ.url()).await.is_ok());
}

#[tokio::test]
async fn nobody_comes_in_without_the_password() {
    if !own_server("rabbitmq-server") {
        return;
    }
    for password in ["guest", ""] {
        let url = RABBITMQ.url().replace(RABBITMQ.password(), password);
        assert!(connect(&url).await.is_err(), "{url}");
    }
}

#[tokio::test]
async fn it_is_configured_keeps_its_data_and_leaves_nothing() {
    if !own_server("rabbitmq-server") {
        return;
    }
    let mut server = presets::rabbitmq()
        .config("channel_max", "23")
        .plugin("rabbitmq_consistent_hash_exchange")
        .start()
        .unwrap();
    let vhost = server.vhost();
    let (connection, channel) = connect(&vhost.url()).await.unwrap();
    assert_eq!(connection.configuration().channel_max(), 23);
    channel
        .exchange_declare(
            "hashed".into(),
            lapin::ExchangeKind::Custom("x-consistent-hash".into()),
            Default::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    declare(&channel).await;
    publish(&channel, b"kept").await;
    connection.close(0, "".into()).await.unwrap();
    // The server has not started `epmd`, Erlang's name service.
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let ours = processes.filter(|process| {
        let read = |file: &str| std::fs::read(process.path().join(file)).unwrap_or_default();
        let name = String::from_utf8_lossy(&read("comm")).into_owned();
        let dir = server.dir();
        let environment = read("environ");
        name.trim() == "epmd" && String::from_utf8_lossy(&environment).contains(dir.to_str().unwrap())
    });
    assert_eq!(ours.count(), 0);
    server.restart().unwrap();
    let (_connection, channel) = connect(&vhost.url()).await.unwrap();
    assert_eq!(declare(&channel).await, 1);
    assert_eq!(get(&channel).await.unwrap(), b"kept");
    assert_nothing_is_left(server);
    // A virtual host may be dropped after its server.
    drop(vhost);
}

#[test]
fn who_has_its_port_is_named() {
    if own_server("rabbitmq-server") {
        assert_names_the_holder(|port| presets::rabbitmq().port(port).start());
    }
}

#[test]
fn a_missing_program_is_named() {
    if !without_url("rabbitmq-server") {
        return;
    }
    let error = presets::rabbitmq()
        .program("/no/such/program")
        .start()
        .unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
}

#[test]
fn what_it_says_of_a_wrong_key_is_in_the_report() {
    if !own_server("rabbitmq-server") {
        return;
    }
    let error = presets::rabbitmq()
        .config("no_such_key", "1")
        .start()
        .unwrap_err()
        .to_string();
    assert!(error.contains("no_such_key"), "{error}");
}

#[test]
fn a_full_disk_is_reported() {
    if !own_server("rabbitmq-server") || !require_root() {
        return;
    }
    let Some(disk) = TinyDisk::mount(16) else {
        return;
    };
    let temp = disk.path().to_str().unwrap();
    let output = in_a_child(test_name!(the_disk_is_full), &[("TMPDIR", temp)]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("no space left on device"), "{text}");
    assert!(text.contains("TMPDIR"), "{text}");
}

#[test]
#[ignore = "for the test above"]
fn the_disk_is_full() {
    if is_child() {
        println!("{}", presets::rabbitmq().start().unwrap_err());
    }
}

#[test]
fn a_plugin_that_is_not_installed_is_an_error() {
    if !own_server("rabbitmq-server") {
        return;
    }
    let error = presets::rabbitmq()
        .plugin("no_such")
        .start()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no_such") && error.contains("rabbitmq_management"),
        "{error}"
    );
}
