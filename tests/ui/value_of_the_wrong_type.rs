#[mirakuru::fixture(cmd = "redis-server", timeout = 5)]
#[rust_analyzer::test] // Unlike `#[test]`, not compiled away: this is no test build.
fn test() {}

fn main() {}
