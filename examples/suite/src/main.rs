//! `shop ADDRESS [REDIS]`: serves `/health`, and `/visits` while its Redis answers.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let address = args.next().ok_or("usage: shop ADDRESS [REDIS]")?;
    let redis: Option<SocketAddr> = args.next().map(|redis| redis.parse()).transpose()?;

    let listener = TcpListener::bind(&address)?;
    println!("open at {}", listener.local_addr()?);
    for stream in listener.incoming() {
        if let Err(error) = serve(stream?, redis) {
            eprintln!("a guest was lost: {error}");
        }
    }
    Ok(())
}

fn serve(mut stream: TcpStream, redis: Option<SocketAddr>) -> io::Result<()> {
    let mut request = String::new();
    let mut lines = BufReader::new(&stream);
    lines.read_line(&mut request)?;
    let mut header = String::new();
    while lines.read_line(&mut header)? > 2 {
        header.clear();
    }

    let (status, body) = match request.split(' ').nth(1) {
        Some("/health") => ("200 OK", "fine".to_owned()),
        Some("/visits") => match redis.map(|redis| shop::count_visit(redis, 0)) {
            Some(Ok(count)) => ("200 OK", count.to_string()),
            Some(Err(error)) => ("503 Service Unavailable", error.to_string()),
            None => ("503 Service Unavailable", "no Redis".to_owned()),
        },
        _ => ("404 Not Found", String::new()),
    };
    let length = body.len();
    write!(stream, "HTTP/1.0 {status}\r\nContent-Length: {length}\r\n\r\n")?;
    if !request.starts_with("HEAD") {
        stream.write_all(body.as_bytes())?;
    }
    Ok(())
}
