//! The program under test is one of this package's own binaries. `bin` finds the file that cargo
//! builds for integration tests and benches.

use mirakuru::{HttpExecutor, Signal, presets};

#[mirakuru::fixture(bin = "shop", args = ["127.0.0.1:{port}"], http = "http://127.0.0.1:{port}/health")]
#[test]
fn a_page_that_is_not_there(shop: &HttpExecutor) {
    assert_eq!(shop::get(shop.addr(), "/cellar").unwrap().0, 404);
    assert!(shop.logs().stdout().starts_with("open at 127.0.0.1:"));
}

/// The shop can use `redis`, the fixture above, and starts once Redis is ready.
#[mirakuru::fixture(presets::redis(), name = redis)]
#[mirakuru::fixture(
    bin = "shop",
    args = ["127.0.0.1:{port}".to_owned(), redis.addr().to_string()],
    http = "http://127.0.0.1:{port}/health"
)]
#[test]
fn it_counts_its_visits(mut shop: HttpExecutor) -> Result<(), Box<dyn std::error::Error>> {
    assert_eq!(shop::get(shop.addr(), "/visits")?, (200, "1".to_owned()));
    assert_eq!(shop::get(shop.addr(), "/visits")?, (200, "2".to_owned()));
    shop.stop()?; // Returns an error if the shop has crashed.
    Ok(())
}

/// `stop` checks how the program exits. The shop does not handle signals, so the signal itself
/// kills it.
#[mirakuru::fixture(
    bin = "shop",
    args = ["127.0.0.1:{port}"],
    tcp = "127.0.0.1:{port}",
    stop_signal = Signal::Int
)]
#[test]
fn it_ends_at_ctrl_c(mut shop: mirakuru::TcpExecutor) -> Result<(), mirakuru::Error> {
    shop.stop()?;
    assert!(!shop.is_running());
    Ok(())
}
