use mirakuru::SimpleExecutor;

#[mirakuru::fixture(cmd = "sleep 60")]
static SLEEPER: SimpleExecutor;

#[mirakuru::fixture(SLEEPER)]
#[rust_analyzer::test] // Unlike `#[test]`, not compiled away: this is no test build.
fn test(sleeper: &mut SimpleExecutor) {
    sleeper.stop().unwrap();
}

fn main() {}
