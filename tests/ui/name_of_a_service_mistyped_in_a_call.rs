fn name(service: &mirakuru::SimpleExecutor) -> &str {
    service.name()
}

#[mirakuru::fixture]
struct Shop {
    #[fixture(cmd = "sleep 60")]
    worker: mirakuru::SimpleExecutor,
    #[fixture(cmd = "sleep 60", env = ("WORKER", name(wroker)))]
    server: mirakuru::SimpleExecutor,
}

fn main() {
    let _ = |shop: Shop| (shop.server.pid(), shop.worker.pid());
}
