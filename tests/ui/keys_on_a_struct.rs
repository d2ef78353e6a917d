#[mirakuru::fixture(cmd = "sleep 60")]
struct Shop {
    server: mirakuru::SimpleExecutor,
}

#[mirakuru::fixture(Shop)]
static SHOP: Shop;

fn main() {
    let _ = SHOP.server.pid();
}
