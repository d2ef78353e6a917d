#[mirakuru::fixture(cmd = "redis-server", features = ["tls"])]
#[test]
fn test() {}

fn main() {}
