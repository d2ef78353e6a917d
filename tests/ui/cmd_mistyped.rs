#[mirakuru::fixture(command = "redis-server")]
#[test]
fn test() {}

fn main() {}
