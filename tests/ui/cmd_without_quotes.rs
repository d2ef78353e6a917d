#[mirakuru::fixture(cmd = redis-server)]
#[test]
fn test() {}

fn main() {}
