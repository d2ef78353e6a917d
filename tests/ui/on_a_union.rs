#[mirakuru::fixture]
union Shop {
    #[fixture(cmd = "sleep 60")]
    number: u32,
}

#[mirakuru::fixture(Shop)]
static SHOP: Shop;

fn main() {
    let _ = unsafe { SHOP.number };
}
