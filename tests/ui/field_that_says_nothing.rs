#[mirakuru::fixture]
struct Shop {
    #[fixture]
    server: mirakuru::SimpleExecutor,
}

fn main() {
    let _ = |shop: Shop| shop.server.pid();
}
