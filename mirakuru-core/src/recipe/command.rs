//! The command line of a recipe: one string of shell words, or a list.
//!
//! A string is split into words as a shell would split it, but no shell runs. Quotes, backslashes
//! and comments have the meaning that `sh` gives them, while `$VAR`, `*`, `|` and `>` are plain
//! text. Placeholders are filled in *after* the split, so a value with spaces stays one word. With
//! `shell(true)`, the string is a script and is not split at all.
//!
//! The file is long because two fifths of it are tests against a real `sh`.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::hash::Hasher;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Error;
use crate::recipe::placeholder::ExpandError;
use crate::util::hash;

/// A function that fills in the placeholders of a word.
pub(crate) type Expand<'a> = &'a mut dyn FnMut(&OsStr) -> Result<OsString, ExpandError>;

/// The command of [`Executor::builder`](crate::executor::Executor::builder): either one string, or
/// a list of the program and its arguments.
///
/// A string is split into words as a shell would split it. The entries of a list are used
/// unchanged, and need not be UTF-8. Use a list if a path may contain spaces. The trait is sealed:
/// it is implemented for strings, arrays, slices and vectors.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a command",
    label = "not a command",
    note = "a command is one string (`\"redis-server --port 6379\"`), or a list of the program and its \
        arguments (`[\"redis-server\", \"--port\", \"6379\"]`); put a path into a list: `[path]`"
)]
pub trait IntoCommand {
    #[doc(hidden)]
    fn into_command(self) -> Command;
}

/// A command as the user gave it, not yet parsed.
#[derive(Clone, Debug)]
#[doc(hidden)]
pub struct Command {
    pub(crate) words: Words,
    /// The arguments added by `arg` and `args`.
    pub(crate) extra: Vec<OsString>,
}

#[derive(Clone, Debug)]
pub(crate) enum Words {
    Line(String),
    List(Vec<OsString>),
    Program(Arc<dyn Program>),
}

/// A program that may first have to be built, so its path is known only when an executor is built.
/// Its `Debug` text identifies the program, and is the same in all processes.
pub(crate) trait Program: fmt::Debug + Send + Sync {
    /// The program's name, as shown to people.
    fn name(&self) -> &str;

    /// The program's path. May be called more than once.
    fn path(&self) -> Result<PathBuf, Error>;
}

impl Command {
    pub(crate) fn fingerprint(&self, hasher: &mut dyn Hasher) {
        let Command { words, extra } = self;
        let all = |hasher: &mut dyn Hasher, words: &[OsString]| {
            hash::number(hasher, words.len() as u64);
            words.iter().for_each(|word| hash::text(hasher, word.as_ref()));
        };
        match words {
            Words::Line(line) => hash::text(hasher, line.as_ref()),
            Words::List(list) => all(hasher, list),
            Words::Program(program) => {
                hash::bytes(hasher, format!("{program:?}").as_bytes());
                let path = program.path().unwrap_or_default();
                hash::bytes(hasher, path.as_os_str().as_bytes());
            }
        }
        all(hasher, extra);
    }

    /// Replaces the program, which is the first word. If `shell` is set, replaces the script.
    pub(crate) fn set_program(&mut self, program: &OsStr, shell: bool) {
        let mut words: Vec<OsString> = match &self.words {
            Words::Line(line) if !shell => match shell_words::split(line) {
                Ok(words) => words.into_iter().map(OsString::from).collect(),
                // Building the executor reports the error.
                Err(_) => return,
            },
            Words::List(list) => list.clone(),
            Words::Line(_) | Words::Program(_) => Vec::new(),
        };
        match words.first_mut() {
            Some(first) => *first = program.to_owned(),
            None => words.push(program.to_owned()),
        }
        self.words = Words::List(words);
    }

    fn line(line: impl Into<String>) -> Command {
        Command {
            words: Words::Line(line.into()),
            extra: Vec::new(),
        }
    }

    fn list(list: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut words = Vec::new();
        for word in list {
            words.push(word.as_ref().to_owned());
        }
        Command {
            words: Words::List(words),
            extra: Vec::new(),
        }
    }

    pub(crate) fn of_program(program: Arc<dyn Program>) -> Command {
        Command {
            words: Words::Program(program),
            extra: Vec::new(),
        }
    }

    /// If the command is a [`Program`], finds or builds it, so that its file is known.
    ///
    /// # Errors
    ///
    /// The errors of [`Program::path`].
    pub(crate) fn find_program(&self) -> Result<(), Error> {
        match &self.words {
            Words::Program(program) => program.path().map(drop),
            _ => Ok(()),
        }
    }

    pub(crate) fn push(&mut self, arg: &OsStr) {
        self.extra.push(arg.to_owned());
    }

    /// The words to execute, the program first, with all placeholders filled in.
    ///
    /// With `shell`, the words are `/bin/sh -c SCRIPT sh ARGUMENT...`. The script is the unsplit
    /// string, or the first entry of the list. The other entries become its `$1` and so on. `$0` is
    /// `sh`, which a shell prints before its error messages.
    ///
    /// # Errors
    ///
    /// * [`Error::InvalidCommand`]: there is no program, a quote is not closed, a word contains a
    ///   NUL byte, or a placeholder is invalid.
    /// * [`Error::System`]: no port is free.
    pub(crate) fn resolve(&self, expand: Expand<'_>, shell: bool) -> Result<Vec<OsString>, Error> {
        let (mut words, what) = match &self.words {
            Words::Line(line) if shell => (vec![OsString::from(line)], "script"),
            Words::Line(line) => (self.split(line)?, "program"),
            Words::List(list) if shell => (list.clone(), "script"),
            Words::List(list) => (list.clone(), "program"),
            Words::Program(program) if shell => {
                let name = program.name();
                return Err(self.invalid(format!(
                    "`shell` takes a script, and `{name}` is a program; leave `shell` out"
                )));
            }
            Words::Program(program) => (vec![program.path()?.into_os_string()], "program"),
        };
        words.extend_from_slice(&self.extra);
        let is_blank = |word: &OsString| word.as_bytes().trim_ascii().is_empty();
        // An empty command has no program, even with extra arguments. The command `"" arg` has one,
        // but its name is empty.
        let given = match &self.words {
            Words::Line(line) => !line.trim().is_empty(),
            Words::List(list) => !list.is_empty(),
            Words::Program(_) => true,
        };
        // A found program's path was not written by the user, so braces in it are not placeholders.
        let is_found = matches!(self.words, Words::Program(_));
        if !given || words.is_empty() {
            return Err(self.invalid(format!("the command is empty; begin it with the {what} to run")));
        }
        let mut argv = Vec::with_capacity(words.len() + 3);
        for (index, word) in words.iter().enumerate() {
            let word = match index == 0 && is_found {
                true => word.clone(),
                false => expand(word).map_err(|error| error.in_command(&self.display()))?,
            };
            if index == 0 && is_blank(&word) {
                return Err(self.invalid(format!(
                    "the {what} has an empty name; the first word, with its placeholders filled in, must \
                        name it"
                )));
            }
            if word.as_bytes().contains(&0) {
                let word = word.as_bytes().escape_ascii();
                return Err(self.invalid(format!(
                    "the word `{word}` contains a NUL byte, which no argument may; remove it, or hand the \
                        data over in a file"
                )));
            }
            argv.push(word);
        }
        if shell {
            argv.insert(0, "-c".into());
            argv.insert(0, "/bin/sh".into());
            argv.insert(3, "sh".into());
        }
        Ok(argv)
    }

    /// The command as a person would type it, before its placeholders are filled in.
    pub(crate) fn display(&self) -> String {
        let mut text = match &self.words {
            Words::Line(line) => line.trim().to_owned(),
            Words::List(list) => display(list),
            Words::Program(program) => quoted(program.name()),
        };
        if !self.extra.is_empty() {
            text = format!("{text} {}", display(&self.extra));
        }
        text
    }

    /// The first word of the command, before its placeholders are filled in. With `shell(true)` it
    /// comes from the script, so it is never the shell.
    pub(crate) fn program(&self) -> Option<OsString> {
        match &self.words {
            Words::Line(line) => shell_words::split(line)
                .ok()?
                .into_iter()
                .next()
                .map(OsString::from),
            Words::List(list) => list.first().cloned(),
            Words::Program(program) => program.path().ok().map(PathBuf::into_os_string),
        }
    }

    /// The service's name if the recipe sets none: the file name of the program, or `sh` or
    /// `service` if that is unknown.
    pub(crate) fn program_name(&self, shell: bool) -> String {
        let first = match &self.words {
            Words::Line(line) if shell => first_command(line),
            Words::Line(line) => shell_words::split(line)
                .ok()
                .and_then(|words| words.into_iter().next()),
            Words::List(list) if shell => list
                .first()
                .and_then(|script| first_command(&script.to_string_lossy())),
            Words::List(list) => list.first().map(|program| program.to_string_lossy().into_owned()),
            Words::Program(program) => return program.name().to_owned(),
        };
        let first = first.unwrap_or_default();
        let name = Path::new(&first)
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        match name {
            // An unexpanded placeholder such as `{env:SERVER}` is not a name.
            Some(name) if !name.contains(['{', '}']) => name,
            _ if shell => "sh".to_owned(),
            _ => "service".to_owned(),
        }
    }

    fn split(&self, line: &str) -> Result<Vec<OsString>, Error> {
        match shell_words::split(line) {
            Ok(words) => Ok(words.into_iter().map(OsString::from).collect()),
            Err(_) => Err(self.invalid(match open_quote(line) {
                Some((quote, at)) => {
                    let name = if quote == '"' { "double" } else { "single" };
                    let from: String = line[at..].chars().take(20).collect();
                    let more = if line[at..].chars().count() > 20 {
                        "..."
                    } else {
                        ""
                    };
                    format!(
                        "the {name} quote at {} is never closed (`{from}{more}`); close it, write \
                         `\\{quote}` for the character itself, or give the command as a list",
                        position(line, at)
                    )
                }
                None => "a quote is never closed; close it, or give the command as a list".to_owned(),
            })),
        }
    }

    fn invalid(&self, reason: String) -> Error {
        Error::InvalidCommand {
            command: self.display(),
            reason,
            system: Vec::new(),
        }
    }
}

/// Joins the words into a command line, quoted for a shell where necessary.
pub(crate) fn display(words: &[OsString]) -> String {
    words
        .iter()
        .map(|word| quoted(&word.to_string_lossy()))
        .collect::<Vec<_>>()
        .join(" ")
}

fn quoted(word: &str) -> String {
    let plain =
        |c: char| c.is_alphanumeric() || "_-+=.,:/@%^{}".contains(c) || c == char::REPLACEMENT_CHARACTER;
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace("'", r"'\''"))
}

/// Finds the quote that is still open at the end of a line, and its position. Parses the line as
/// `shell_words` does.
fn open_quote(line: &str) -> Option<(char, usize)> {
    let mut chars = line.char_indices();
    let mut open: Option<(char, usize)> = None;
    let mut between_words = true;
    while let Some((at, c)) = chars.next() {
        match (open, c) {
            (Some((quote, _)), _) if c == quote => open = None,
            (Some(('"', _)) | None, '\\') => {
                // A backslash and a newline join two lines, so `between_words` does not change.
                if let Some((_, '\n')) = chars.next() {
                    continue;
                }
            }
            (Some(_), _) => {}
            (None, '\'' | '"') => open = Some((c, at)),
            (None, '#') if between_words => {
                // Skips a comment, up to the end of its line.
                chars.by_ref().find(|(_, c)| *c == '\n');
                continue;
            }
            (None, _) => {}
        }
        between_words = open.is_none() && matches!(c, ' ' | '\t' | '\n');
    }
    open
}

/// Describes a byte position for a message, by its line and character.
fn position(text: &str, at: usize) -> String {
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before[line_start..].chars().count() + 1;
    if text.trim_end().contains('\n') {
        format!("line {}, character {column}", before.matches('\n').count() + 1)
    } else {
        format!("character {column}")
    }
}

/// The name of the first program in a script, as far as it can be determined without a shell.
fn first_command(script: &str) -> Option<String> {
    let words =
        shell_words::split(script).unwrap_or_else(|_| script.split_whitespace().map(str::to_owned).collect());
    let is_assignment = |word: &str| {
        word.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        })
    };
    let is_name = |word: &str| {
        word.chars()
            .all(|c| c.is_alphanumeric() || "_-+./@{}:".contains(c))
    };
    words
        .into_iter()
        .find(|word| !is_assignment(word) && !matches!(word.as_str(), "exec" | "env" | "nohup" | "command"))
        .map(|word| word.trim_end_matches(';').to_owned())
        .filter(|word| is_name(word))
}

impl IntoCommand for &str {
    fn into_command(self) -> Command {
        Command::line(self)
    }
}

impl IntoCommand for String {
    fn into_command(self) -> Command {
        Command::line(self)
    }
}

impl IntoCommand for &String {
    fn into_command(self) -> Command {
        Command::line(self.as_str())
    }
}

impl IntoCommand for Cow<'_, str> {
    fn into_command(self) -> Command {
        Command::line(self)
    }
}

impl<S: AsRef<OsStr>, const N: usize> IntoCommand for [S; N] {
    fn into_command(self) -> Command {
        Command::list(self)
    }
}

impl<S: AsRef<OsStr>, const N: usize> IntoCommand for &[S; N] {
    fn into_command(self) -> Command {
        Command::list(self)
    }
}

impl<S: AsRef<OsStr>> IntoCommand for &[S] {
    fn into_command(self) -> Command {
        Command::list(self)
    }
}

impl<S: AsRef<OsStr>> IntoCommand for Vec<S> {
    fn into_command(self) -> Command {
        Command::list(self)
    }
}

impl<S: AsRef<OsStr>> IntoCommand for &Vec<S> {
    fn into_command(self) -> Command {
        Command::list(self)
    }
}

/// The remedy for a command that needs a shell.
pub(crate) const ADD_SHELL: &str = "add `.shell(true)`";

/// Replaces each quoted character with `_`, because quoted text is literal.
fn unquoted(line: &str) -> String {
    let mut quote = None;
    line.chars()
        .map(|c| match quote {
            Some(open) => {
                quote = Some(open).filter(|open| *open != c);
                '_'
            }
            None => {
                quote = Some(c).filter(|c| matches!(c, '\'' | '"'));
                c
            }
        })
        .collect()
}

/// A hint about the first part of a command line that only a shell would understand. `shell` is the
/// remedy that adds a shell.
pub(crate) fn shell_syntax(line: &str, shell: &str) -> Option<String> {
    let is_name = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let unquoted = unquoted(line);
    let mut words = unquoted.split_whitespace();
    let first = words.clone().next()?;
    if let Some((name, value)) = first.split_once('=').filter(|(name, _)| is_name(name)) {
        return Some(format!(
            "`{name}={value}` sets a variable only in a shell: write `.env(\"{name}\", \"{value}\")`, or \
             {shell}"
        ));
    }
    // These commands exist only inside a shell.
    const OF_SHELLS: [&str; 8] = ["cd", "export", "source", ".", "exec", "ulimit", "umask", "eval"];
    let is_of_shells = OF_SHELLS.contains(&first).then_some(first);
    let found = is_of_shells.or_else(|| {
        words.find(|word| {
            let variable = word.strip_prefix('$').map(|rest| rest.trim_matches(['{', '}']));
            let redirects = |word: &str| {
                let word = word.trim_start_matches(|c: char| c.is_ascii_digit());
                word.starts_with('>') || word == "<"
            };
            matches!(*word, "|" | "||" | "&&" | "&")
                || word.ends_with(';')
                || word.starts_with("~/")
                || word.contains("$(")
                || word.contains('`')
                || redirects(word)
                || variable
                    .is_some_and(|rest| is_name(rest.split(['/', ':', '}']).next().unwrap_or_default()))
        })
    })?;
    let placeholder = match found.starts_with('$') {
        true => "use the placeholder `{env:VAR}`, or ",
        false => "",
    };
    Some(format!(
        "the command runs without a shell, and only a shell understands `{found}`: {placeholder}{shell}"
    ))
}

/// The words of a command line that a shell would expand to file names.
pub(crate) fn globs(line: &str) -> Vec<String> {
    let mut globs = Vec::new();
    for word in unquoted(line).split_whitespace() {
        if word.len() > 1 && word.contains(['*', '?', '[']) {
            globs.push(word.to_owned());
        }
    }
    globs
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::executor::Executor;
    use crate::ports::values::Values;

    fn values() -> Values {
        Values::new("redis".to_owned(), PathBuf::from("/with a space"))
    }

    fn resolve(command: impl IntoCommand, shell: bool) -> Vec<String> {
        let argv = command
            .into_command()
            .resolve(&mut |word| values().expand_os(word), shell)
            .unwrap_or_else(|e| panic!("{}", reason(e)));
        argv.into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    fn reason(error: Error) -> String {
        match error {
            Error::InvalidCommand { reason, .. } => reason,
            _ => panic!("not an invalid command"),
        }
    }

    fn refused(command: impl IntoCommand) -> String {
        reason(
            command
                .into_command()
                .resolve(&mut |word| values().expand_os(word), false)
                .unwrap_err(),
        )
    }

    /// Splits a line into words with a real `sh`.
    fn by_shell(line: &str) -> Vec<String> {
        // The newline ends a comment at the end of the line.
        let script = format!("words() {{ printf '%s\\0' \"$@\"; }}; words {line}\n");
        let output = std::process::Command::new("/bin/sh")
            .args(["-c", &script])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.strip_suffix('\0')
            .unwrap()
            .split('\0')
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn what_only_a_shell_understands_is_found() {
        for (line, part) in [
            ("PORT=80 server", "`.env(\"PORT\", \"80\")`"),
            ("~/bin/server --port 80", "`~/bin/server`"),
            ("server > log", "`>`"),
            ("server 2>&1", "`2>&1`"),
            ("server >/dev/null", "`>/dev/null`"),
            ("server --data $HOME/data", "`{env:VAR}`"),
            ("server --data ${HOME}", "`{env:VAR}`"),
            ("server | tee log", "`|`"),
            ("migrate && server", "`&&`"),
            ("server &", "`&`"),
        ] {
            let hint = shell_syntax(line, ADD_SHELL).unwrap_or_else(|| panic!("{line}"));
            assert!(hint.contains(part), "{line}: {hint}");
        }
        for line in [
            "server --set a=b",
            "awk '{print $1}'",
            "server --url http://h/?a=1&b=2",
            "server -e 'a | b' 'x>y' -",
            "server --price $1",
            "{dir}/server",
        ] {
            assert_eq!(shell_syntax(line, ADD_SHELL), None, "{line}");
        }
    }

    #[test]
    fn a_line_is_split_as_a_shell_does() {
        for line in [
            "redis-server --port 6379 --save ''",
            "  a\t b  ",
            r#"a 'b c' "d e" f\ g"#,
            r#"--json '{"a":1}' x"#,
            r#""a\"b" "c\\d" "e\nf" 'g\h'"#,
            "a'b'\"c\"d",
            "run # the rest is a comment",
            "a#b '#c' \\#d",
            "a \\\n b",
            "a\nb".replace('\n', " ").as_str(),
            "--x=\"y z\" \"it's\"",
            "x \"\" ''",
            "caf\u{e9} '\u{2603} x'",
        ] {
            assert_eq!(resolve(line, false), by_shell(line), "{line}");
        }
    }

    #[test]
    fn a_line_runs_without_a_shell() {
        let line = "a $HOME ${X:-y} *.c ~ | b > c && d; {1..3}";
        assert_eq!(resolve(line, false), line.split(' ').collect::<Vec<_>>());
    }

    #[test]
    fn a_value_with_spaces_stays_one_word() {
        assert_eq!(
            resolve("{name} --dir {dir}/data", false),
            ["redis", "--dir", "/with a space/data"]
        );
        assert_eq!(resolve("x '{name}' \"{name}\"", false), ["x", "redis", "redis"]);
        assert_eq!(
            resolve(r#"x '{"dir":{dir}}'"#, false),
            ["x", r#"{"dir":/with a space}"#]
        );
    }

    #[test]
    fn ports_of_the_command_are_those_of_the_values() {
        let mut values = values();
        let argv = "s --port {port} --admin {port:admin}"
            .into_command()
            .resolve(&mut |word| values.expand_os(word), false)
            .unwrap();
        assert_eq!(argv[2], *values.port("").unwrap().to_string());
        assert_eq!(argv[4], *values.port("admin").unwrap().to_string());
    }

    #[test]
    fn entries_of_a_list_and_arguments_are_expanded_and_never_split() {
        let mut command = ["a b", "{name} 'c", ""].into_command();
        command.push(OsStr::new("{dir} #"));
        let argv = command
            .resolve(&mut |word| values().expand_os(word), false)
            .unwrap();
        assert_eq!(argv, ["a b", "redis 'c", "", "/with a space #"]);
    }

    #[test]
    fn entries_that_are_not_utf8_pass() {
        let odd = OsStr::from_bytes(b"\xff{name}");
        let argv = [OsStr::new("x"), odd]
            .into_command()
            .resolve(&mut |word| values().expand_os(word), false)
            .unwrap();
        assert_eq!(argv[1].as_bytes(), b"\xffredis");
    }

    #[test]
    fn a_shell_gets_the_line_as_it_is() {
        let script = "echo \"$1\" 'it {name} | x; awk '{ print $1 }' # ${HOME}";
        let mut command = script.into_command();
        command.push(OsStr::new("one {name}"));
        let argv = command
            .resolve(&mut |word| values().expand_os(word), true)
            .unwrap();
        assert_eq!(
            argv,
            [
                "/bin/sh",
                "-c",
                &script.replace("{name}", "redis"),
                "sh",
                "one redis"
            ]
        );
        assert_eq!(
            resolve(["echo $1", "x y"], true),
            ["/bin/sh", "-c", "echo $1", "sh", "x y"]
        );
    }

    #[test]
    fn extra_words_are_the_script_s_arguments() {
        let mut command = "printf '%s|' \"$0\" \"$1\" \"$2\"".into_command();
        command.push(OsStr::new("a b"));
        command.push(OsStr::new(""));
        let argv = command
            .resolve(&mut |word| values().expand_os(word), true)
            .unwrap();
        let output = std::process::Command::new(&argv[0])
            .args(&argv[1..])
            .output()
            .unwrap();
        assert_eq!(output.stdout, b"sh|a b||");
    }

    #[test]
    fn an_open_quote_is_named_with_its_place() {
        let single = refused("server --name 'it");
        assert!(
            single.starts_with("the single quote at character 15 is never closed (`'it`)"),
            "{single}"
        );
        let double = refused("a 'b\"c' \"d \\\" e 'f and on and on");
        assert!(double.starts_with("the double quote at character 9 "), "{double}");
        assert!(double.contains("or give the command as a list"), "{double}");
        let second_line = refused("a \\\n b # it's\n c 'd");
        assert!(
            second_line.contains("the single quote at line 3, character 4 "),
            "{second_line}"
        );
        let after_continuation = refused("\\\n#'\n\"");
        assert!(
            after_continuation.contains("the double quote at line 3, character 1 "),
            "{after_continuation}"
        );
        let after_text = refused("it#'s");
        assert!(after_text.contains("character 4 "), "{after_text}");
    }

    #[test]
    fn the_open_quote_is_found_whenever_the_split_fails() {
        use proptest::prelude::*;
        let pieces = ["'", "\"", "\\", " ", "#", "\n", "a", "\u{e9}"];
        let lines = prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..16)
            .prop_map(|pieces| pieces.concat());
        proptest!(|(line in lines)| {
            prop_assert_eq!(shell_words::split(&line).is_err(), open_quote(&line).is_some(), "{:?}", line);
        });
    }

    #[test]
    fn a_command_without_a_program_is_refused() {
        for line in ["", "  ", "\n", "# nothing but a comment"] {
            assert!(refused(line).starts_with("the command is empty"), "{line:?}");
        }
        assert!(refused([""; 0]).starts_with("the command is empty"));
        for list in [vec![""], vec!["", "a"], vec![" ", "a"]] {
            assert!(refused(&list).contains("empty name"), "{list:?}");
        }
        assert!(refused("'' a").contains("empty name"));
        let script = " "
            .into_command()
            .resolve(&mut |word| values().expand_os(word), true)
            .unwrap_err();
        assert!(reason(script).contains("begin it with the script"));
        let mut only_extra = "".into_command();
        only_extra.push(OsStr::new("a"));
        assert!(refused_command(&only_extra).starts_with("the command is empty"));
    }

    fn refused_command(command: &Command) -> String {
        reason(
            command
                .resolve(&mut |word| values().expand_os(word), false)
                .unwrap_err(),
        )
    }

    #[test]
    fn a_nul_byte_is_refused() {
        assert!(refused(["a", "b\0c"]).contains("`b\\x00c` contains a NUL byte"));
        assert!(refused("a b\0c").contains("NUL"));
    }

    #[test]
    fn a_wrong_placeholder_names_the_command() {
        let error = ["a b", "{nope}"]
            .into_command()
            .resolve(&mut |word| values().expand_os(word), false)
            .unwrap_err();
        match error {
            Error::InvalidCommand { command, reason, .. } => {
                assert_eq!(command, "'a b' {nope}");
                assert!(reason.contains("`{nope}`"));
            }
            _ => panic!("not an invalid command"),
        }
    }

    #[test]
    fn commands_display_as_they_would_be_typed() {
        let mut command = " redis-server --save '' ".into_command();
        assert_eq!(command.display(), "redis-server --save ''");
        command.push(OsStr::new("it's"));
        assert_eq!(command.display(), r"redis-server --save '' 'it'\''s'");
        let list = ["a", "", "b c", "--port={port}", "$x", "{\"a\":1}"].into_command();
        assert_eq!(list.display(), r#"a '' 'b c' --port={port} '$x' '{"a":1}'"#);
    }

    #[test]
    fn what_a_list_displays_as_means_the_same_as_a_line() {
        use proptest::prelude::*;
        proptest!(|(list in prop::collection::vec("[^\u{fffd}]*", 1..5))| {
            let words: Vec<OsString> = list.iter().map(OsString::from).collect();
            prop_assert_eq!(shell_words::split(&display(&words)).unwrap(), list);
        });
    }

    #[test]
    fn the_name_is_the_program_s() {
        let name = |command: &str, shell| command.into_command().program_name(shell);
        assert_eq!(name("/usr/bin/redis-server --port 1", false), "redis-server");
        assert_eq!(name("'/opt/my server' x", false), "my server");
        assert_eq!(name("{dir}/bin/tool", false), "tool");
        assert_eq!(name("{env:SERVER} x", false), "service");
        assert_eq!(name("'", false), "service");
        assert_eq!(name("", false), "service");
        assert_eq!(["/a b/c", "d"].into_command().program_name(false), "c");
        assert_eq!(name("X=1 exec /usr/bin/nginx -g 'daemon off;'", true), "nginx");
        assert_eq!(name("sleep 1; echo it's", true), "sleep");
        assert_eq!(name("touch; x", true), "touch");
        assert_eq!(name("(a; b)", true), "sh");
    }

    #[test]
    // The references are intentional: this test checks that they are accepted.
    #[allow(clippy::needless_borrows_for_generic_args)]
    fn builders_need_no_annotation() {
        let words = vec!["a".to_owned(), "b".to_owned()];
        let _ = Executor::builder("x");
        let _ = Executor::builder(String::from("x"));
        let _ = Executor::builder(&String::from("x"));
        let _ = Executor::builder(format!("{}", 1));
        let _ = Executor::builder(["a", "b"]);
        let _ = Executor::builder(&["a", "b"]);
        let _ = Executor::builder(&words);
        let _ = Executor::builder(words.as_slice());
        let _ = Executor::builder([PathBuf::from("/a b")]);
        let _ = Executor::builder([OsStr::new("a")]);
        let _ = Executor::builder(words);
        let _ = Executor::builder(Cow::Borrowed("x"));
    }
}
