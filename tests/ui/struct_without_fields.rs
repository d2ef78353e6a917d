#[mirakuru::fixture]
struct Shop;

fn main() {
    let _ = Shop;
}
