//! The program under test is this package's own binary. `bin` finds the file that cargo has built
//! for integration tests and benches.

use mirakuru::{HttpExecutor, Signal, presets};

#[mirakuru::fixture(bin = "shop", args = ["127.0.0.1:{port}"], http = "http://127.0.0.1:{port}/health")]
#[test]
fn a_page_that_is_not_there(shop: &HttpExecutor) {
    assert_eq!(shop::get(shop.addr(), "/cellar").unwrap().0, 404);
    assert!(shop.logs().stdout().starts_with("open at 127.0.0.1:"));
}

/// A fixture that stands above is in scope below: the shop starts once its Redis is ready.
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
    shop.stop()?; // Checked: a crash that nobody has noticed is an error here.
    Ok(())
}

/// A program that must end with a certain status when it is told to. The shop does not handle
/// signals, so the signal itself ends it.
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
