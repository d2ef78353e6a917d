static SHOP: u8 = 7;

#[mirakuru::fixture(SHOP)]
fn test() {}

fn main() {}
