#[mirakuru::fixture(cmd = "redis-server", tcp)]
#[test]
fn test() {}

fn main() {}
