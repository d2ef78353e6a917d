#[mirakuru::fixture(cmd = "sleep 60")]
#[mirakuru::fixture(cmd = "sleep 60", env = ("WORKER", wroker.name()))]
#[test]
fn test(worker: &mirakuru::SimpleExecutor, server: &mirakuru::SimpleExecutor) {
    server.pid();
    worker.pid();
}

fn main() {}
