#[mirakuru::fixture]
struct Shop;

#[mirakuru::fixture(Shop)]
static SHOP: Shop;

fn main() {
    let _: &Shop = &SHOP;
}
