#[mirakuru::fixture(cmd = "sleep 60", scope = "test")]
static SLEEPER: mirakuru::SimpleExecutor;

fn main() {
    SLEEPER.pid();
}
