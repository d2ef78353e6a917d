#[mirakuru::fixture(cmd = "sleep 60")]
mod sleeper {}

fn main() {}
