#[mirakuru::fixture(cmd = "redis-server --port {prot}")]
#[test]
fn test() {}

fn main() {}
