#[mirakuru::fixture]
struct Shop {
    #[fixture(cmd = "sleep 60", scope = "process")]
    server: mirakuru::SimpleExecutor,
}

fn main() {
    let _ = |shop: Shop| shop.server.pid();
}
