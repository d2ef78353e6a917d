#[mirakuru::fixture]
struct Shop {
    #[fixture(cmd = "sleep 60", env = ("WORKER", worker.name()))]
    server: mirakuru::SimpleExecutor,
    #[fixture(cmd = "sleep 60", env = ("SERVER", server.name()))]
    worker: mirakuru::SimpleExecutor,
}

fn main() {
    let _ = |shop: Shop| (shop.server.pid(), shop.worker.pid());
}
