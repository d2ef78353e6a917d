struct Shop;

#[mirakuru::fixture(Shop)]
fn test() {}

fn main() {}
