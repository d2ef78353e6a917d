#[mirakuru::fixture]
struct Shop {
    #[fixture(cmd = "sleep 60")]
    server: mirakuru::TcpExecutor,
}

fn main() {
    let _ = |shop: Shop| shop.server.pid();
}
