#[mirakuru::fixture(cmd = "redis-server", tcp = 6379)]
#[rust_analyzer::test] // Unlike `#[test]`, not compiled away: this is no test build.
fn test(redis: mirakuru::UnixSocketExecutor) {
    assert!(redis.is_running());
}

fn main() {}
