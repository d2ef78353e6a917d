#[mirakuru::fixture(cmd = "redis-server", tcp = 6379, unix = "/tmp/redis.sock")]
#[test]
fn test() {}

fn main() {}
