#[mirakuru::fixture(cmd = "sleep 60")]
struct Sleeper;

fn main() {
    let _ = Sleeper;
}
