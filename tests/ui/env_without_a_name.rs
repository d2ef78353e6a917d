#[mirakuru::fixture(cmd = "redis-server", env = "PORT=6379")]
#[test]
fn test() {}

fn main() {}
