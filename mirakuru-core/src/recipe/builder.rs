//! The recipe: plain data that describes how to start a service. Creating a recipe starts no
//! process, reserves no port and creates no file.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::recipe::command::{ADD_SHELL, Command, IntoCommand, Words, globs, shell_syntax};
use crate::recipe::signal::Signal;

/// The recipe of a service, created with [`Executor::builder`](crate::executor::Executor::builder).
///
/// The setters take and return the recipe by value. They have the names of
/// [`std::process::Command`]'s methods wherever the meaning is the same. The recipe is [`Clone`],
/// and nothing runs until [`start`](ExecutorBuilder::start). Variables of this type are usually
/// named `recipe`.
///
/// ```
/// # use mirakuru_core as mirakuru;
/// use std::time::Duration;
/// use mirakuru::{Executor, Signal, Tcp};
///
/// let recipe = Executor::builder("python3 -m http.server")
///     .args(["{port}", "--bind", "127.0.0.1"])
///     .env("PYTHONUNBUFFERED", "1")
///     .current_dir("{dir}")
///     .wait_for(Tcp::addr("127.0.0.1:{port}"))
///     .timeout(Duration::from_secs(20))
///     .stop_signal(Signal::Int);
/// let (one, two) = (recipe.clone().start()?, recipe.start()?);
/// assert_ne!(one.port(), two.port());
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
///
/// # Placeholders
///
/// Commands, arguments, environment values, paths, URLs and readiness strings may contain
/// placeholders, which are filled in when the executor is built:
///
/// | placeholder | value |
/// | --- | --- |
/// | `{port}` | a free TCP port, reserved across processes; the same one again on restart |
/// | `{port:NAME}` | another one, known as NAME |
/// | `{dir}` | a private directory (mode 0700), removed at the end |
/// | `{name}` | the service's [name](ExecutorBuilder::name) |
/// | `{id}` | twelve letters and digits that no other service has; the same ones again on restart |
/// | `{env:VAR}` | the value of the test process's environment variable VAR |
///
/// A placeholder is a brace, a lower-case word, optionally `:` and an argument, and a closing
/// brace, with no `$` before it. Every other brace stands for itself. To pass a word in braces to
/// another program, double the braces: `{{port}}` becomes `{port}`, and awk's `{print}` is written
/// `{{print}}`.
///
/// The value of `{env:VAR}` is inserted unchanged. In the script of a
/// [`shell`](ExecutorBuilder::shell), the shell would interpret quotes and dollar signs in the
/// value, so write `"$VAR"` there.
#[must_use = "a recipe does nothing until it is started with `.start()`"]
pub struct ExecutorBuilder<R = NoWait> {
    pub(crate) spec: Spec,
    pub(crate) readiness: R,
}

impl<R: Clone> Clone for ExecutorBuilder<R> {
    fn clone(&self) -> ExecutorBuilder<R> {
        ExecutorBuilder {
            spec: self.spec.copied(),
            readiness: self.readiness.clone(),
        }
    }
}

impl<R> fmt::Debug for ExecutorBuilder<R> {
    /// Prints the command and the name, but not the environment, which may contain secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecutorBuilder")
            .field("command", &self.spec.command.display())
            .field("name", &self.spec.name)
            .finish_non_exhaustive()
    }
}

/// Ready as soon as the program has been executed. This is the condition of a recipe without
/// [`wait_for`](crate::recipe::builder::ExecutorBuilder::wait_for).
///
/// By then the program has been loaded, so a missing program is an error. But it may not have done
/// anything yet, and may fail immediately. Use this condition for programs that need no wait, or if
/// you wait later with [`Executor::wait_until`](crate::executor::Executor::wait_until).
///
/// ```
/// # use mirakuru_core as mirakuru;
/// use mirakuru::{Executor, NoWait, SimpleExecutor};
///
/// let mut sleeper: SimpleExecutor = Executor::builder("sleep 60").wait_for(NoWait).start()?;
/// sleeper.stop()?;
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct NoWait;

/// All fields of a recipe except for the readiness, so that this type is not generic.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) command: Command,
    pub(crate) env: Vec<(OsString, Option<OsString>)>,
    pub(crate) env_clear: bool,
    pub(crate) current_dir: Option<PathBuf>,
    pub(crate) stdin: Stdio,
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
    pub(crate) shell: bool,
    pub(crate) name: Option<String>,
    pub(crate) timeout: Duration,
    pub(crate) stop_signal: Signal,
    pub(crate) stop_timeout: Duration,
    pub(crate) kill_signal: Signal,
    pub(crate) expected_exit: Option<i32>,
    pub(crate) fail_on: Vec<String>,
    /// The maximum size of the log, in bytes.
    pub(crate) log_limit: u64,
    pub(crate) log_files: Vec<PathBuf>,
    /// Files to create in the private directory, and their content.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// Addresses to listen on, each with an optional name for its sockets.
    pub(crate) listen: Vec<(Option<String>, String)>,
    pub(crate) queue: bool,
    pub(crate) low_ports: bool,
    pub(crate) optional: bool,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) groups: Option<Vec<u32>>,
    pub(crate) umask: Option<u32>,
    pub(crate) on_end: Option<Command>,
    /// The variable that contains the server's address, if another program has started the server.
    pub(crate) not_ours: Option<String>,
    /// The name of the field, parameter or node to which the service belongs, as shown in the live
    /// output.
    pub(crate) label: Option<String>,
    /// The variable that sets the program's path, if there is one.
    pub(crate) program_variable: Option<String>,
}

impl Spec {
    fn is_for_one_process(&self) -> bool {
        let inherits = |stdio: &Stdio| matches!(stdio.0, StdioKind::Inherit);
        matches!(self.stdin.0, StdioKind::Piped)
            || inherits(&self.stdin)
            || inherits(&self.stdout)
            || inherits(&self.stderr)
    }

    fn set_label(&mut self, label: &str) {
        self.label = match label {
            "" => None,
            label => Some(label.to_owned()),
        };
    }

    /// Clones the recipe. This function is compiled only in the core; a derived `clone` is compiled
    /// again in each crate that calls it.
    fn copied(&self) -> Spec {
        self.clone()
    }

    /// Creates a recipe for this command, with the defaults of [`ExecutorBuilder`].
    pub(crate) fn new(command: Command) -> Spec {
        Spec {
            command,
            env: Vec::new(),
            env_clear: false,
            current_dir: None,
            stdin: Stdio::null(),
            stdout: Stdio::piped(),
            stderr: Stdio::piped(),
            shell: false,
            name: None,
            timeout: Duration::from_secs(60),
            stop_signal: Signal::Term,
            stop_timeout: Duration::from_secs(10),
            kill_signal: Signal::Kill,
            expected_exit: None,
            fail_on: Vec::new(),
            log_limit: 256 * 1024 * 1024,
            log_files: Vec::new(),
            files: Vec::new(),
            listen: Vec::new(),
            queue: false,
            low_ports: false,
            optional: false,
            uid: None,
            gid: None,
            groups: None,
            umask: None,
            on_end: None,
            not_ours: None,
            label: None,
            program_variable: None,
        }
    }

    /// A hint about the first part of the command that only a shell would understand. `None` for a
    /// list, because its words are literal.
    pub(crate) fn shell_syntax(&self) -> Option<String> {
        match &self.command.words {
            Words::Line(line) if !self.shell => shell_syntax(line, ADD_SHELL),
            _ => None,
        }
    }

    /// A hint about shell syntax in the `on_end` command, which runs without a shell.
    pub(crate) fn shell_syntax_at_end(&self) -> Option<String> {
        match &self.on_end.as_ref()?.words {
            Words::Line(line) => shell_syntax(line, "write `.on_end([\"sh\", \"-c\", \"..\"])`"),
            _ => None,
        }
    }

    /// The words of the command that a shell would expand to file names.
    pub(crate) fn globs(&self) -> Vec<String> {
        match &self.command.words {
            Words::Line(line) if !self.shell => globs(line),
            _ => Vec::new(),
        }
    }

    /// Whether the service's standard input is empty.
    pub(crate) fn reads_nothing(&self) -> bool {
        matches!(self.stdin.0, StdioKind::Null)
    }

    pub(crate) fn owner(&self) -> Option<(u32, u32)> {
        match (self.uid, self.gid) {
            (None, None) => None,
            (uid, gid) => Some((
                uid.unwrap_or_else(crate::sys::euid),
                gid.unwrap_or_else(crate::sys::egid),
            )),
        }
    }
}

/// The source or destination of a service's standard stream: the counterpart of
/// [`std::process::Stdio`], but `Clone`, so that a recipe can be cloned.
///
/// ```
/// # use mirakuru_core as mirakuru;
/// use std::fs::File;
/// use mirakuru::{Executor, Stdio};
///
/// let recipe = Executor::builder("redis-server --port {port}")
///     .stdin(Stdio::piped()) // For `take_stdin`.
///     .stderr(Stdio::null());
/// let recipe = recipe.stdout(File::create("/dev/null").unwrap()); // A file is taken as it is.
/// # let _ = recipe;
/// ```
#[derive(Clone, Debug)]
pub struct Stdio(pub(crate) StdioKind);

#[derive(Clone, Debug)]
pub(crate) enum StdioKind {
    Null,
    Inherit,
    Piped,
    File(Arc<File>),
}

impl Stdio {
    /// `/dev/null`, the default for standard input.
    #[must_use]
    pub fn null() -> Stdio {
        Stdio(StdioKind::Null)
    }

    /// The test process's own stream. A service that inherits a test's output can keep a test
    /// runner waiting (nextest calls that a LEAK). The output does not appear in
    /// [`logs`](crate::executor::Executor::logs), and no
    /// [`Banner`](crate::readiness::banner::Banner) sees it.
    #[must_use]
    pub fn inherit() -> Stdio {
        Stdio(StdioKind::Inherit)
    }

    /// For standard input, a pipe to which the test writes
    /// ([`Executor::take_stdin`](crate::executor::Executor::take_stdin)). For standard output and
    /// standard error, where it is the default, the private log file that
    /// [`Executor::logs`](crate::executor::Executor::logs) reads. Writing to the log needs no
    /// reader, and never blocks the service.
    #[must_use]
    pub fn piped() -> Stdio {
        Stdio(StdioKind::Piped)
    }
}

impl From<File> for Stdio {
    /// A file, used from its current position. All starts of all clones of the recipe share that
    /// position.
    fn from(file: File) -> Stdio {
        Stdio(StdioKind::File(Arc::new(file)))
    }
}

impl From<OwnedFd> for Stdio {
    /// An open descriptor, for example one end of a [pipe](std::io::pipe) or of a socket.
    fn from(descriptor: OwnedFd) -> Stdio {
        File::from(descriptor).into()
    }
}

impl<R> ExecutorBuilder<R> {
    /// Whether the service uses a stream or a pipe of the process that starts it.
    #[doc(hidden)]
    #[must_use]
    pub fn __is_for_one_process(&self) -> bool {
        self.spec.is_for_one_process()
    }

    /// Whether [`name`](ExecutorBuilder::name) has been called.
    #[doc(hidden)]
    #[must_use]
    pub fn __has_a_name(&self) -> bool {
        self.spec.name.is_some()
    }
}

impl<R> ExecutorBuilder<R> {
    /// Replaces the program but keeps its arguments, for example to use another version of a
    /// server. The text is one word and is not split. With [`shell`](ExecutorBuilder::shell), it
    /// replaces the script.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// let recipe = mirakuru::Executor::builder("server --port {port}").program("/opt/server-2/server");
    /// let service = recipe.build()?;
    /// assert_eq!(service.command(), format!("/opt/server-2/server --port {}", service.port()));
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    pub fn program(mut self, program: impl AsRef<OsStr>) -> Self {
        self.spec.command.set_program(program.as_ref(), self.spec.shell);
        self
    }

    /// Adds an argument. The text is one argument and is not split into words.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.spec.command.push(arg.as_ref());
        self
    }

    /// Adds arguments. None of them is split into words.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        for arg in args {
            self.spec.command.push(arg.as_ref());
        }
        self
    }

    /// Sets an environment variable. The service also inherits the variables of the test process.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.spec
            .env
            .push((key.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Sets several environment variables.
    pub fn envs<K: AsRef<OsStr>, V: AsRef<OsStr>>(mut self, vars: impl IntoIterator<Item = (K, V)>) -> Self {
        for (key, value) in vars {
            self = self.env(key, value);
        }
        self
    }

    /// Removes an environment variable, whether set before or inherited. A name that ends with `*`
    /// removes every variable that begins with the text before it: after `env_remove("PG*")`, the
    /// service does not see the developer's `PGHOST` and `PGDATA`.
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.spec.env.push((key.as_ref().to_owned(), None));
        self
    }

    /// Removes all environment variables, whether set before or inherited. Two remain:
    /// `MIRAKURU_ID`, which mirakuru sets itself, and `LLVM_PROFILE_FILE` under a coverage tool. To
    /// remove the latter as well, call `.env_remove("LLVM_PROFILE_FILE")` after this.
    pub fn env_clear(mut self) -> Self {
        self.spec.env.clear();
        self.spec.env_clear = true;
        self
    }

    /// Sets the working directory. The default is the test process's own; `"{dir}"` is the private
    /// directory.
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.spec.current_dir = Some(dir.as_ref().to_owned());
        self
    }

    /// Sets standard input. The default is [`Stdio::null`].
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.spec.stdin = stdin.into();
        self
    }

    /// Sets standard output. The default, [`Stdio::piped`], is the private log file.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.spec.stdout = stdout.into();
        self
    }

    /// Sets standard error. The default, [`Stdio::piped`], is the private log file.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.spec.stderr = stderr.into();
        self
    }

    /// Runs the command through `/bin/sh -c`. The default is `false`: no shell.
    ///
    /// A command that is one string becomes the script, and further arguments become its `$1`,
    /// `$2`, ... If the command is a list, its first entry is the script. In the script, `{dir}` is
    /// quoted if necessary, so that it is always part of a single word, with or without quotes
    /// around it.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// let mut job = mirakuru::Executor::builder(r#"echo "$1" | tr a-z A-Z"#)
    ///     .shell(true)
    ///     .arg("hello")
    ///     .start()?;
    /// job.wait(std::time::Duration::from_secs(5))?;
    /// assert_eq!(job.logs().stdout(), "HELLO\n");
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    pub fn shell(mut self, shell: bool) -> Self {
        self.spec.shell = shell;
        self
    }

    /// Sets the service's name, which appears in errors, in the names of its private directory and
    /// its supervisor, and as `{name}`. The default is the program's file name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.spec.name = Some(name.into());
        self
    }

    /// Sets the longest time that a start may take until the service is ready. The default is 60 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.spec.timeout = timeout;
        self
    }

    /// Sets the signal that asks the service to stop. The default is [`Signal::Term`]. The signal
    /// is sent to the service's process group.
    pub fn stop_signal(mut self, signal: Signal) -> Self {
        self.spec.stop_signal = signal;
        self
    }

    /// Sets the grace: the longest time that the service may take to end after the stop signal.
    /// Then all of its processes that are left are killed. The default is 10 s.
    pub fn stop_timeout(mut self, timeout: Duration) -> Self {
        self.spec.stop_timeout = timeout;
        self
    }

    /// Sets the maximum size of the service's log on the disk, in bytes, over all starts. The
    /// default is 256 MiB, and the minimum is 64 KiB.
    ///
    /// If the service prints more, the log keeps half of this size from the beginning, and at least
    /// a quarter from the end. [`Logs::dropped`](crate::output::logs::Logs::dropped) and the
    /// reports tell how many bytes are missing in between. Conditions such as
    /// [`Banner`](crate::readiness::Banner) see all output as it arrives, unless the service prints
    /// faster than they read.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use mirakuru::Executor;
    ///
    /// let recipe = Executor::builder("chatty-server").log_limit(1024 * 1024);
    /// ```
    pub fn log_limit(mut self, bytes: u64) -> Self {
        self.spec.log_limit = bytes;
        self
    }

    /// Sets the signal that is sent when the grace has expired, and by
    /// [`Executor::kill`](crate::executor::Executor::kill). The default is [`Signal::Kill`]. After
    /// any other signal, every process that is left one second later gets `SIGKILL`: no process of
    /// a service survives.
    pub fn kill_signal(mut self, signal: Signal) -> Self {
        self.spec.kill_signal = signal;
        self
    }

    /// Accepts this exit code after a stop, in addition to the default ones: 0, death by the stop
    /// signal, and 128 plus that signal's number.
    pub fn expected_exit(mut self, code: i32) -> Self {
        self.spec.expected_exit = Some(code);
        self
    }

    /// Adds a regular expression for lines of output that mean a failed start. If the service
    /// prints such a line, the start fails immediately with
    /// [`Error::FailureLine`](crate::error::Error::FailureLine). Both streams are searched until
    /// the service is ready.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use mirakuru::{Error, Executor, Tcp};
    ///
    /// let error = Executor::builder("echo FATAL: no license; exec sleep 60")
    ///     .shell(true)
    ///     .fail_on("^FATAL")
    ///     .wait_for(Tcp::addr("127.0.0.1:{port}"))
    ///     .start()
    ///     .unwrap_err(); // After some milliseconds, and not after the whole timeout.
    /// assert!(matches!(error, Error::FailureLine { line, .. } if line == "FATAL: no license"));
    /// ```
    pub fn fail_on(mut self, pattern: impl Into<String>) -> Self {
        self.spec.fail_on.push(pattern.into());
        self
    }

    /// Adds a file to which the service logs, as a source of lines in addition to the service's
    /// output. The path may contain placeholders.
    ///
    /// The file is followed by name: it may be missing at first, and the service may replace it.
    /// [`wait_for_line`](crate::executor::Executor::wait_for_line),
    /// [`logs`](crate::executor::Executor::logs) and [`Banner`](crate::Banner) see its lines. The
    /// report of a failure shows only the output.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use std::time::Duration;
    /// use mirakuru::Executor;
    ///
    /// let service = Executor::builder("sleep 0.5; echo 'user 7 logs in' >> {dir}/app.log; exec sleep 60")
    ///     .shell(true)
    ///     .log_file("{dir}/app.log")
    ///     .start()?;
    /// let mark = service.mark();
    /// let line = service.wait_for_line(&mark, r"user (?<id>\d+)", Duration::from_secs(5))?;
    /// assert_eq!(line.get("id"), Some("7"));
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    pub fn log_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.spec.log_files.push(path.into());
        self
    }

    /// Before each start, writes a file, such as a configuration, into the service's private
    /// directory. The path is relative to that directory. Placeholders in the text are filled in.
    /// The file belongs to the service's user, and no other user can read it.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use mirakuru::{Executor, Tcp};
    ///
    /// let script = "import http.server as h\n\
    ///     h.test(h.SimpleHTTPRequestHandler, port={port}, bind='127.0.0.1')";
    /// let server = Executor::builder("python3 server.py")
    ///     .current_dir("{dir}")
    ///     .file("server.py", script)
    ///     .wait_for(Tcp::addr("127.0.0.1:{port}"))
    ///     .start()?;
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// If the path leads out of the directory, building the executor fails with
    /// [`Error::InvalidCommand`](crate::error::Error::InvalidCommand). To write a file that is not
    /// text, or only once, use the `prepare` of a recipe of your own.
    pub fn file(mut self, path: impl AsRef<Path>, text: impl Into<String>) -> Self {
        self.spec.files.push((path.as_ref().to_owned(), text.into()));
        self
    }

    /// Opens a listening TCP socket on this address before the service starts. The service inherits
    /// the socket through systemd's protocol for socket activation: the sockets are its descriptors
    /// 3, 4 and so on, in the order of these calls. `$LISTEN_FDS` contains their number,
    /// `$LISTEN_FDNAMES` their names, and `$LISTEN_PID` the service's process id.
    ///
    /// When a start returns, the kernel already accepts connections, and the service serves each of
    /// them once it can. So a start need not wait until the service is ready. The first of these
    /// addresses is the executor's [`addr`](crate::executor::Executor::addr), unless the readiness
    /// condition has an address of its own.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use mirakuru::Executor;
    ///
    /// # let script = "import os, socket\ns = socket.socket(fileno=3)\n\
    /// #     c, _ = s.accept()\nc.sendall(b'hello')";
    /// let server = Executor::builder(["python3", "-c", script]).listen("127.0.0.1:{port}").start()?;
    /// let mut greeting = String::new();
    /// # use std::io::Read;
    /// std::net::TcpStream::connect(server.addr()).unwrap().read_to_string(&mut greeting).unwrap();
    /// assert_eq!(greeting, "hello");
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// The address is `host:port`. A host name results in one socket for each of its addresses;
    /// `[::]` means IPv6 only. The sockets are opened for each start, and closed when the service
    /// ends. Each is named after the service, unless [`listen_as`](ExecutorBuilder::listen_as) sets
    /// another name.
    ///
    /// The port is open before the service has done anything, so `Tcp` holds immediately. To know
    /// that the service answers, wait for `Http`, `Banner` or `Exec`. With
    /// [`shell`](ExecutorBuilder::shell), start the server with `exec`. Otherwise `$LISTEN_PID` is
    /// the shell's process id.
    pub fn listen(mut self, addr: impl Into<String>) -> Self {
        self.spec.listen.push((None, addr.into()));
        self
    }

    /// Like [`listen`](ExecutorBuilder::listen), but sets the socket's name in `$LISTEN_FDNAMES`.
    /// The name must not contain a colon.
    pub fn listen_as(mut self, name: impl Into<String>, addr: impl Into<String>) -> Self {
        self.spec.listen.push((Some(name.into()), addr.into()));
        self
    }

    /// Sets whether a start waits while another service of mirakuru uses the same fixed port or
    /// socket path. With `true` it waits, as the attribute does. With `false`, the default, it
    /// fails immediately with [`Error::AlreadyRunning`](crate::error::Error::AlreadyRunning). The
    /// wait does not count towards the [timeout](ExecutorBuilder::timeout).
    pub fn queue(mut self, queue: bool) -> Self {
        self.spec.queue = queue;
        self
    }

    /// With `true`, `{port}` and `{port:NAME}` are chosen between 20000 and 49999. Ports that the
    /// kernel uses for outgoing connections are avoided if enough others are left. The default is
    /// `false`: the kernel chooses.
    ///
    /// Use it for a server that derives other ports from its own. For example, a node of a Redis
    /// cluster adds 10000 to its port.
    pub fn low_ports(mut self, low: bool) -> Self {
        self.spec.low_ports = low;
        self
    }

    /// Allows a test to be skipped if this machine lacks the program, or a kernel feature that the
    /// service needs. Without this setting, or if the variable `CI` is set, the test fails.
    ///
    /// If the attribute starts the recipe, the test is skipped with a message, and counted at the
    /// end of the run. `MIRAKURU_MISSING=skip` allows that for all recipes, and
    /// `MIRAKURU_MISSING=fail` for none. [`start`](ExecutorBuilder::start) itself returns an error;
    /// its [`missing`](crate::error::Error::missing) tells how to install the program. A start that
    /// fails for another reason never skips the test.
    pub fn optional(mut self) -> Self {
        self.spec.optional = true;
        self
    }

    /// Runs the service as this user (numeric id). The test needs the privilege to do that.
    /// Supplementary groups are dropped unless [`groups`](ExecutorBuilder::groups) sets some.
    pub fn uid(mut self, uid: u32) -> Self {
        self.spec.uid = Some(uid);
        self
    }

    /// Runs the service as this group (numeric id). The test needs the privilege to do that.
    pub fn gid(mut self, gid: u32) -> Self {
        self.spec.gid = Some(gid);
        self
    }

    /// If the tests run as root, runs the service as the first of these users that exists on this
    /// machine, with that user's group. Use it for servers that refuse to run as root, or should
    /// not do so.
    ///
    /// Does nothing if the tests do not run as root, or if none of the users exists. Also does
    /// nothing if root may not become another user: in a container without `CAP_SETUID`,
    /// `CAP_SETGID` or `CAP_CHOWN`, and in a user namespace that lacks the user.
    ///
    /// ```
    /// # use mirakuru_core::Executor;
    /// let recipe = Executor::builder("memcached -p {port}").unprivileged(["memcache", "nobody"]);
    /// # let _ = recipe;
    /// ```
    ///
    /// The private directory, `{dir}`, belongs to that user. The user needs read permission for all
    /// other files that the service uses.
    pub fn unprivileged<S: AsRef<str>>(mut self, users: impl IntoIterator<Item = S>) -> Self {
        if let Some(Ok((uid, gid))) = unprivileged_user(users) {
            self.spec.uid = Some(uid);
            self.spec.gid = Some(gid);
        }
        self
    }

    /// Sets the service's supplementary groups (numeric ids). The test needs the privilege to do
    /// that.
    pub fn groups(mut self, groups: impl IntoIterator<Item = u32>) -> Self {
        self.spec.groups = Some(groups.into_iter().collect());
        self
    }

    /// Sets the service's file mode creation mask, for example `0o077`. The default is the test
    /// process's own.
    pub fn umask(mut self, umask: u32) -> Self {
        self.spec.umask = Some(umask);
        self
    }

    /// Sets a command that cleans up after the service. Use it for things that do not end with the
    /// service's processes, such as a container run by a daemon, a systemd unit, or a record on a
    /// shared server. The default is none.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// let recipe = mirakuru::Executor::builder("docker run --rm --name mk-{id} redis:7")
    ///     .on_end("docker rm -f mk-{id}");
    /// # let _ = recipe;
    /// ```
    ///
    /// The supervisor runs the command each time the service has ended, even if the test process
    /// was killed. By then every process of the service is gone, but its directory still exists.
    /// The command runs without a shell, as the test's own user, with the service's environment and
    /// working directory. Its output goes to the service's log.
    ///
    /// The command runs twice, half a second apart, because a daemon may still be busy with the
    /// last request of a killed client. So the command must be harmless if nothing is left to clean
    /// up. It is killed if it takes more than 10 s. A failure is recorded only in the log.
    ///
    /// The command does not run if both processes of the supervisor are killed.
    pub fn on_end(mut self, command: impl IntoCommand) -> Self {
        self.spec.on_end = Some(command.into_command());
        self
    }

    /// Marks the command as a stand-in for the external server that this variable names, so that
    /// tests cannot stop it. The command's file then does not count in the recipe's key.
    #[doc(hidden)]
    pub fn __not_ours(mut self, variable: &str) -> Self {
        self.spec.not_ours = Some(variable.to_owned());
        self
    }

    /// Sets the name of the field, parameter or node to which the service belongs. If the recipe
    /// has no name, `MIRAKURU_LIVE` shows this one before each line. An empty text sets no name.
    #[doc(hidden)]
    pub fn __label(mut self, label: &str) -> Self {
        self.spec.set_label(label);
        self
    }

    /// Records that this variable names the program. Errors then name the variable, and the program
    /// never counts as missing, because the user has chosen it.
    #[doc(hidden)]
    pub fn __program_of(mut self, variable: &str) -> Self {
        self.spec.program_variable = Some(variable.to_owned());
        self
    }
}

/// The user and group that [`unprivileged`](ExecutorBuilder::unprivileged) chooses. `None` if the
/// tests do not run as root, or if none of the users exists.
///
/// # Errors
///
/// The reason why root may not become that user here.
pub fn unprivileged_user<S: AsRef<str>>(
    users: impl IntoIterator<Item = S>,
) -> Option<Result<(u32, u32), String>> {
    if crate::sys::euid() != 0 {
        return None;
    }
    let (uid, gid) = users
        .into_iter()
        .find_map(|user| crate::sys::files::user(user.as_ref()))?;
    Some(crate::sys::proc::may_become(uid, gid).map(|()| (uid, gid)))
}
