#[mirakuru::fixture]
enum Shop {
    #[fixture(cmd = "sleep 60")]
    Open(#[fixture(cmd = "sleep 60")] mirakuru::SimpleExecutor),
}

#[mirakuru::fixture(Shop)]
static SHOP: Shop;

fn main() {
    let Shop::Open(server) = &*SHOP;
    let _ = server.pid();
}
