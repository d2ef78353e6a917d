#[mirakuru::fixture(cmd = "sleep 60", name = worker)]
#[mirakuru::fixture(cmd = "sleep 60", env = ("QUEUE", queue.name()))]
fn test() {}

fn main() {
    test();
}
