#[mirakuru::fixture]
struct Shop {
    #[fixture(cmd = "sleep 60")]
    #[fixture(cmd = "sleep 61")]
    server: mirakuru::SimpleExecutor,
}

fn main() {
    let _ = |shop: Shop| shop.server.pid();
}
