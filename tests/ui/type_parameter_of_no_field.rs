#[mirakuru::fixture]
struct Shop<T> {
    #[fixture(cmd = "sleep 60")]
    server: mirakuru::SimpleExecutor,
}

fn main() {
    let _ = |shop: Shop<u8>| shop.server.pid();
}
