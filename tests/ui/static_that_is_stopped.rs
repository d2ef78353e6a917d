#[mirakuru::fixture(cmd = "sleep 60")]
static SLEEPER: mirakuru::SimpleExecutor;

fn main() {
    let _ = SLEEPER.stop();
}
