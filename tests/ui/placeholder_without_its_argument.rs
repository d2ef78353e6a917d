#[mirakuru::fixture(cmd = "redis-server", env = ("HOME", "{env}"))]
#[test]
fn test() {}

fn main() {}
