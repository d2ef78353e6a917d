#[mirakuru::fixture(cmd = "sleep 60")]
async fn sleeper(sleeper: mirakuru::SimpleExecutor) -> &'static mirakuru::SimpleExecutor {
    sleeper
}

fn main() {}
