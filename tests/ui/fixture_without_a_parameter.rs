struct Client;

#[mirakuru::fixture(cmd = "sleep 60")]
fn client() -> Client {
    Client
}

fn main() {
    client();
}
