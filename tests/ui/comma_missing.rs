#[mirakuru::fixture(cmd = "redis-server" tcp = 6379)]
#[test]
fn test() {}

fn main() {}
