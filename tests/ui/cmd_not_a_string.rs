#[mirakuru::fixture(cmd = 5)]
#[test]
fn test() {}

fn main() {}
