#[mirakuru::fixture(cmd = "redis-server", tcp = 6379)]
fn address(server: &mirakuru::TcpExecutor) -> std::net::SocketAddr {
    server.addr()
}

fn main() {}
