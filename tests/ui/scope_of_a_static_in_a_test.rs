#[mirakuru::fixture(cmd = "sleep 60")]
static SLEEPER: mirakuru::SimpleExecutor;

#[mirakuru::fixture(SLEEPER, scope = "process")]
#[test]
fn test(sleeper: &mirakuru::SimpleExecutor) {
    assert!(sleeper.is_running());
}

fn main() {}
