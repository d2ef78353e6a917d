#[mirakuru::fixture(bin = "shop-server", features = "vip")]
#[test]
fn test() {}

fn main() {}
