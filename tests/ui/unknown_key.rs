#[mirakuru::fixture(cmd = "redis-server", timout = std::time::Duration::from_secs(5))]
#[test]
fn test() {}

fn main() {}
