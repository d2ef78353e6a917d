#[mirakuru::fixture(cmd = "redis-server", colour = "red")]
#[test]
fn test() {}

fn main() {}
