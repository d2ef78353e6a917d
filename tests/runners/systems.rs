//! All tests of a run share a cluster of three nodes and a system of four services.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;
use std::{env, fs, thread};

use mirakuru::{Cluster, Executor, ExecutorBuilder, Recipe, Tcp, TcpExecutor};

fn service() -> ExecutorBuilder<Tcp> {
    Executor::builder("{env:RUNNERS_SERVICE} --listen 127.0.0.1:{port} --pids {env:RUNNERS_DIR}/pids")
        .wait_for(Tcp::addr("127.0.0.1:{port}"))
}

fn nodes() -> impl Recipe<Handle = Cluster<TcpExecutor>> {
    mirakuru::cluster(3, |node| {
        let peers: Vec<String> = node.peers().map(|peer| peer.port().to_string()).collect();
        service().env("PEERS", peers.join(","))
    })
}

#[mirakuru::fixture(nodes())]
static NODES: Cluster<TcpExecutor>;

#[mirakuru::fixture]
struct Shop {
    #[fixture(service())]
    database: TcpExecutor,
    #[fixture(service())]
    cache: TcpExecutor,
    #[fixture(service().env("NEEDS", format!("{} {}", database.port(), cache.port())))]
    server: TcpExecutor,
    #[fixture(service().env("NEEDS", server.port().to_string()))]
    worker: TcpExecutor,
}

#[mirakuru::fixture(Shop)]
static SHOP: Shop;

/// Records the pids of all seven services.
fn use_all(shop: &Shop, nodes: &Cluster<TcpExecutor>) {
    let services = [&shop.database, &shop.cache, &shop.server, &shop.worker];
    let services = services.into_iter().chain(nodes.iter());
    let pids = services.map(|service| {
        assert!(service.is_running());
        service.pid().to_string()
    });
    let noted = pids.collect::<Vec<_>>().join(" ") + "\n";
    let path = format!("{}/noted", env::var("RUNNERS_DIR").unwrap());
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(noted.as_bytes()).unwrap();
}

macro_rules! tests {
    ($($name:ident)*) => {$(
        #[mirakuru::fixture(SHOP)]
        #[mirakuru::fixture(NODES)]
        #[test]
        fn $name(shop: &Shop, nodes: &Cluster<TcpExecutor>) {
            use_all(shop, nodes);
        }
    )*};
}

tests! { one two three four five six }

/// A test that is still running when its runner is killed.
#[mirakuru::fixture(SHOP)]
#[mirakuru::fixture(NODES)]
#[test]
fn waits(shop: &Shop, nodes: &Cluster<TcpExecutor>) {
    use_all(shop, nodes);
    let end = format!("{}/end", env::var("RUNNERS_DIR").unwrap());
    for _ in 0..1200 {
        if fs::exists(&end).unwrap() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("nobody has ended this");
}
