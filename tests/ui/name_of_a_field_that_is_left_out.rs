#[mirakuru::fixture]
struct Shop {
    #[cfg(windows)]
    #[fixture(cmd = "sleep 60")]
    cache: mirakuru::SimpleExecutor,
    #[fixture(cmd = "sleep 60", env = ("CACHE", cache.name()))]
    server: mirakuru::SimpleExecutor,
}

fn main() {
    let _ = |shop: Shop| shop.server.pid();
}
