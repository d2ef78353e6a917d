#[mirakuru::fixture]
struct Shop(mirakuru::SimpleExecutor);

fn main() {
    let _ = |shop: Shop| shop.0.pid();
}
