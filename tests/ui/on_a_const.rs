#[mirakuru::fixture(cmd = "sleep 60")]
const SLEEPER: u32 = 1;

fn main() {
    let _ = SLEEPER;
}
