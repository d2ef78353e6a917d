#[mirakuru::fixture(cmd = "sleep 60", name = worker)]
#[mirakuru::fixture(cmd = "sleep 60", name = worker)]
#[mirakuru::fixture(cmd = "sleep 60", env = ("WORKER", worker.name()))]
#[test]
fn test(server: &mirakuru::SimpleExecutor) {
    server.pid();
}

fn main() {}
