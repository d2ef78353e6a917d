//! Tests of the presets, with one module for each server. There is only one binary, because the
//! clients take a long time to link.
//!
//! `cargo test -p mirakuru-preset-tests postgres::` runs one module.

mod common;

mod all;
mod clusters;
mod environment;
mod etcd;
mod external;
mod mariadb;
mod memcached;
mod migrations;
mod mosquitto;
mod nats;
mod nginx;
mod postgres;
mod rabbitmq;
mod redis;
