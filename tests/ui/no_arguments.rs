#[mirakuru::fixture]
#[test]
fn test() {}

fn main() {}
