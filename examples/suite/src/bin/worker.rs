//! `worker SERVER`: visits the shop at this address every 20 ms, and prints `at work` after its
//! first successful visit.

use std::net::SocketAddr;
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server: SocketAddr = std::env::args().nth(1).ok_or("usage: worker SERVER")?.parse()?;
    let mut is_in = false;
    loop {
        let visit = shop::get(server, "/visits");
        if !is_in && visit.is_ok_and(|(status, _)| status == 200) {
            is_in = true;
            println!("at work");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
