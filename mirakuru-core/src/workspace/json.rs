//! A JSON parser for cargo's messages.

/// A JSON value. Numbers are kept as text, because this crate does not calculate with them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    /// `null`, `true`, `false`, or a number.
    Other(String),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

/// The maximum nesting depth of values. Cargo's messages have six levels.
const DEPTH: usize = 64;

impl Json {
    /// Parses `text`. Returns `None` if it is not valid JSON.
    pub(crate) fn parse(text: &str) -> Option<Json> {
        let mut reader = Reader { rest: text };
        let value = reader.value(DEPTH)?;
        reader.space();
        reader.rest.is_empty().then_some(value)
    }

    /// Returns the member of an object that has this name.
    pub(crate) fn get(&self, name: &str) -> Option<&Json> {
        match self {
            Json::Object(members) => members
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value),
            _ => None,
        }
    }

    /// Returns the member of an object that has this name, if its value is a string.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the list in an object that has this name. Empty if there is no such list.
    pub(crate) fn list(&self, name: &str) -> &[Json] {
        match self.get(name) {
            Some(Json::List(list)) => list,
            _ => &[],
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
    }

    /// Skips white space and consumes this text, if it comes next.
    fn take(&mut self, text: &str) -> Option<()> {
        self.space();
        self.rest = self.rest.strip_prefix(text)?;
        Some(())
    }

    fn value(&mut self, depth: usize) -> Option<Json> {
        let depth = depth.checked_sub(1)?;
        self.space();
        match self.rest.chars().next()? {
            '"' => self.string().map(Json::Text),
            '[' => self
                .sequence("[", "]", |reader| reader.value(depth))
                .map(Json::List),
            '{' => {
                let member = |reader: &mut Self| {
                    reader.space();
                    let name = reader.string()?;
                    reader.take(":")?;
                    Some((name, reader.value(depth)?))
                };
                self.sequence("{", "}", member).map(Json::Object)
            }
            _ => {
                let is_word = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
                let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
                let (word, rest) = self.rest.split_at(end);
                self.rest = rest;
                let is_value = matches!(word, "null" | "true" | "false") || word.parse::<f64>().is_ok();
                is_value.then(|| Json::Other(word.to_owned()))
            }
        }
    }

    fn sequence<T>(
        &mut self,
        begin: &str,
        end: &str,
        mut entry: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        self.take(begin)?;
        let mut entries = Vec::new();
        if self.take(end).is_some() {
            return Some(entries);
        }
        loop {
            entries.push(entry(self)?);
            if self.take(end).is_some() {
                return Some(entries);
            }
            self.take(",")?;
        }
    }

    fn string(&mut self) -> Option<String> {
        self.rest = self.rest.strip_prefix('"')?;
        let mut text = String::new();
        loop {
            let end = self.rest.find(['"', '\\'])?;
            text.push_str(&self.rest[..end]);
            let quoted = self.rest[end..].starts_with('\\');
            self.rest = &self.rest[end + 1..];
            if !quoted {
                return Some(text);
            }
            text.push(self.escaped()?);
        }
    }

    /// Reads the character after a backslash, which is already consumed, and returns the character
    /// that the escape stands for.
    fn escaped(&mut self) -> Option<char> {
        let kind = self.rest.chars().next()?;
        self.rest = &self.rest[kind.len_utf8()..];
        Some(match kind {
            '"' | '\\' | '/' => kind,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let first = self.unit()?;
                let is_half = (0xd800..0xdc00).contains(&first);
                let units = match is_half && self.rest.starts_with("\\u") {
                    true => {
                        self.rest = &self.rest[2..];
                        vec![first, self.unit()?]
                    }
                    false => vec![first],
                };
                char::decode_utf16(units)
                    .next()?
                    .unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            _ => return None,
        })
    }

    fn unit(&mut self) -> Option<u16> {
        let digits = self.rest.get(..4)?;
        self.rest = &self.rest[4..];
        u16::from_str_radix(digits, 16).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_all_kinds() {
        let json = r#" {"a": [1, -2.5e3, true, null, {}], "b\n\"\u00e4\ud83d\ude00": "\/x", "c": []} "#;
        let json = Json::parse(json).expect("it is JSON");
        assert_eq!(json.list("a").len(), 5);
        assert_eq!(json.list("a")[1], Json::Other("-2.5e3".to_owned()));
        assert_eq!(json.text("b\n\"\u{e4}\u{1f600}"), Some("/x"));
        assert!(json.list("c").is_empty());
        assert!(json.get("d").is_none() && json.list("b").is_empty());
    }

    #[test]
    fn other_texts_are_none() {
        for text in [
            "",
            "{",
            "[1,]",
            "[1 2]",
            "{\"a\"}",
            "\"x",
            "\"\\q\"",
            "nul",
            "1 2",
            "Compiling x",
            "\"\\u00\"",
            "[\"\\",
        ] {
            assert_eq!(Json::parse(text), None, "{text}");
        }
        assert_eq!(Json::parse(&"[".repeat(100_000)), None);
    }
}
