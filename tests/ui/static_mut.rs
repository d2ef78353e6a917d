#[mirakuru::fixture(cmd = "sleep 60")]
static mut SLEEPER: mirakuru::SimpleExecutor;

fn main() {}
