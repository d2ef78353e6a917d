#[mirakuru::fixture(cmd = "sleep 60")]
#[mirakuru::fixture(cmd = "sleep 60", env = ("QUEUE", queue.name()))]
fn test() {}

fn main() {
    test();
}
