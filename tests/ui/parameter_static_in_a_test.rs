#[mirakuru::fixture(cmd = "redis-server", tcp = 6379)]
#[test]
fn test(redis: &'static mirakuru::TcpExecutor) {
    assert!(redis.is_running());
}

fn main() {}
