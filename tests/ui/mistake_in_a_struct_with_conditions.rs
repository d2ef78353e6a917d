#[mirakuru::fixture]
struct Shop {
    #[cfg(unix)]
    #[fixture(cmd = "sleep 60", timout = 5)]
    server: mirakuru::SimpleExecutor,
}

#[mirakuru::fixture(Shop)]
static SHOP: Shop;

fn main() {
    let _ = SHOP.server.pid();
}
