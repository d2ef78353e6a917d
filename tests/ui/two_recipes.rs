use mirakuru::presets;

#[mirakuru::fixture(presets::redis(), presets::nats())]
#[test]
fn test() {}

fn main() {
    let _ = presets::redis();
}
