#[mirakuru::fixture(cmd = "sleep 60")]
#[test]
fn sleeps(_sleeper: &mirakuru::SimpleExecutor);

fn main() {}
