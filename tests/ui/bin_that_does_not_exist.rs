#[mirakuru::fixture(bin = "no-such-program")]
#[rust_analyzer::test] // Unlike `#[test]`, not compiled away: this is no test build.
fn test() {}

fn main() {}
