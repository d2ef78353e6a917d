#[mirakuru::fixture]
struct Shop {
    #[fixture(cmd = "sleep 60")]
    worker: mirakuru::Executor,
    #[fixture(cmd = "sleep 60", env = ("QUEUE", queue.name()))]
    server: mirakuru::Executor,
}

fn main() {}
