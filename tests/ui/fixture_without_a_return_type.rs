#[mirakuru::fixture(cmd = "sleep 60")]
fn sleeper();

fn main() {}
