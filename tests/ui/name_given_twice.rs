#[mirakuru::fixture(cmd = "sleep 60", name = first)]
#[mirakuru::fixture(cmd = "sleep 60", name = first)]
#[test]
fn test(first: &mirakuru::SimpleExecutor, second: &mirakuru::SimpleExecutor) {
    assert!(first.is_running() && second.is_running());
}

fn main() {}
