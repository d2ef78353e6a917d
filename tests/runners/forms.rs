//! The three forms of the attribute, letter by letter as the design has them.

use mirakuru::TcpExecutor;
use rstest::rstest;

struct Client {
    server: TcpExecutor,
}

impl Client {
    fn connect(server: TcpExecutor) -> Client {
        Client { server }
    }
}

// (a) on a test: the service lives as long as the test. The parameter is optional, and is `&T`,
// `&mut T` or `T`.
#[mirakuru::fixture(tcp = "localhost:6379", cmd = "redis-server")]
#[test]
fn counts_visits(redis: &TcpExecutor) { /* .. */ }

// (b) on a static: shared, started at first use, once. `REDIS.port()` starts it.
#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port}")]
static REDIS: TcpExecutor;

// (c) on any other fn: an rstest fixture. `-> T` is per test, `-> &'static T` is shared.
#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port}")]
fn redis() -> TcpExecutor;

#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port}")]
// A body runs once the service is ready.
fn client(server: TcpExecutor) -> Client { Client::connect(server) }

#[rstest]
#[case(1)]
#[case(2)]
fn sets_a_key(redis: TcpExecutor, #[case] key: u32) { /* .. */ }

// These are all forms. Now they are used.

#[test]
fn the_static_starts() {
    assert!(std::net::TcpStream::connect(("127.0.0.1", REDIS.port())).is_ok());
}

#[rstest]
fn the_client_has_its_server(client: Client) {
    assert!(std::net::TcpStream::connect(client.server.addr()).is_ok());
}
