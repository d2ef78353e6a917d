//! Tests how the shop behaves while its Redis is stopped or hangs, or after Redis has lost its
//! data.

use std::io;
use std::time::{Duration, Instant};

use mirakuru::{Error, HttpExecutor, presets};

#[mirakuru::fixture(presets::redis())]
#[mirakuru::fixture(
    bin = "shop",
    args = ["127.0.0.1:{port}".to_owned(), redis.addr().to_string()],
    http = "http://127.0.0.1:{port}/health"
)]
#[test]
fn the_shop_bears_the_loss_of_redis(
    mut redis: presets::Redis,
    shop: HttpExecutor,
) -> Result<(), Box<dyn std::error::Error>> {
    let visits = || shop::get(shop.addr(), "/visits");
    assert_eq!(visits()?, (200, "1".to_owned()));

    // Redis is down while the closure runs. Afterwards it is started again on the same port, even
    // if the closure panics.
    let during = redis.stopped(visits)??;
    assert_eq!(during.0, 503);

    // Redis is back, but empty, because it keeps its data in memory only.
    assert_eq!(visits()?, (200, "1".to_owned()));
    Ok(())
}

/// A server that is down refuses connections immediately. A server that hangs is worse: it accepts
/// connections, but never replies.
#[mirakuru::fixture(presets::redis())]
#[test]
fn a_redis_that_hangs_costs_no_more_than_its_time_out(redis: &mut presets::Redis) -> Result<(), Error> {
    redis.pause()?;
    let begin = Instant::now();
    let error = shop::count_visit(redis.addr(), 0).unwrap_err();
    let took = begin.elapsed();
    redis.resume()?;

    assert!(
        matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        "{error}"
    );
    assert!(took < shop::PATIENCE + Duration::from_secs(5), "{took:?}");

    // Redis received the first request while it hung, and counted that visit once it ran again.
    assert_eq!(shop::count_visit(redis.addr(), 0).unwrap(), 2);
    Ok(())
}
