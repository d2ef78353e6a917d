#[mirakuru::fixture(cmd = "sleep 60")]
fn sleeper() -> &mirakuru::SimpleExecutor;

fn main() {}
