#[mirakuru::fixture(cmd = "sleep 60")]
#[mirakuru::fixture(cmd = "sleep 60")]
#[test]
fn test(server: &mirakuru::SimpleExecutor, server: &mirakuru::SimpleExecutor) {
    server.pid();
}

fn main() {}
