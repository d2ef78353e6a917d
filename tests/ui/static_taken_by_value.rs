#[mirakuru::fixture]
struct Mall {
    #[fixture(SLEEPER)]
    sleeper: mirakuru::SimpleExecutor,
}

#[mirakuru::fixture(cmd = "sleep 60")]
static SLEEPER: mirakuru::SimpleExecutor;

fn main() {
    let _ = |mall: Mall| mall.sleeper.pid();
}
