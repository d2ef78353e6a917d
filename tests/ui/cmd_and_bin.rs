#[mirakuru::fixture(cmd = "redis-server", bin = "redis")]
#[test]
fn test() {}

fn main() {}
