use rstest::rstest;

#[mirakuru::fixture(cmd = "redis-server", tcp = 6379)]
#[rstest]
#[case(1)]
async fn test(redis: &mirakuru::TcpExecutor, #[case] number: u32) {
    std::future::ready((redis.port(), number)).await;
}

fn main() {}
