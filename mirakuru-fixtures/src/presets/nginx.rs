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
    // nginx runs as root if the tests do: it must read their files.
    users: &[],
    as_root: AsRoot::With(&[]),
    needs: &[],
    external: None,
};

/// An nginx with this text in its `http` block, usually one `server` or more: see [`Nginx`].
/// `{port}` and `{dir}` in it are [placeholders](ExecutorBuilder).
///
/// ```
/// # use mirakuru_fixtures::presets;
/// let recipe = presets::nginx("server { listen 127.0.0.1:{port}; location / { return 200 'hello'; } }");
/// # let _ = recipe;
/// ```
///
/// An empty text means one server on `{port}`, with the files of
/// [`document_root`](NginxRecipe::document_root) if there is one.
pub fn nginx(configuration: impl Into<String>) -> NginxRecipe {
    NginxRecipe {
        options: Options::default(),
        configuration: configuration.into(),
        main: String::new(),
        raw: false,
        document_root: None,
    }
}

/// A recipe for an nginx: made by [`nginx()`].
///
/// The preset adds this around the text:
///
/// - one worker, in the foreground;
/// - the error log, from `notice` on, on standard error, and the access log on standard output, so
///   that both are in the [logs](Executor::logs);
/// - the types of files by name, if the machine has `/etc/nginx/mime.types`;
/// - the pid, the lock and temporary files in `{dir}`.
///
/// A [`file`](NginxRecipe::file) lies beside the configuration, which can use its relative path.
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
    /// Adds text before the blocks, in the context that nginx calls main: `main("load_module
    /// modules/ngx_stream_module.so;")`. An `events` block in it replaces the preset's.
    pub fn main(mut self, text: impl AsRef<str>) -> Self {
        self.main.push_str(text.as_ref());
        self.main.push('\n');
        self
    }

    /// Takes the text given to [`nginx()`] as the whole configuration file, and not as the content
    /// of `http`. The preset adds nothing around it. The argument `-g "daemon off;"` keeps nginx in
    /// the foreground, so the text must not set this itself.
    pub fn raw(mut self) -> Self {
        self.raw = true;
        self
    }

    /// Sets the directory whose files are served, unless the text sets a `root` in the `http`
    /// block. A relative path counts from the working directory, which for tests is the folder of
    /// their package. The path may not contain a `$`, with which nginx begins a variable.
    pub fn document_root(mut self, dir: impl AsRef<Path>) -> Self {
        self.document_root = Some(dir.as_ref().to_owned());
        self
    }

    /// The text, with the number of the port if it is fixed.
    fn placed(&self, text: &str) -> String {
        match self.options.port {
            Some(port) => with_port(text, port),
            None => text.to_owned(),
        }
    }

    /// The whole configuration file. The user's texts are in files of their own, so that line
    /// numbers in nginx's errors are the user's.
    fn whole(&self) -> Result<String, Error> {
        let mut text = "pid nginx.pid;\nlock_file nginx.lock;\nerror_log stderr notice;\n".to_owned();
        if is_root() {
            // This lets nginx's workers read the files of the tests.
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
                .ok_or_else(|| Error::other("configure nginx", "`document_root` is not a path in UTF-8"))?;
            text.push_str(&format!(
                "    root {};\n",
                literal(quoted(root)).to_string_lossy()
            ));
        }
        text.push_str("    include http.conf;\n}\n");
        Ok(text)
    }
}

/// Quotes a text as one word of nginx's configuration. (A dollar sign still begins a variable:
/// nginx cannot escape it.)
fn quoted(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{text}\"")
}

/// Replaces each `{port}` by a fixed port.
fn with_port(text: &str, port: u16) -> String {
    let placeholder = "{port}";
    let mut placed = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(placeholder) {
        let (before, after) = rest.split_at(at);
        placed.push_str(before);
        // This is a variable of nginx, or an escaped placeholder.
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

// The compiler's list of recipes in an error is long enough without this one.
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
                "its configuration listens on no `{port}`: write `listen 127.0.0.1:{port};`, \
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
                // Without a host in the request, nginx itself refuses it, and asks no server behind
                // it.
                connection.send(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")?;
                match connection.line() {
                    Ok(_) => Ok(true),
                    // A server that closes the connection in order (`return 444`) is ready, too.
                    Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(true),
                    // The protocol of the server may not be text.
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

/// A running nginx, of version 1.19.5 or later.
///
/// Tests may share an nginx as long as they only read, because nothing but files can be kept apart.
/// It runs as the user of the tests, even if that is root, so that it can read their files.
///
/// nginx stops by its fast shutdown, which does not wait for open requests. To change its
/// configuration, write `nginx.dir().join("http.conf")` and call `nginx.signal(Signal::Hup)`. The
/// next start restores the recipe's text.
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
