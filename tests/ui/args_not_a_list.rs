#[mirakuru::fixture(cmd = "redis-server", args = "--port 6379")]
#[test]
fn test() {}

fn main() {}
