#[mirakuru::fixture(cmd = "redis-server", tcp = 6379, name = reddis)]
#[test]
fn test(redis: &mirakuru::TcpExecutor) {
    assert!(redis.is_running());
}

fn main() {}
