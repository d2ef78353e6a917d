//! `#[mirakuru::fixture(..)]` on functions that become rstest fixtures, and on tests that also have
//! rstest's attributes.
#![cfg(feature = "rstest")]
#![deny(warnings, clippy::pedantic)]
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};

use mirakuru::{Executor, ExecutorBuilder, SimpleExecutor, Tcp, TcpExecutor};
use rstest::{fixture, rstest};

/// A Redis client that needs no library. Each command is one line.
struct Client {
    server: TcpExecutor,
    stream: TcpStream,
}

impl Client {
    fn connect(server: TcpExecutor) -> Client {
        let stream = TcpStream::connect(server.addr()).unwrap();
        Client { server, stream }
    }

    fn ask(&mut self, command: &str) -> String {
        ask(&mut self.stream, command)
    }
}

fn ask(stream: &mut TcpStream, command: &str) -> String {
    stream.write_all(format!("{command}\r\n").as_bytes()).unwrap();
    let mut answer = [0; 512];
    let length = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..length]).trim_end().to_owned()
}

// ---- a service for each test --------------------------------------------------------------------

#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port} --save ''")]
fn redis() -> TcpExecutor;

/// A fixture whose body creates a client of the service.
#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port} --save ''")]
fn client(server: TcpExecutor) -> Client {
    Client::connect(server)
}

#[rstest]
fn the_service_itself(redis: TcpExecutor) {
    assert!(redis.is_running());
    assert!(TcpStream::connect(redis.addr()).is_ok());
}

#[rstest]
#[case(1)]
#[case(2)]
fn cases(redis: TcpExecutor, #[case] key: u32) {
    let mut stream = TcpStream::connect(redis.addr()).unwrap();
    assert_eq!(ask(&mut stream, "DBSIZE"), ":0", "each case has its own");
    assert_eq!(ask(&mut stream, &format!("SET {key} x")), "+OK");
}

#[rstest]
fn values(mut client: Client, #[values(1, 2)] a: u32, #[values("x", "y")] b: &str) {
    assert!(client.server.is_running());
    assert_eq!(client.ask(&format!("SET {a} {b}")), "+OK");
}

#[rstest]
fn under_another_name(#[from(client)] mut first: Client, #[from(client)] second: Client) {
    assert_eq!(first.ask("PING"), "+PONG");
    assert_ne!(first.server.pid(), second.server.pid());
}

// ---- parameters of rstest -----------------------------------------------------------------------

#[fixture]
fn database() -> u32 {
    3
}

/// A client of one database. rstest passes the other parameters.
#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port} --save ''")]
pub fn selected(mut server: TcpExecutor, database: u32, #[default(7)] value: u32) -> (Client, u32) {
    assert!(!server.stopped(|| false).unwrap(), "it is ours to stop");
    let mut client = Client::connect(server);
    assert_eq!(client.ask(&format!("SELECT {database}")), "+OK");
    (client, value)
}

#[rstest]
fn parameters(mut selected: (Client, u32)) {
    assert_eq!(selected.1, 7);
    assert!(selected.0.ask("CLIENT INFO").contains(" db=3 "));
}

#[rstest]
fn parameters_with_values(#[with(5, 8)] selected: (Client, u32)) {
    let (mut client, value) = selected;
    assert_eq!(value, 8);
    assert!(client.ask("CLIENT INFO").contains(" db=5 "));
}

#[fixture]
fn seconds() -> u32 {
    60
}

/// The recipe can use the function's parameters.
#[mirakuru::fixture(Executor::builder("sleep").arg(seconds.to_string()))]
fn sleeper(seconds: u32) -> SimpleExecutor;

#[rstest]
fn parameters_of_the_recipe(
    sleeper: SimpleExecutor,
    #[from(sleeper)]
    #[with(61)]
    other: SimpleExecutor,
) {
    assert!(sleeper.command().ends_with(" 60"));
    assert!(other.command().ends_with(" 61"));
}

// ---- several services for one value -------------------------------------------------------------

#[mirakuru::fixture(cmd = "sleep 60")]
#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port} --save ''", name = redis)]
fn both(redis: TcpExecutor, sleeper: SimpleExecutor) -> (TcpExecutor, SimpleExecutor) {
    (redis, sleeper)
}

#[rstest]
fn several(both: (TcpExecutor, SimpleExecutor)) {
    assert!(both.0.is_running() && both.1.is_running());
}

// ---- shared services ----------------------------------------------------------------------------

static BODIES: AtomicU32 = AtomicU32::new(0);

#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port} --save ''")]
fn shared_redis() -> &'static TcpExecutor;

/// For `&'static T` the body returns a `T`, and runs once.
#[mirakuru::fixture(
    tcp = "127.0.0.1:{port}",
    cmd = "redis-server --port {port} --save ''",
    scope = "process"
)]
fn migrated(server: TcpExecutor, database: u32) -> &'static (TcpExecutor, u32) {
    if BODIES.fetch_add(1, Ordering::SeqCst) == 0 {
        return (server, database);
    }
    panic!("the body ran again");
}

/// All tests share the service, but each has its own client.
#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port} --save ''")]
fn connection(server: &'static TcpExecutor) -> (u32, TcpStream) {
    (server.pid(), TcpStream::connect(server.addr()).unwrap())
}

#[rstest]
fn shared(
    shared_redis: &'static TcpExecutor,
    #[from(shared_redis)] again: &TcpExecutor,
    #[values(1, 2)] repeated: u32,
) {
    static PID: AtomicU32 = AtomicU32::new(0);
    assert!(repeated > 0);
    assert_eq!(shared_redis.pid(), again.pid());
    let before = PID.swap(shared_redis.pid(), Ordering::SeqCst);
    assert!(before == 0 || before == shared_redis.pid());
}

#[rstest]
fn shared_with_a_body(migrated: &(TcpExecutor, u32), #[values(1, 2)] repeated: u32) {
    assert!(repeated > 0);
    assert!(migrated.0.is_running());
    assert_eq!(migrated.1, 3);
}

#[rstest]
fn shared_service(mut connection: (u32, TcpStream), #[from(connection)] mut other: (u32, TcpStream)) {
    assert_eq!(connection.0, other.0, "one service");
    assert_ne!(
        ask(&mut connection.1, "CLIENT ID"),
        ask(&mut other.1, "CLIENT ID"),
        "two connections"
    );
}

// ---- async fixtures -----------------------------------------------------------------------------

#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port} --save ''")]
async fn later(server: TcpExecutor) -> Client {
    tokio::task::yield_now().await;
    Client::connect(server)
}

#[rstest]
#[tokio::test]
async fn async_fixtures(
    #[future(awt)] mut later: Client,
    #[future]
    #[from(later)]
    unawaited: Client,
    redis: TcpExecutor,
) {
    assert_eq!(later.ask("PING"), "+PONG");
    assert_eq!(unawaited.await.ask("PING"), "+PONG");
    assert!(redis.is_running());
}

// ---- tests of rstest ----------------------------------------------------------------------------

#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = "redis-server --port {port} --save ''")]
#[rstest]
#[case(1)]
#[case(2)]
fn on_cases(redis: &TcpExecutor, #[case] key: u32) -> Result<(), std::io::Error> {
    let mut stream = TcpStream::connect(redis.addr())?;
    assert_eq!(ask(&mut stream, &format!("SET {key} x")), "+OK");
    Ok(())
}

#[mirakuru::fixture(cmd = format!("sleep {seconds}"), name = sleeper)]
#[rstest]
#[case(60)]
#[tokio::test]
async fn on_async_cases(#[case] seconds: u32, database: u32, mut sleeper: SimpleExecutor) {
    assert!(sleeper.command().ends_with(&format!(" {seconds}")));
    assert_eq!(database, 3);
    tokio::task::yield_now().await;
    sleeper.stop().unwrap();
}

#[mirakuru::fixture(cmd = "sleep 60")]
#[rstest]
#[should_panic(expected = "as it should")]
#[case::panics(true)]
#[case::does_not(false)]
fn on_cases_one_of_which_panics(sleeper: &SimpleExecutor, #[case] panics: bool) {
    assert!(sleeper.is_running());
    assert!(!panics, "as it should");
}

// ---- recipes ------------------------------------------------------------------------------------

fn recipe() -> ExecutorBuilder<Tcp> {
    Executor::builder("redis-server --port {port} --save ''").wait_for(Tcp::addr("127.0.0.1:{port}"))
}

/// A fixture can return any value made from a service, and may already have rstest's `#[fixture]`.
#[mirakuru::fixture(recipe())]
#[fixture]
fn address(server: &'static TcpExecutor) -> SocketAddr {
    server.addr()
}

#[rstest]
fn a_recipe(address: SocketAddr) {
    assert!(TcpStream::connect(address).is_ok());
}
