#[mirakuru::fixture]
enum Shop {
    Open,
}

fn main() {
    let _ = Shop::Open;
}
