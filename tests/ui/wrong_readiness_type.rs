#[mirakuru::fixture(cmd = "redis-server", wait_for = "127.0.0.1:6379")]
#[rust_analyzer::test] // Unlike `#[test]`, not compiled away: this is no test build.
fn test() {}

fn main() {}
