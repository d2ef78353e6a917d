fn recipe() -> mirakuru::ExecutorBuilder {
    mirakuru::Executor::builder("redis-server")
}

#[mirakuru::fixture(recipe(), timeout = std::time::Duration::from_secs(5))]
#[test]
fn test() {}

fn main() {
    let _ = recipe();
}
