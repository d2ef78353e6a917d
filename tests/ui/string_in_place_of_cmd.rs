#[mirakuru::fixture("redis-server")]
#[test]
fn test() {}

fn main() {}
