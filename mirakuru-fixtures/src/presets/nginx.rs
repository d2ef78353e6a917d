//! nginx, a web server.

use std::io;
use std::path::{Path, PathBuf};

use mirakuru_core::__private::{is_root, literal};
use mirakuru_core::{Error, Executor, ExecutorBuilder};

use super::Answers;
use super::server::{AsRoot, Options, Server, handle, options};
use crate::Recipe;

const SERVER: Server = Server {
    name: "nginx",
    programs: &["nginx"],
    // If the tests run as root, so does nginx, so that it can read their files.
    users: &[],
    as_root: AsRoot::With(&[]),
    needs: &[],
    external: None,
};

/// An nginx server with this text in its `http` block, usually one or more `server` blocks: see
/// [`Nginx`]. The text may contain the [placeholders](ExecutorBuilder) `{port}` and `{dir}`.
///
/// ```
/// # use mirakuru_fixtures::presets;
/// let recipe = presets::nginx("server { listen 127.0.0.1:{port}; location / { return 200 'hello'; } }");
/// # let _ = recipe;
/// ```
///
/// If the text is empty, the preset adds a server that listens on `{port}`, and that serves
/// [`document_root`](NginxRecipe::document_root) if it is set.
pub fn nginx(configuration: impl Into<String>) -> NginxRecipe {
    NginxRecipe {
        options: Options::default(),
        configuration: configuration.into(),
        main: String::new(),
        raw: false,
        document_root: None,
    }
}

/// A recipe for an nginx server, created by [`nginx()`].
///
/// The preset adds these settings around the text:
///
/// - one worker, in the foreground;
/// - the error log (`notice` and above) on standard error, and the access log on standard output,
///   so that both are in the [logs](Executor::logs);
/// - MIME types by file name, if the machine has `/etc/nginx/mime.types`;
/// - the pid file, the lock file and temporary files in `{dir}`.
///
/// The configuration can refer to a [`file`](NginxRecipe::file) by the same relative path.
#[derive(Clone, Debug)]
#[must_use = "a recipe does nothing until it is started"]
pub struct NginxRecipe {
    options: Options,
    configuration: String,
    main: String,
    raw: bool,
    document_root: Option<PathBuf>,
}

options!(NginxRecipe);

impl NginxRecipe {
    /// Adds text before the `events` and `http` blocks, in nginx's main context: `main("load_module
    /// modules/ngx_stream_module.so;")`. If the text contains an `events` block, the preset adds
    /// none.
    pub fn main(mut self, text: impl AsRef<str>) -> Self {
        self.main.push_str(text.as_ref());
        self.main.push('\n');
        self
    }

    /// Uses the text given to [`nginx()`] as the whole configuration file, without the preset's
    /// additions. The text must not set `daemon`, because the argument `-g "daemon off;"` keeps
    /// nginx in the foreground.
    pub fn raw(mut self) -> Self {
        self.raw = true;
        self
    }

    /// Sets the directory whose files are served. A `root` in a `server` or `location` block
    /// overrides it; the `http` block must not set another `root`.
    ///
    /// A relative path is resolved against the working directory, which `cargo test` sets to the
    /// package's directory. The path must not contain a `$`, because nginx would take it for the
    /// start of a variable.
    pub fn document_root(mut self, dir: impl AsRef<Path>) -> Self {
        self.document_root = Some(dir.as_ref().to_owned());
        self
    }

    /// If the recipe sets a fixed port, replaces each `{port}` in the text with it.
    fn placed(&self, text: &str) -> String {
        match self.options.port {
            Some(port) => with_port(text, port),
            None => text.to_owned(),
        }
    }

    /// The whole configuration file. It includes the user's texts as separate files, so that
    /// nginx's errors show the user's line numbers.
    fn whole(&self) -> Result<String, Error> {
        let mut text = "pid nginx.pid;\nlock_file nginx.lock;\nerror_log stderr notice;\n".to_owned();
        if is_root() {
            // The workers run as root, so that they can read the files of the tests.
            text.push_str("user root;\n");
        }
        text.push_str("include main.conf;\n");
        if !self.main.contains("events") {
            text.push_str("events {}\n");
        }
        text.push_str("http {\n");
        let types = "/etc/nginx/mime.types";
        if Path::new(types).exists() {
            text.push_str(&format!("    include {types};\n"));
        }
        text.push_str("    access_log /dev/stdout;\n");
        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            text.push_str(&format!("    {kind}_temp_path {kind}_temp;\n"));
        }
        if let Some(root) = &self.document_root {
            let root = std::path::absolute(root).ok();
            let root = root
                .as_deref()
                .and_then(Path::to_str)
                .ok_or_else(|| Error::other("configure nginx", "the path of `document_root` is not UTF-8"))?;
            text.push_str(&format!(
                "    root {};\n",
                literal(quoted(root)).to_string_lossy()
            ));
        }
        text.push_str("    include http.conf;\n}\n");
        Ok(text)
    }
}

/// Quotes a string for nginx's configuration. A dollar sign still begins a variable, because nginx
/// cannot escape it.
fn quoted(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{text}\"")
}

/// Replaces each `{port}` with a fixed port.
fn with_port(text: &str, port: u16) -> String {
    let placeholder = "{port}";
    let mut placed = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(placeholder) {
        let (before, after) = rest.split_at(at);
        placed.push_str(before);
        // `${port}` is a variable of nginx, and `{{port}}` is an escaped placeholder.
        if before.ends_with(['$', '{']) {
            placed.push_str(placeholder);
        } else {
            placed.push_str(&port.to_string());
        }
        rest = &after[placeholder.len()..];
    }
    placed.push_str(rest);
    placed
}

// Keeps this type out of the list of implementors in compiler errors about `Recipe`.
#[diagnostic::do_not_recommend]
impl Recipe for NginxRecipe {
    type Readiness = Answers;
    type Handle = Nginx;

    fn executor(&self) -> Result<ExecutorBuilder<Answers>, Error> {
        let configuration = match self.configuration.trim() {
            "" => "server { listen 127.0.0.1:{port}; }",
            _ => &self.configuration,
        };
        if self.options.port.is_none() && !configuration.contains("{port}") && !self.main.contains("{port}") {
            return Err(Error::other(
                "configure nginx",
                "its configuration does not listen on `{port}`: write `listen 127.0.0.1:{port};`, \
                 or name the port that it does listen on with `port(..)`",
            ));
        }
        let mut options = self.options.clone();
        for (_, text) in &mut options.files {
            *text = self.placed(text);
        }
        let args = [
            "-e",
            "stderr",
            "-p",
            "{dir}",
            "-c",
            "nginx.conf",
            "-g",
            "daemon off;",
        ];
        let mut recipe = options.recipe(&SERVER, &args)?;
        if self.raw {
            recipe = recipe.file("nginx.conf", self.placed(configuration));
        } else {
            recipe = recipe
                .file("nginx.conf", self.whole()?)
                .file("main.conf", self.placed(&self.main))
                .file("http.conf", self.placed(configuration));
        }
        Ok(
            recipe.wait_for(self.options.answers("answered in HTTP", |mut connection| {
                // nginx itself refuses a request without a `Host`, so the check does not reach the
                // servers behind nginx.
                connection.send(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")?;
                match connection.line() {
                    Ok(_) => Ok(true),
                    // A server that closes the connection without an answer (`return 444`) counts
                    // as ready too.
                    Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(true),
                    // The answer may be binary, for example from a `stream` server.
                    Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(true),
                    Err(e) => Err(e),
                }
            })),
        )
    }

    fn handle(self, executor: Executor<Answers>) -> Result<Nginx, Error> {
        Ok(Nginx { executor })
    }
}

/// A running nginx, version 1.19.5 or later.
///
/// Tests can share an nginx only if they do not change its files, because the preset has nothing to
/// lease. nginx runs as the user of the tests, even if that is root, so that it can read their
/// files.
///
/// mirakuru stops nginx with its fast shutdown, which does not wait for open requests. To change
/// the configuration, write `nginx.dir().join("http.conf")` and call `nginx.signal(Signal::Hup)`.
/// The next start restores the recipe's text.
///
/// ```no_run
/// # use mirakuru_fixtures as mirakuru;
/// use mirakuru::{Recipe, presets};
///
/// let nginx = presets::nginx("").document_root("tests/site").start()?;
/// println!("{}", nginx.url()); // http://127.0.0.1:41873
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
pub struct Nginx {
    executor: Executor<Answers>,
}

handle!(Nginx);

impl Nginx {
    /// The URL: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.executor.addr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_port_takes_the_place_of_the_placeholder_and_of_nothing_else() {
        let text = "listen {port}; return 200 '${port} {{port}} {port:x}'; listen [::1]:{port};";
        assert_eq!(
            with_port(text, 80),
            "listen 80; return 200 '${port} {{port}} {port:x}'; listen [::1]:80;"
        );
    }

    #[test]
    fn a_configuration_that_listens_nowhere_is_an_error() {
        let error = nginx("server { listen 8080; }").executor().unwrap_err();
        assert!(error.to_string().contains("listen 127.0.0.1:{port};"), "{error}");
        assert!(nginx("server { listen 8080; }").port(8080).executor().is_ok());
        assert!(nginx(" \n").executor().is_ok());
    }
}
