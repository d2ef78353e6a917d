//! A minimal HTTP client, for servers that are administered over HTTP.

use std::io;

use super::connection::{self, Connection};

/// Maximum size of an answer in bytes. The rest is cut off.
const LONGEST: usize = 64 << 20;

/// Sends a request, and closes the connection. Returns the status and the body of the answer.
pub(super) fn request(
    mut connection: Connection,
    method: &str,
    path: &str,
    authorization: Option<&str>,
    body: &str,
) -> io::Result<(u16, String)> {
    let authorization = authorization.map_or_else(String::new, |it| format!("Authorization: {it}\r\n"));
    let head = format!(
        "{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         {authorization}\r\n",
        body.len()
    );
    connection.send((head + body).as_bytes())?;
    let answer = connection::read(&mut connection.0, LONGEST)?;
    let answer = String::from_utf8_lossy(&answer);
    let parts = answer.split_once("\r\n\r\n");
    let status = |head: &str| head.split(' ').nth(1)?.parse().ok();
    match parts.and_then(|(head, body)| Some((status(head)?, body.to_owned()))) {
        Some(answer) => Ok(answer),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it does not speak HTTP",
        )),
    }
}

/// The string values of all fields with this name. Escapes in the strings are not supported.
pub(super) fn texts<'a>(json: &'a str, name: &str) -> Vec<&'a str> {
    let name = format!("\"{name}\":\"");
    let (mut values, mut rest) = (Vec::new(), json);
    while let Some((_, from_value)) = rest.split_once(&name) {
        let value = from_value.split('"').next().unwrap_or_default();
        values.push(value);
        rest = &from_value[value.len()..];
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_in_json() {
        let json = r#"{"kvs":[{"key":"bWs=","lease":"0"},{"key":"bWt4"}],"count":"2"}"#;
        assert_eq!(texts(json, "key"), ["bWs=", "bWt4"]);
        assert!(texts("{}", "key").is_empty());
    }
}
