//! The three forms of the attribute.

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

// (a) On a test: the service lives as long as the test. The parameter is optional, and is `&T`,
// `&mut T` or `T`.
#[mirakuru::fixture(tcp = "localhost:6379", cmd = "redis-server")]
#[test]
fn counts_visits(redis: &TcpExecutor) { /* .. */ }

// (b) On a static: the service is shared, and starts once, at its first use. `REDIS.port()` starts
// it.
#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port}")]
static REDIS: TcpExecutor;

// (c) On any other function: an rstest fixture. `-> T` is a service for each test, `-> &'static T`
// is shared.
#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port}")]
fn redis() -> TcpExecutor;

#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port}")]
// A body runs once the service is ready.
fn client(server: TcpExecutor) -> Client { Client::connect(server) }

#[rstest]
#[case(1)]
#[case(2)]
fn sets_a_key(redis: TcpExecutor, #[case] key: u32) { /* .. */ }

// The tests below use the forms above.

#[test]
fn the_static_starts() {
    assert!(std::net::TcpStream::connect(("127.0.0.1", REDIS.port())).is_ok());
}

#[rstest]
fn the_client_has_its_server(client: Client) {
    assert!(std::net::TcpStream::connect(client.server.addr()).is_ok());
}
