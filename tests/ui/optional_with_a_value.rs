#[mirakuru::fixture(cmd = "redis-server", optional = true)]
#[test]
fn test() {}

fn main() {}
