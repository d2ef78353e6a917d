//! Fixtures as functions. rstest passes their values to the parameters with the same names.

use mirakuru::rstest::{self, rstest}; // Or use your own dependency on rstest.
use mirakuru::{TcpExecutor, presets};

/// Each test has its own Redis.
#[mirakuru::fixture(presets::redis())]
fn redis_server() -> presets::Redis;

/// Returns the service together with other data. The body runs once the service is ready.
#[mirakuru::fixture(presets::redis())]
fn busy_shop(server: presets::Redis) -> (presets::Redis, u64) {
    let visits = (1..=10)
        .map(|_| shop::count_visit(server.addr(), 0).unwrap())
        .last();
    (server, visits.unwrap())
}

/// All tests share the service, because it is returned as `&'static`.
#[mirakuru::fixture(bin = "shop", args = ["127.0.0.1:{port}"], tcp = "127.0.0.1:{port}")]
fn open_shop() -> &'static TcpExecutor;

#[rstest]
#[case(1)]
#[case(3)]
fn visits_are_counted(redis_server: presets::Redis, #[case] visits: u64) {
    for visit in 1..=visits {
        assert_eq!(shop::count_visit(redis_server.addr(), 0).unwrap(), visit);
    }
}

#[rstest]
fn the_eleventh_visit(#[from(busy_shop)] (redis, visits): (presets::Redis, u64)) {
    assert_eq!(shop::count_visit(redis.addr(), 0).unwrap(), visits + 1);
}

#[rstest]
#[case("/health", 200)]
#[case("/visits", 503)]
#[case("/cellar", 404)]
fn each_page(open_shop: &TcpExecutor, #[case] page: &str, #[case] status: u16) {
    assert_eq!(shop::get(open_shop.addr(), page).unwrap().0, status);
}
