//! Mosquitto, an MQTT broker.

use std::io::{self, Read};

use mirakuru_core::{Error, Executor, ExecutorBuilder};

use super::Answers;
use super::connection::Connection;
use super::external::External;
use super::prefix::prefix;
use super::server::{AsRoot, Options, Server, handle, of_executor, options};
use crate::Recipe;

mod external;

pub(super) const SERVER: Server = Server {
    name: "Mosquitto",
    programs: &["mosquitto"],
    users: &["mosquitto", "nobody"],
    as_root: AsRoot::With(&[]),
    needs: &[],
    external: Some(&external::PROTOCOL),
};

/// A Mosquitto broker: see [`Mosquitto`].
pub fn mosquitto() -> MosquittoRecipe {
    MosquittoRecipe {
        options: Options::default(),
    }
}

/// A recipe for a Mosquitto broker, created by [`mosquitto()`].
#[derive(Clone, Debug)]
#[must_use = "a recipe does nothing until it is started"]
pub struct MosquittoRecipe {
    options: Options,
}

options!(MosquittoRecipe, durable);

impl MosquittoRecipe {
    /// Adds a line to the configuration, after the preset's lines: `config("max_packet_size",
    /// "1048576")`. The line replaces any preset line with the same key. Listener settings apply to
    /// the preset's listener, or to the last one that `config("listener", ..)` has added.
    pub fn config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.config.push((key.into(), value.into()));
        self
    }

    fn text(&self) -> String {
        let listener = format!("{} 127.0.0.1", self.options.port());
        let mut lines = vec![
            // Listener settings apply to the listener line before them, so this line comes first.
            ("listener", &*listener),
            ("allow_anonymous", "true"),
            ("log_dest", "stderr"),
            ("persistence", if self.options.durable { "true" } else { "false" }),
            ("persistence_location", "{dir}/"),
        ];
        if SERVER.stays_root().is_some() {
            // Without this line, a broker started by root switches to another user.
            lines.push(("user", "root"));
        }
        lines.retain(|(key, _)| *key == "listener" || self.options.setting(key).is_none());
        let mut text = String::new();
        for (key, value) in self.options.settings(lines) {
            text.push_str(&format!("{key} {value}\n"));
        }
        text
    }
}

// Keeps this type out of the list of implementors in compiler errors about `Recipe`.
#[diagnostic::do_not_recommend]
impl Recipe for MosquittoRecipe {
    of_executor!(Mosquitto);

    fn executor(&self) -> Result<ExecutorBuilder<Answers>, Error> {
        if let Some(external) = self.options.external(&SERVER)? {
            return external.executor(&self.options);
        }
        Ok(self
            .options
            .recipe(&SERVER, &["-c", "{dir}/mosquitto.conf"])?
            .file("mosquitto.conf", self.text())
            .wait_for(self.options.answers("answered CONNECT", answers)))
    }
}

/// Whether the broker answers in MQTT 3.1.1. A refusal counts as an answer.
fn answers(mut connection: Connection) -> io::Result<bool> {
    const CONNECT: &[u8] = b"\x10\x0c\0\x04MQTT\x04\x02\0\x3c\0\0";
    const CONNACK: [u8; 2] = [0x20, 2];
    const UNAVAILABLE: u8 = 3;
    const DISCONNECT: &[u8] = b"\xe0\0";
    connection.send(CONNECT)?;
    let mut answer = [0; 4];
    connection.0.read_exact(&mut answer)?;
    let _ = connection.send(DISCONNECT);
    Ok(answer.starts_with(&CONNACK) && answer[3] != UNAVAILABLE)
}

/// A running Mosquitto broker.
///
/// [`topic_prefix`](Mosquitto::topic_prefix) gives each test its own topics, including retained
/// messages. Tests share `$SYS` and the client ids, and a subscription to `#` gets the messages of
/// all tests. A second client with the same id disconnects the first one. Begin ids with the
/// prefix, or leave them empty.
///
/// Every user of this machine may connect, without a name or a password. To require passwords,
/// create a file with `mosquitto_passwd`, and set `config("allow_anonymous", "false")` and
/// `config("password_file", ..)`.
///
/// A restart loses sessions and retained messages, unless the recipe sets `durable(true)`.
///
/// ```no_run
/// # use mirakuru_fixtures as mirakuru;
/// use mirakuru::{Recipe, presets};
///
/// let mosquitto = presets::mosquitto().config("max_packet_size", "1048576").start()?;
/// assert_eq!(mosquitto.url(), format!("mqtt://127.0.0.1:{}", mosquitto.port()));
/// let prefix = mosquitto.topic_prefix();
/// println!("subscribe to {prefix}#");         // tk4x2m7qzja5w/#
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
pub struct Mosquitto {
    executor: Executor<Answers>,
    external: Option<External>,
}

handle!(Mosquitto, external);

impl Mosquitto {
    /// The URL: `mqtt://127.0.0.1:PORT`, or the URL in `MIRAKURU_MOSQUITTO_URL`.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.external {
            Some(external) => external.shared_url(),
            None => format!("mqtt://{}", self.executor.addr()),
        }
    }
}

prefix!(
    Mosquitto,
    external::BEGIN,
    '/',
    /// A prefix for the topics of one test: `tk4x2m7qzja5w/`.
    topic_prefix,
    try_topic_prefix
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_line_takes_the_place_of_the_presets() {
        let text = mosquitto()
            .durable(true)
            .config("allow_anonymous", "false")
            .config("listener", "1884 127.0.0.1")
            .text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "listener {port} 127.0.0.1",
                "log_dest stderr",
                "persistence true",
                "persistence_location {dir}/",
                "allow_anonymous false",
                "listener 1884 127.0.0.1",
            ]
        );
    }
}
