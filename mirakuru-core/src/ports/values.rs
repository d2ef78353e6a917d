//! The values of one service's placeholders.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::error::secrets::{Secrets, Unmasked, is_secret_name};
use crate::ports::reserve::{HoldLevel, Range, Reservation};
use crate::recipe::placeholder::{ExpandError, Placeholder, expand_bytes};

/// The known placeholders, for error messages.
const KNOWN: &str = "`{port}`, `{port:NAME}`, `{dir}`, `{name}`, `{id}` and `{env:VAR}`";

/// The values of placeholders in one executor. A port is reserved when a string first uses it.
#[derive(Debug)]
pub(crate) struct Values {
    name: String,
    dir: PathBuf,
    /// The ports by name, in the order of their first use. The name of `{port}` is empty.
    ports: Vec<(String, Reservation)>,
    /// Ports that other processes already know. Each moves to `ports` when a string first uses it.
    given: Vec<(String, Reservation)>,
    /// Whether other processes know the ports. If so, the ports must not change.
    are_known: bool,
    /// Ports that must not be used again, because another process took them or a start failed on
    /// them.
    spoiled: Vec<u16>,
    hold_level: HoldLevel,
    range: Range,
    secrets: Secrets,
    /// Whether strings are expanded for display. If so, `{env:VAR}` is left as it is.
    for_show: bool,
    /// Whether the string is a shell script. If so, `{dir}` is quoted where necessary.
    for_shell: bool,
}

impl Values {
    pub(crate) fn new(name: String, dir: PathBuf) -> Values {
        Values {
            name,
            dir,
            ports: Vec::new(),
            given: Vec::new(),
            are_known: false,
            spoiled: Vec::new(),
            hold_level: HoldLevel::Firm,
            range: Range::Any,
            secrets: Secrets::default(),
            for_show: false,
            for_shell: false,
        }
    }

    /// Sets the range for ports that are reserved later.
    pub(crate) fn set_range(&mut self, range: Range) {
        self.range = range;
    }

    /// Creates the values of a service whose ports other services already know.
    pub(crate) fn given(name: String, dir: PathBuf, given: Vec<(String, Reservation)>) -> Values {
        Values {
            given,
            are_known: true,
            ..Values::new(name, dir)
        }
    }

    pub(crate) fn are_known(&self) -> bool {
        self.are_known
    }

    /// Moves all given ports that are still unused into `ports`.
    pub(crate) fn take_given(&mut self) {
        self.ports.append(&mut self.given);
    }

    /// Creates the values of a service that is already running.
    pub(crate) fn known(name: String, dir: PathBuf, ports: Vec<(String, u16)>) -> Values {
        let mut values = Values::new(name, dir);
        for (name, port) in ports {
            values.ports.push((name, Reservation::known(port)));
        }
        values
    }

    /// Calls `expand` in display mode, in which `{env:VAR}` is left as it is.
    pub(crate) fn for_show<T>(&mut self, expand: impl FnOnce(&mut Values) -> T) -> T {
        self.for_show = true;
        let expanded = expand(self);
        self.for_show = false;
        expanded
    }

    /// From now on, masks this value of an environment variable in messages and errors.
    pub(crate) fn hide(&mut self, value: &OsStr) {
        self.secrets.add_secret(&value.to_string_lossy());
    }

    /// From now on, masks the secrets that a recipe sets in its service's environment. Call this
    /// before the placeholders are filled in, because an error may show the recipe as written.
    pub(crate) fn hide_secrets_of(&mut self, env: &[(OsString, Option<OsString>)]) {
        for (name, value) in env {
            let value = value.as_deref().unwrap_or_default();
            // A value with placeholders is shown as written.
            if is_secret_name(&name.to_string_lossy()) && !value.as_bytes().contains(&b'{') {
                self.hide(value);
            }
        }
    }

    /// Masks the values of environment variables, and passwords in URLs.
    pub(crate) fn mask(&self, text: &str) -> String {
        self.secrets.mask(text)
    }

    /// The secrets that messages and errors must not show.
    pub(crate) fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Masks the secrets in an error.
    pub(crate) fn mask_error(&self, error: Unmasked) -> Error {
        self.secrets.mask_error(error)
    }

    /// Fills in the placeholders in a string.
    pub(crate) fn expand(&mut self, text: &str) -> Result<String, ExpandError> {
        let bytes = self.expand_bytes(text.as_bytes())?;
        String::from_utf8(bytes).map_err(|e| {
            let got = e.as_bytes().escape_ascii();
            ExpandError::Text(format!(
                "a placeholder's value must be UTF-8 here, but is `{got}`"
            ))
        })
    }

    /// Fills in the placeholders in a string that may not be UTF-8.
    pub(crate) fn expand_os(&mut self, text: &OsStr) -> Result<OsString, ExpandError> {
        self.expand_bytes(text.as_bytes()).map(OsString::from_vec)
    }

    /// Fills in the placeholders in a shell script. `{dir}` stays one word even if it contains a
    /// space.
    pub(crate) fn expand_script(&mut self, script: &OsStr) -> Result<OsString, ExpandError> {
        self.for_shell = true;
        let expanded = self.expand_os(script);
        self.for_shell = false;
        expanded
    }

    /// The port of `{port:NAME}`, or of `{port}` if `name` is empty. `None` if no string has used
    /// it.
    pub(crate) fn port(&self, name: &str) -> Option<u16> {
        self.ports()
            .find(|(known, _)| *known == name)
            .map(|(_, port)| port)
    }

    /// All ports with their names, in the order of their first use.
    pub(crate) fn ports(&self) -> impl Iterator<Item = (&str, u16)> {
        self.ports
            .iter()
            .map(|(name, reservation)| (name.as_str(), reservation.port()))
    }

    /// All ports, in the order of their first use.
    pub(crate) fn port_numbers(&self) -> Vec<u16> {
        self.ports().map(|(_, port)| port).collect()
    }

    /// Like [`ports`](Values::ports), but with each name copied into a `String`.
    pub(crate) fn owned_ports(&self) -> Vec<(String, u16)> {
        let mut ports = Vec::new();
        for (name, port) in self.ports() {
            ports.push((name.to_owned(), port));
        }
        ports
    }

    /// The value of `{dir}`.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The value of `{id}`: the name of the directory that contains `{dir}`.
    fn id(&self) -> &OsStr {
        let private = self.dir.parent().and_then(Path::file_name);
        private.unwrap_or_default()
    }

    /// The value of `{name}`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Holds all ports again. Returns `false` if another process has taken one of them.
    pub(crate) fn hold_again(&mut self) -> bool {
        let hold_level = self.hold_level;
        // An error does not end the loop, so that every port that is still free is held.
        self.ports.iter_mut().fold(true, |all, (_, reservation)| {
            reservation.hold_again(hold_level).is_ok() && all
        })
    }

    /// Discards all ports, so that strings expanded later get new ones.
    pub(crate) fn new_ports(&mut self) {
        self.spoiled
            .extend(self.ports.iter().map(|(_, reservation)| reservation.port()));
        self.ports.clear();
    }

    /// Loosens the holds by one step, for a service that cannot bind its ports although only this
    /// process holds them. Returns `false` if no step is left.
    pub(crate) fn loosen(&mut self) -> bool {
        match self.hold_level.looser() {
            Some(looser) if !self.ports.is_empty() => {
                self.set_hold_level(looser);
                true
            }
            _ => false,
        }
    }

    fn set_hold_level(&mut self, hold_level: HoldLevel) {
        self.hold_level = hold_level;
        for (_, reservation) in &mut self.ports {
            reservation.loosen(hold_level);
        }
    }

    fn expand_bytes(&mut self, text: &[u8]) -> Result<Vec<u8>, ExpandError> {
        expand_bytes(text, &mut |found, out| self.push_value(found, out))
    }

    fn push_value(&mut self, found: &Placeholder<'_>, out: &mut Vec<u8>) -> Result<(), ExpandError> {
        let argument = found.argument.map(String::from_utf8_lossy);
        match (found.word, argument.as_deref()) {
            ("port", name) => {
                let port = self
                    .reserve(name.unwrap_or_default())
                    .map_err(ExpandError::Port)?;
                out.extend_from_slice(port.to_string().as_bytes());
            }
            ("dir", None) if self.for_shell => push_quoted(self.dir.as_os_str().as_bytes(), out),
            ("dir", None) => out.extend_from_slice(self.dir.as_os_str().as_bytes()),
            ("id", None) => out.extend_from_slice(self.id().as_bytes()),
            ("name", None) => out.extend_from_slice(self.name.as_bytes()),
            ("env", Some(variable)) => {
                let bytes = found.argument.unwrap_or_default();
                let placeholder = format!("{{env:{variable}}}");
                if self.for_show {
                    out.extend_from_slice(placeholder.as_bytes());
                    return Ok(());
                }
                match std::env::var_os(OsStr::from_bytes(bytes)) {
                    Some(value) => {
                        self.secrets.add(&value.to_string_lossy(), &placeholder);
                        out.extend_from_slice(value.as_bytes());
                    }
                    None => {
                        return Err(ExpandError::Text(format!(
                            "the environment variable `{variable}` is not set, and `{{env:{variable}}}` asks \
                             for it; set it for the test process"
                        )));
                    }
                }
            }
            (word @ ("dir" | "name" | "id"), Some(argument)) => {
                return Err(ExpandError::Text(format!(
                    "`{{{word}:{argument}}}`: `{word}` takes no argument; write `{{{word}}}`"
                )));
            }
            ("env", None) => {
                return Err(ExpandError::Text(
                    "`{env}`: which environment variable? write `{env:VAR}`".to_owned(),
                ));
            }
            _ => {
                return Err(ExpandError::Text(format!(
                    "unknown placeholder `{found}`; the known ones are {KNOWN}, and `{{{found}}}` gives the \
                     text `{found}` itself"
                )));
            }
        }
        Ok(())
    }

    fn reserve(&mut self, name: &str) -> io::Result<u16> {
        if let Some(port) = self.port(name) {
            return Ok(port);
        }
        let reservation = match self.given.iter().position(|(given, _)| given == name) {
            Some(given) => self.given.remove(given).1,
            None => Reservation::new(self.range, self.hold_level, &self.spoiled)?,
        };
        let port = reservation.port();
        self.ports.push((name.to_owned(), reservation));
        Ok(port)
    }
}

/// Appends `text` to a shell script, quoted for its place: inside double quotes, inside single
/// quotes, or outside quotes.
fn push_quoted(text: &[u8], script: &mut Vec<u8>) {
    let mut quote = None;
    let mut bytes = script.iter();
    while let Some(byte) = bytes.next() {
        match (quote, byte) {
            (None | Some(b'"'), b'\\') => {
                bytes.next();
            }
            (None, b'"' | b'\'') => quote = Some(*byte),
            (Some(open), byte) if open == *byte => quote = None,
            _ => {}
        }
    }
    for byte in text {
        let needs_backslash = match quote {
            Some(b'\'') if *byte == b'\'' => {
                script.extend_from_slice(b"'\\''");
                continue;
            }
            Some(b'\'') => false,
            Some(_) => b"\"$`\\".contains(byte),
            None => byte.is_ascii() && !byte.is_ascii_alphanumeric() && !b"/._-+:,=@%".contains(byte),
        };
        if needs_backslash {
            script.push(b'\\');
        }
        script.push(*byte);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::recipe::placeholder::literal;
    use crate::sys::tests::in_time;

    fn values() -> Values {
        Values::new("redis".to_owned(), PathBuf::from("/tmp/of/it"))
    }

    fn expand(text: &str) -> String {
        values().expand(text).unwrap()
    }

    fn error(text: &str) -> String {
        match values().expand(text) {
            Err(ExpandError::Text(reason)) => reason,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_literal_text_expands_to_itself() {
        for text in [
            "/tmp/{port}/x",
            "{{port}}",
            "${dir}",
            "{{{name}}}",
            "{port}{dir}",
            "a{b",
            "{x:{port}}",
            "{}",
        ] {
            let escaped = crate::recipe::placeholder::literal(text).into_string().unwrap();
            assert_eq!(expand(&escaped), text, "{escaped}");
        }
    }

    #[test]
    fn known_words_get_their_values() {
        assert_eq!(expand("{name} in {dir}/data"), "redis in /tmp/of/it/data");
        let path = std::env::var("PATH").unwrap();
        assert_eq!(expand("<{env:PATH}>"), format!("<{path}>"));
    }

    #[test]
    fn a_port_is_reserved_once_for_each_name() {
        let mut values = values();
        assert_eq!(values.port(""), None);
        assert_eq!(
            values.ports().count(),
            0,
            "nothing is reserved before it is asked for"
        );
        let text = values.expand("{port} {port:admin} {port}").unwrap();
        let (first, second) = (values.port("").unwrap(), values.port("admin").unwrap());
        assert_ne!(first, second);
        assert_eq!(text, format!("{first} {second} {first}"));
        assert_eq!(
            values.ports().collect::<Vec<_>>(),
            [("", first), ("admin", second)]
        );
        values.set_hold_level(HoldLevel::Open);
        values.set_hold_level(HoldLevel::Firm);
        in_time(|| values.hold_again());
        assert_eq!(
            values.expand("{port}").unwrap(),
            first.to_string(),
            "the same one again"
        );
        values.new_ports();
        let other = values.expand("{port}").unwrap();
        assert!(other != first.to_string() && other != second.to_string());
    }

    #[test]
    fn a_directory_with_odd_characters_is_one_word_of_a_script() {
        let dir = r#"/tmp/a b's "c" $HOME `x` \;#&"#;
        for script in [
            "printf '<%s>' {dir}/x",
            "printf '<%s>' \"{dir}/x\"",
            "printf '<%s>' '{dir}'/x",
            "printf '<%s>' \\'\"it's\"'\"' > /dev/null; printf '<%s>' {dir}/x",
        ] {
            let mut values = Values::new(String::new(), PathBuf::from(dir));
            let script = values.expand_script(OsStr::new(script)).unwrap();
            let output = std::process::Command::new("sh")
                .arg("-c")
                .arg(&script)
                .output()
                .unwrap();
            let printed = String::from_utf8(output.stdout).unwrap();
            assert_eq!(printed, format!("<{dir}/x>"), "{script:?}");
        }
        // `{dir}` is quoted only in scripts.
        let mut values = Values::new(String::new(), PathBuf::from(dir));
        assert_eq!(values.expand("{dir}").unwrap(), dir);
    }

    #[test]
    fn holds_loosen_step_by_step() {
        use std::net::TcpListener;
        let mut values = values();
        assert!(!values.loosen(), "there is nothing to loosen");
        let port: u16 = values.expand("{port}").unwrap().parse().unwrap();
        assert!(values.loosen());
        assert!(values.loosen());
        assert!(!values.loosen());
        assert_eq!(values.port(""), Some(port));
        values.set_hold_level(HoldLevel::Firm);
        in_time(|| values.hold_again());
        TcpListener::bind(("127.0.0.1", port)).unwrap();
    }

    #[test]
    fn braces_that_are_no_placeholders_stay() {
        for text in [
            "{}",
            "{",
            "}",
            "{{}}",
            "{ port }",
            "{PORT}",
            "{Port}",
            "{port",
            "port}",
            "{port:}",
            "{:port}",
            "{1}",
            "a{2,3}",
            "{1..9}",
            "{a,b}",
            "{a..z}",
            "${port}",
            "${HOME}",
            "${x:-y}",
            "{ print $1 }",
            "awk '{print $1}'",
            r#"{"a":{"b":1}}"#,
            r#"{"port":6379}"#,
            "listen({port: 80})",
            "{host:'x'}",
            "{\u{e9}t\u{e9}}",
        ] {
            assert_eq!(expand(text), text);
        }
    }

    #[test]
    fn a_placeholder_may_stand_between_other_braces() {
        assert_eq!(expand(r#"{"x":{name}}"#), r#"{"x":redis}"#);
        assert_eq!(expand("{{name}"), "{redis");
        assert_eq!(expand("{name}}"), "redis}");
        assert_eq!(expand("${X:-{name}}"), "${X:-redis}");
        assert_eq!(expand("$ {name}"), "$ redis");
    }

    #[test]
    fn doubled_braces_give_the_text_itself() {
        assert_eq!(expand("{{port}}"), "{port}");
        assert_eq!(expand("{{port:admin}} {name}"), "{port:admin} redis");
        assert_eq!(expand("{{unknown}}"), "{unknown}");
        assert_eq!(expand("{{{port}}}"), "{{port}}");
        assert_eq!(expand("${{port}}"), "${port}");
    }

    #[test]
    fn mistakes_are_named_with_what_would_be_right() {
        let unknown = error("--port {prot}");
        assert!(unknown.starts_with("unknown placeholder `{prot}`"), "{unknown}");
        assert!(unknown.contains(KNOWN), "{unknown}");
        assert!(
            unknown.contains("`{{prot}}` gives the text `{prot}`"),
            "{unknown}"
        );
        assert!(error("{data_dir:x}").contains("`{data_dir:x}`"));
        assert!(error("{dir:x}").ends_with("write `{dir}`"));
        assert!(error("{name:x}").ends_with("write `{name}`"));
        assert!(error("{env}").ends_with("write `{env:VAR}`"));
        assert!(error("{env:MIRAKURU_NO_SUCH}").contains("`MIRAKURU_NO_SUCH` is not set"));
    }

    #[test]
    fn bytes_that_are_not_utf8_pass() {
        let text = OsStr::from_bytes(b"\xff{name}\xfe{\xfd}");
        assert_eq!(
            values().expand_os(text).unwrap().as_bytes(),
            b"\xffredis\xfe{\xfd}"
        );
        let mut odd = Values::new(String::new(), PathBuf::from(OsStr::from_bytes(b"/\xff")));
        assert!(matches!(odd.expand("{dir}"), Err(ExpandError::Text(_))));
        assert_eq!(odd.expand_os(OsStr::new("{dir}")).unwrap().as_bytes(), b"/\xff");
    }

    /// Random fragments of placeholders, which often form no valid placeholder.
    fn tricky() -> impl Strategy<Value = String> {
        let pieces = [
            "{", "}", "{{", "}}", "$", ":", "name", "dir", "port", "a", " ", "\"", "{name}", "{x:y}",
        ];
        prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn text_without_an_opening_brace_is_untouched(text in "[^{]*") {
            prop_assert_eq!(expand(&text), text);
        }

        #[test]
        fn what_is_escaped_comes_out_as_it_was(text in tricky()) {
            prop_assert_eq!(expand(literal(&text).to_str().unwrap()), text);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = values().expand_os(OsStr::from_bytes(&bytes));
        }

        #[test]
        fn no_tricky_text_makes_it_panic(text in tricky()) {
            let _ = values().expand(&text);
        }

        #[test]
        fn values_are_not_looked_at_again(value in tricky(), before in "[^{$]*", after in "[^{]*") {
            let mut values = Values::new(value.clone(), PathBuf::from("/d"));
            let text = format!("{before}{{name}}{after}");
            prop_assert_eq!(values.expand(&text).unwrap(), format!("{before}{value}{after}"));
        }
    }
}
