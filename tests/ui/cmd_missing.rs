#[mirakuru::fixture(tcp = "127.0.0.1:6379")]
#[test]
fn test(redis: &mirakuru::TcpExecutor) {
    assert!(redis.is_running());
}

fn main() {}
