#[mirakuru::fixture(bin = "target/debug/shop-server")]
#[test]
fn test() {}

fn main() {}
