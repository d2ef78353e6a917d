#[mirakuru::fixture(cmd = "sleep 60")]
const SLEEPER: mirakuru::SimpleExecutor;

fn main() {
    let _ = SLEEPER.pid();
}
