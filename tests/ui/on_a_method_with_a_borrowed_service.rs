struct Sleeper;

impl Sleeper {
    #[mirakuru::fixture(cmd = "sleep 60")]
    fn sleeper(&self, _sleeper: &mirakuru::SimpleExecutor) {}
}

fn main() {
    let _ = Sleeper;
}
