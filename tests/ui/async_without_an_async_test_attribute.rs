#[mirakuru::fixture(cmd = "redis-server", tcp = 6379)]
#[test]
async fn test(redis: &mirakuru::TcpExecutor) {
    std::future::ready(redis.port()).await;
}

fn main() {}
