#[mirakuru::fixture(example = "shop", profile = 1)]
#[test]
fn test() {}

fn main() {}
