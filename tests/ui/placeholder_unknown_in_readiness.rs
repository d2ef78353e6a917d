#[mirakuru::fixture(cmd = "redis-server --port {port}", tcp = "{host}:{port}")]
static REDIS: mirakuru::TcpExecutor;

fn main() {
    REDIS.port();
}
