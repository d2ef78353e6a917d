//! Services that need each other: the whole shop, a cluster that loses its leader, and an upgrade
//! of a server that keeps its data.

use std::net::SocketAddr;
use std::time::Duration;

use mirakuru::{
    And, Banner, Check, Cluster, Error, Executor, HttpExecutor, OutputExecutor, Readiness, Recipe, Tcp,
    TcpExecutor, presets,
};

/// The database and the cache start together. When both are ready, the server starts, and then the
/// worker. They stop in the reverse order.
#[mirakuru::fixture]
struct Shop {
    #[fixture(presets::postgres())]
    db: presets::Postgres,
    #[fixture(presets::redis())]
    cache: presets::Redis,
    #[fixture(bin = "shop", args = ["127.0.0.1:{port}".to_owned(), cache.addr().to_string()],
              env = ("DATABASE_URL", db.url()), http = "http://127.0.0.1:{port}/health")]
    server: HttpExecutor,
    #[fixture(bin = "worker", args = [server.addr().to_string()], banner = "at work")]
    worker: OutputExecutor,
}

#[mirakuru::fixture(Shop)]
#[test]
fn the_worker_bears_an_outage_of_the_cache(mut shop: Shop) -> Result<(), Box<dyn std::error::Error>> {
    assert!(shop.db.is_running());
    let during = shop
        .cache
        .stopped(|| shop::get(shop.server.addr(), "/visits"))??;
    assert_eq!(during.0, 503);
    // The cache is empty after its restart, but the worker keeps running.
    let is_counting = Check::new("the worker had visited again", {
        let server = shop.server.addr();
        move |_| Ok(shop::get(server, "/visits")?.0 == 200)
    });
    shop.worker.wait_until(is_counting, Duration::from_secs(10))?;
    Ok(())
}

/// One system for the whole run. A test gets `&Shop`, so it cannot stop a service that another test
/// uses.
#[mirakuru::fixture(Shop)]
static SHOP: Shop;

#[mirakuru::fixture(SHOP)]
#[test]
fn a_visit_is_counted(shop: &Shop) -> Result<(), Box<dyn std::error::Error>> {
    let url = shop.server.base_url();
    assert_eq!(url, format!("http://{}", shop.server.addr()));
    assert_eq!(shop::get(shop.server.addr(), "/visits")?.0, 200);
    Ok(())
}

/// Three NATS servers. Each knows the ports of the others before any of them runs.
fn nats() -> impl Recipe<Handle = Cluster<TcpExecutor>> {
    mirakuru::cluster(3, |node| {
        let route = |peer: mirakuru::Node| format!("nats://127.0.0.1:{}", peer.port_named("route"));
        Executor::builder("nats-server -a 127.0.0.1 -p {port} -m {port:monitor} --name {name} -js -sd {dir}")
            .args([
                "--cluster_name",
                "shop",
                "--cluster",
                "nats://127.0.0.1:{port:route}",
            ])
            .args(["--routes", &node.peers().map(route).collect::<Vec<_>>().join(",")])
            .wait_for(Tcp::addr("127.0.0.1:{port}"))
    })
    .ready_when(Check::new("it knew a leader", |node| {
        let monitor = node.port_named("monitor").unwrap_or_default();
        Ok(leader(monitor)?.is_some())
    }))
}

/// Returns the name of the node that this node considers the leader.
fn leader(monitor: u16) -> std::io::Result<Option<String>> {
    let (_, body) = shop::get(SocketAddr::from(([127, 0, 0, 1], monitor)), "/jsz")?;
    let leader = body
        .split("\"leader\": \"")
        .nth(1)
        .and_then(|rest| rest.split('"').next());
    Ok(leader.filter(|name| !name.is_empty()).map(str::to_owned))
}

#[mirakuru::fixture(nats())]
#[test]
fn another_leader_is_elected(mut nodes: Cluster<TcpExecutor>) -> Result<(), Error> {
    let name = leader(nodes[0].port_named("monitor"))
        .unwrap()
        .expect("there is a leader");
    let old = nodes
        .iter()
        .position(|node| node.name() == name)
        .expect("it is one of the nodes");
    nodes[old].kill()?;

    let other = (old + 1) % nodes.len();
    let monitor = nodes[other].port_named("monitor");
    let another = Check::new("there was another leader", move |_| {
        Ok(leader(monitor)?.is_some_and(|leader| leader != name))
    });
    nodes[other].wait_until(another, Duration::from_secs(30))?;

    // The node keeps its ports, which the other nodes connect to.
    nodes[old].start()
}

/// An upgrade changes the program or its settings, but keeps the port and the directory. Redis
/// accepts connections before it has loaded its data, so the fixture also waits for a line of its
/// log.
#[mirakuru::fixture(
    cmd = "redis-server --port {port} --dir {dir} --appendonly yes",
    wait_for = Tcp::addr("127.0.0.1:{port}").and(Banner::matching("Ready to accept connections"))
)]
#[test]
fn an_upgrade_keeps_the_data(
    redis: &mut Executor<And<Tcp, Banner>>,
) -> Result<(), Box<dyn std::error::Error>> {
    assert_eq!(shop::count_visit(redis.addr(), 0)?, 1);
    let before = redis.port();
    redis.restart_with(|recipe| recipe.args(["--maxmemory", "100mb"]))?;
    assert_eq!(redis.port(), before);
    assert_eq!(shop::count_visit(redis.addr(), 0)?, 2);
    Ok(())
}

/// A system without the macro.
#[test]
fn a_system_in_plain_code() -> Result<(), Error> {
    // Services that do not need each other can start together.
    let (db, cache) = mirakuru::start_all((presets::postgres(), presets::redis()))?;
    let server = Executor::builder(["sleep", "60"])
        .env("DATABASE_URL", db.url())
        .env("REDIS_URL", cache.url())
        .start()?;
    assert!(server.is_running());
    Ok(())
    // Rust drops variables in the reverse order of their declaration, so the server stops first.
}
