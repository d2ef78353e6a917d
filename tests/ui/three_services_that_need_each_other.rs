#[mirakuru::fixture]
struct Shop {
    #[fixture(cmd = "sleep 60", env = ("WORKER", worker.name()))]
    cache: mirakuru::SimpleExecutor,
    #[fixture(cmd = "sleep 60", env = ("CACHE", cache.name()))]
    server: mirakuru::SimpleExecutor,
    #[fixture(cmd = "sleep 60", env = ("SERVER", server.name()))]
    worker: mirakuru::SimpleExecutor,
}

fn main() {
    let _ = |shop: Shop| (shop.cache.pid(), shop.server.pid(), shop.worker.pid());
}
