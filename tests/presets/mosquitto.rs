//! Tests `presets::mosquitto()` with the crate `rumqttc`.

use std::time::Duration;

use crate::common::{
    any_server, assert_names_the_holder, assert_names_the_package, assert_nothing_is_left, is_child,
    own_server, test_name, without_url,
};
use mirakuru::Recipe;
use mirakuru::presets::{self, Mosquitto};
use rumqttc::{Client, Connection, Event, MqttOptions, Packet, Publish, QoS};

#[mirakuru::fixture(presets::mosquitto())]
static MOSQUITTO: Mosquitto;

fn connect(server: &Mosquitto, id: &str) -> (Client, Connection) {
    let options = MqttOptions::new(id, server.host(), server.port());
    Client::new(options, 10)
}

/// Waits for the next message.
fn next(connection: &mut Connection) -> Publish {
    loop {
        let event = connection
            .recv_timeout(Duration::from_secs(30))
            .expect("a message in time");
        if let Event::Incoming(Packet::Publish(message)) = event.unwrap() {
            return message;
        }
    }
}

/// Waits until the broker acknowledges a message.
fn acknowledged(connection: &mut Connection) {
    loop {
        let event = connection
            .recv_timeout(Duration::from_secs(30))
            .expect("an answer in time");
        if let Event::Incoming(Packet::PubAck(_)) = event.unwrap() {
            return;
        }
    }
}

fn publishes_and_receives() {
    if !any_server("mosquitto") {
        return;
    }
    let prefix = MOSQUITTO.topic_prefix();
    let (client, mut connection) = connect(&MOSQUITTO, &prefix.join("client"));
    client.subscribe(format!("{prefix}#"), QoS::AtLeastOnce).unwrap();
    for visit in ["1", "2", "3"] {
        client
            .publish(prefix.join("visits"), QoS::AtLeastOnce, false, visit)
            .unwrap();
        let message = next(&mut connection);
        assert_eq!(message.topic, prefix.join("visits"));
        assert_eq!(message.payload, visit);
    }
}

#[test]
fn one_test_has_its_topics() {
    publishes_and_receives();
}

#[test]
fn another_test_has_others() {
    publishes_and_receives();
}

#[test]
fn a_durable_one_keeps_what_is_retained_and_leaves_nothing() {
    if !own_server("mosquitto") {
        return;
    }
    let mut server = presets::mosquitto()
        .durable(true)
        .config("sys_interval", "0")
        .start()
        .unwrap();
    let (client, mut connection) = connect(&server, "one");
    client.publish("x", QoS::AtLeastOnce, true, "kept").unwrap();
    acknowledged(&mut connection);
    client.disconnect().unwrap();
    while connection
        .recv_timeout(Duration::from_secs(30))
        .is_ok_and(|event| event.is_ok())
    {}
    server.restart().unwrap();
    let (client, mut connection) = connect(&server, "two");
    client.subscribe("x", QoS::AtLeastOnce).unwrap();
    assert_eq!(next(&mut connection).payload, "kept");
    assert_nothing_is_left(server);
}

#[test]
fn one_that_lets_nobody_in_is_ready_too() {
    if !own_server("mosquitto") {
        return;
    }
    let server = presets::mosquitto()
        .config("allow_anonymous", "false")
        .start()
        .unwrap();
    let (_client, mut connection) = connect(&server, "one");
    let refused = connection
        .recv_timeout(Duration::from_secs(30))
        .expect("an answer in time")
        .unwrap_err();
    assert!(refused.to_string().contains("NotAuthorized"), "{refused}");
}

#[test]
fn who_has_its_port_is_named() {
    if own_server("mosquitto") {
        assert_names_the_holder(|port| presets::mosquitto().port(port).start());
    }
}

#[test]
fn a_missing_program_is_named_and_its_package() {
    if !without_url("mosquitto") {
        return;
    }
    let error = presets::mosquitto()
        .program("/no/such/program")
        .start()
        .unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    // The preset also searches /usr/sbin, so it finds a server there without `PATH`.
    if !std::path::Path::new("/usr/sbin/mosquitto").exists() {
        assert_names_the_package(test_name!(the_program_is_not_on_path), "mosquitto");
    }
}

#[test]
#[ignore = "for the test above"]
fn the_program_is_not_on_path() {
    if is_child() {
        println!("{}", presets::mosquitto().start().unwrap_err());
    }
}

#[test]
fn what_it_says_of_a_broken_configuration_is_in_the_report() {
    if !own_server("mosquitto") {
        return;
    }
    let error = presets::mosquitto()
        .config("no_such_key", "1")
        .start()
        .unwrap_err();
    assert!(error.to_string().contains("no_such_key"), "{error}");
}
