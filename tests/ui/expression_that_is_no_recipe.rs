fn port() -> u16 {
    6379
}

#[mirakuru::fixture(port())]
#[rust_analyzer::test] // Unlike `#[test]`, not compiled away: this is no test build.
fn test(redis: &mirakuru::TcpExecutor) {
    assert!(redis.is_running());
}

fn main() {}
