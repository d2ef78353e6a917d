#[mirakuru::fixture(cmd = "sleep 60", scope = "run")]
#[test]
fn test() {}

fn main() {}
