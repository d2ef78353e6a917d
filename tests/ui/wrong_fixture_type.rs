#[mirakuru::fixture(cmd = "redis-server", tcp = 6379)]
fn redis_server() -> mirakuru::UnixSocketExecutor;

fn main() {
    redis_server();
}
