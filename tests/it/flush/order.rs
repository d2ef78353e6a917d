//! The order in which services end if they name each other, or if they were built before any of
//! them started.

use std::time::Duration;

use mirakuru::{Banner, Executor, ExecutorBuilder, cluster, start_all, stop_all};

use super::*;

/// The environment variable that tells the victim how to start its services.
const START: &str = "MIRAKURU_FLUSH_START";

/// Ways to end in which only the supervisors keep the order.
const DEATHS: [&str; 3] = ["process::exit", "SIGTERM", "SIGKILL"];

/// A service that appends its name to the file when it gets the stop signal. It ends by itself
/// after a minute or two.
fn writer() -> ExecutorBuilder<Banner> {
    let script = format!(
        "trap 'echo {{name}} >> \"${KEPT}\"; exit 0' TERM; echo ready; \
         for i in $(seq 600); do sleep 0.1; done"
    );
    Executor::builder(script)
        .shell(true)
        .env("PORT", "{port}")
        .timeout(Duration::from_secs(60))
        .wait_for(Banner::matching("^ready"))
}

fn naming(recipe: ExecutorBuilder<Banner>, other: &Executor<Banner>) -> ExecutorBuilder<Banner> {
    recipe.env("OTHER", other.port().to_string())
}

/// Removes the file into which earlier stops have written, and ends the services.
fn end_anew(services: impl Sized) {
    fs::remove_file(std::env::var_os(KEPT).expect("a file")).expect("it was written");
    end(services, || {});
}

#[test]
#[ignore = "a victim"]
fn has_services_that_name_each_other() {
    if victim_dir().is_none() {
        return;
    }
    let of_cluster = || {
        let nodes = cluster(3, |node| {
            let peers = node.peers().map(|peer| peer.port().to_string());
            writer().env("PEERS", peers.collect::<Vec<_>>().join(","))
        });
        nodes.start().expect("it starts")
    };
    let pair = || {
        let a = writer().name("a").build().expect("it is built");
        let b = naming(writer().name("b"), &a).build().expect("it is built");
        start_all((a, b)).expect("they start")
    };
    match std::env::var(START).expect("a way").as_str() {
        "cluster" => end(of_cluster(), || {}),
        "rolling restart" => {
            let mut nodes = of_cluster();
            for node in &mut nodes {
                node.restart_with(|recipe| recipe.env("VERSION", "2"))
                    .expect("it starts");
            }
            end_anew(nodes);
        }
        "closed circle" => {
            let (mut a, b) = pair();
            a.restart_with(|recipe| naming(recipe, &b)).expect("it starts");
            end_anew((a, b));
        }
        "turned round" => {
            let (mut a, mut b) = pair();
            b.restart_with(|recipe| recipe.env_remove("OTHER"))
                .expect("it starts");
            a.restart_with(|recipe| naming(recipe, &b)).expect("it starts");
            end_anew((a, b));
        }
        other => panic!("no such way: {other}"),
    }
}

/// Starts services as `way` says, and checks for each of [`DEATHS`] that they end in this order.
fn assert_order(way: &str, order: &str) {
    for death in DEATHS {
        let scratch = Scratch::new();
        let file = scratch.path().join("kept");
        let mut command = victim(test_name!(has_services_that_name_each_other), scratch.path());
        command.env(START, way);
        die_of(death, command, &file);
        assert_nothing_stays(scratch.path(), death);
        let names = fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(
            names.split_whitespace().collect::<Vec<_>>().join(" "),
            order,
            "{death}"
        );
    }
}

#[test]
fn nodes_that_name_each_other_end_one_by_one() {
    assert_order("cluster", "node-2 node-1 node-0");
}

#[test]
fn nodes_that_were_restarted_one_by_one_end_all_the_same() {
    assert_order("rolling restart", "node-2 node-1 node-0");
}

#[test]
fn a_restart_closes_no_circle() {
    assert_order("closed circle", "b a");
}

#[test]
fn a_restart_can_turn_the_order_round() {
    assert_order("turned round", "a b");
}

#[test]
#[ignore = "a victim"]
fn has_built_executors() {
    if victim_dir().is_none() {
        return;
    }
    let mut database = database().build().expect("it is built");
    let mut application = application(&database).build().expect("it is built");
    match std::env::var(START).expect("a way").as_str() {
        "database, application" => drop(start_all((&mut database, &mut application)).expect("they start")),
        "application, database" => drop(start_all((&mut application, &mut database)).expect("they start")),
        "one after the other" => {
            application.start().expect("it starts");
            database.start().expect("it starts");
        }
        other => panic!("no such way: {other}"),
    }
    end((application, database), || {});
}

fn assert_built_executors_flush(way: &str) {
    let program = |dir: &Path| {
        let mut command = victim(test_name!(has_built_executors), dir);
        command.env(START, way);
        command
    };
    assert_program_flushes(program, &DEATHS);
}

#[test]
fn a_built_executor_flushes_into_one_that_starts_with_it() {
    assert_built_executors_flush("database, application");
    assert_built_executors_flush("application, database");
}

#[test]
fn a_built_executor_flushes_into_one_that_started_later() {
    assert_built_executors_flush("one after the other");
}

/// Stops the application and its database together, and returns the content of the database's file.
fn stopped_together(stop: impl FnOnce(TcpExecutor, TcpExecutor) -> Result<(), mirakuru::Error>) -> String {
    let scratch = Scratch::new();
    let kept = scratch.path().join("kept");
    let database = database_in(&kept).build().expect("it is built");
    let application = application_of(&database, &kept).build().expect("it is built");
    let (database, application) = start_all((database, application)).expect("they start");
    stop(database, application).expect("they stop");
    fs::read_to_string(&kept).expect("a file")
}

#[test]
fn a_service_is_stopped_before_its_database_in_whatever_order_they_are_listed() {
    if require("python3").is_none() {
        return;
    }
    let tuple = stopped_together(|database, application| stop_all((database, application)));
    let turned = stopped_together(|database, application| stop_all((application, database)));
    let list = stopped_together(|database, application| stop_all(vec![database, application]));
    assert_eq!([tuple, turned, list], ["flushed"; 3]);
}
