struct Sleeper;

#[mirakuru::fixture(cmd = "sleep 60")]
impl Sleeper {}

fn main() {
    let _ = Sleeper;
}
