#[mirakuru::fixture(cmd = "redis-server", tcp = 6379)]
#[test]
fn test(redis: &mirakuru::TcpExecutor, other: &mirakuru::SimpleExecutor) {
    assert!(redis.is_running() && other.is_running());
}

fn main() {}
