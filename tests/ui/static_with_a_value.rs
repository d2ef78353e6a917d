#[mirakuru::fixture(cmd = "sleep 60")]
static SLEEPER: mirakuru::SimpleExecutor = mirakuru::SimpleExecutor::new();

fn main() {
    SLEEPER.pid();
}
