#[mirakuru::fixture(tcp = "127.0.0.1:6379", cmd = "redis-server", tcp = "127.0.0.1:6380")]
#[test]
fn test(redis: &mirakuru::TcpExecutor) {
    assert!(redis.is_running());
}

fn main() {}
