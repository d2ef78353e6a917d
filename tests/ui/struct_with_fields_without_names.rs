#[mirakuru::fixture]
struct Shop(#[fixture(cmd = "sleep 60")] mirakuru::SimpleExecutor);

#[mirakuru::fixture(Shop)]
static SHOP: Shop;

fn main() {
    let _ = SHOP.0.pid();
}
