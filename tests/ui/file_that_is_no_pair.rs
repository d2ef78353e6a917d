#[mirakuru::fixture(cmd = "nginx -c {dir}/nginx.conf", file = "nginx.conf")]
#[test]
fn serves() {}

fn main() {}
