#[mirakuru::fixture]
union Shop {
    open: u32,
}

fn main() {
    let _ = Shop { open: 1 };
}
