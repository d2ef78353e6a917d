#[mirakuru::fixture]
struct Shop {
    #[fixture(cmd = "sleep 60", arg = server.port().to_string())]
    server: mirakuru::SimpleExecutor,
}

fn main() {
    let _ = |shop: Shop| shop.server.pid();
}
