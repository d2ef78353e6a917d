#[mirakuru::fixture(cmd = "sleep 60")]
#[rust_analyzer::test] // Unlike `#[test]`, not compiled away: this is no test build.
fn sleeps(_sleeper: &mirakuru::SimpleExecutor) -> missing::Result<()> {
    Ok(())
}

fn main() {}
