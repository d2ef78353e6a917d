#[mirakuru::fixture(cmd = "sleep 60")]
static SLEEPER: u32;

fn main() {
    println!("{}", *SLEEPER);
}
