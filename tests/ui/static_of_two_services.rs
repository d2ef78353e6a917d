#[mirakuru::fixture(cmd = "sleep 60")]
#[mirakuru::fixture(cmd = "sleep 61")]
static SLEEPER: mirakuru::SimpleExecutor;

fn main() {
    SLEEPER.pid();
}
