#[mirakuru::fixture]
struct Shop {
    #[fixture(cmd = "sleep 60")]
    worker: mirakuru::SimpleExecutor,
    #[fixture(Shop)]
    branch: Shop,
}

fn main() {
    let _ = Shop;
}
