#[mirakuru::fixture(cmd = "sleep 60")]
fn runs(sleeper: &mirakuru::SimpleExecutor) {
    sleeper.pid();
}

fn main() {}
