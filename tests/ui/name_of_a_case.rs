use mirakuru::rstest::rstest;

#[mirakuru::fixture(cmd = "sleep 60", name = number)]
#[rstest]
#[case(1)]
fn counts(sleeper: &mirakuru::SimpleExecutor, #[case] number: u32) {
    let _ = (sleeper, number);
}

fn main() {}
