#[mirakuru::fixture]
struct Shop {
    #[fixture(cmd = "sleep 60", env = ("WORKER", format!("{worker:?}")))]
    server: mirakuru::SimpleExecutor,
    #[fixture(cmd = "sleep 60")]
    worker: mirakuru::SimpleExecutor,
}

fn main() {
    let _ = |shop: Shop| (shop.server.pid(), shop.worker.pid());
}
