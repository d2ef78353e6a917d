#[mirakuru::fixture]
struct Shop {
    #[fixture(cmd = "sleep 60")]
    server: mirakuru::SimpleExecutor,
    #[fixture(cmd = "sleep 60")]
    server: mirakuru::SimpleExecutor,
}

fn main() {
    let _ = |shop: Shop| shop.server.pid();
}
