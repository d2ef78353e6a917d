//! Async tests. The fixture attribute goes above `tokio::test`. The service starts before the
//! runtime's first task, and stops after its last.

use std::time::Duration;

use mirakuru::{TcpExecutor, presets};

#[mirakuru::fixture(bin = "shop", args = ["127.0.0.1:{port}"], tcp = "127.0.0.1:{port}")]
#[tokio::test]
async fn answers_while_others_wait(shop: &TcpExecutor) {
    let address = shop.addr();
    let page = tokio::task::spawn_blocking(move || shop::get(address, "/health"));
    let page = tokio::time::timeout(Duration::from_secs(10), page).await;
    assert_eq!(page.unwrap().unwrap().unwrap(), (200, "fine".to_owned()));
}

/// Start, stop and restart block their thread for a few milliseconds. If that matters, use
/// `spawn_blocking`.
#[mirakuru::fixture(presets::redis())]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn is_back_after_a_restart(mut redis: presets::Redis) -> Result<(), Box<dyn std::error::Error>> {
    let address = redis.addr();
    let redis = tokio::task::spawn_blocking(move || redis.restart().map(|()| redis)).await??;
    assert_eq!(redis.addr(), address);
    let count = tokio::task::spawn_blocking(move || shop::count_visit(address, 0)).await??;
    assert_eq!(count, 1);
    Ok(())
}
