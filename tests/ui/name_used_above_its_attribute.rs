#[mirakuru::fixture(cmd = "sleep 60", env = ("WORKER", worker.name()))]
#[mirakuru::fixture(cmd = "sleep 60")]
#[test]
fn test(server: &mirakuru::SimpleExecutor, worker: &mirakuru::SimpleExecutor) {
    server.pid();
    worker.pid();
}

fn main() {}
