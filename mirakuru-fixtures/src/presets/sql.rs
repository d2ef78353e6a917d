//! Finds and sorts the SQL that recipes load, and checks that all of it goes into the right
//! database.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mirakuru_core::__private::hash;
use mirakuru_core::Error;

use super::failed;

#[derive(Clone, Debug)]
pub(super) enum Script {
    Text(String),
    File(PathBuf),
}

impl Script {
    /// Describes the script in error messages.
    pub(crate) fn attempt(&self) -> String {
        match self {
            Script::Text(_) => "load the recipe's SQL".to_owned(),
            Script::File(path) => format!("load {}", path.display()),
        }
    }

    /// Reads the text, and checks that all of it goes into the open database.
    ///
    /// # Errors
    ///
    /// Fails if the script cannot be read, switches to another database, or leaves a transaction
    /// open. The error names the line.
    pub(crate) fn read(&self, dialect: Dialect) -> Result<Vec<u8>, Error> {
        let text = match self {
            Script::Text(text) => text.clone().into_bytes(),
            Script::File(path) => fs::read(path).map_err(|source| failed(self.attempt(), source))?,
        };
        match check(&text, dialect) {
            Ok(()) => Ok(text),
            Err((line, reason)) => Err(Error::other(self.attempt(), format!("line {line}: {reason}"))),
        }
    }
}

/// Finds the scripts for an argument of `load_sql`: SQL, a file, or the files of a directory.
///
/// # Errors
///
/// Fails if there is no such file or directory, or if a directory has no `.sql` file.
pub(super) fn find(given: &str, scripts: &mut Vec<Script>) -> Result<(), Error> {
    let path = Path::new(given);
    if is_sql(given) && !path.exists() {
        scripts.push(Script::Text(given.to_owned()));
        return Ok(());
    }
    let failed = |source| {
        let dir = std::env::current_dir().unwrap_or_default();
        failed(
            format!("load the SQL in {given} (from {})", dir.display()),
            source,
        )
    };
    if path.is_dir() {
        let before = scripts.len();
        find_in(&std::path::absolute(path).map_err(failed)?, scripts)?;
        if scripts.len() == before {
            let reason = "it contains no `.sql` file";
            return Err(Error::other(format!("load the SQL in {given}"), reason));
        }
        return Ok(());
    }
    fs::File::open(path).map_err(failed)?;
    scripts.push(Script::File(std::path::absolute(path).map_err(failed)?));
    Ok(())
}

/// Whether a string is SQL rather than a path.
fn is_sql(given: &str) -> bool {
    let is_path = given.starts_with(['/', '.', '~']) && !given.starts_with("/*");
    let is_name = given.to_ascii_lowercase().ends_with(".sql") || given.ends_with('/');
    given.contains([';', '\n']) || (given.contains(' ') && !is_path && !is_name)
}

fn find_in(dir: &Path, scripts: &mut Vec<Script>) -> Result<(), Error> {
    let failed = |source| failed(format!("load the SQL in {}", dir.display()), source);
    // `entries` is kept sorted by name.
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let entry = (in_order(&name), name, entry.path());
        let at = entries.partition_point(|known| *known < entry);
        entries.insert(at, entry);
    }
    for (_, name, path) in entries {
        let undoes = name == "down.sql" || name.ends_with(".down.sql");
        if name.starts_with('.') || undoes {
            continue;
        }
        if path.is_dir() {
            find_in(&path, scripts)?;
        } else if name.ends_with(".sql") {
            scripts.push(Script::File(path));
        }
    }
    Ok(())
}

/// A sort key that orders the numbers in names by value: each number is prefixed with its length.
fn in_order(name: &str) -> String {
    let mut key = String::new();
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if digits == 0 {
            key.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            let number = rest[..digits].trim_start_matches('0');
            key.push_str(&format!("{:03}{number}", number.len()));
            rest = &rest[digits..];
        }
    }
    key
}

/// Identifies the SQL that a server loads. For a file, uses the path, size, inode and modification
/// time, because reading a large file would be slow.
pub(super) fn digest(scripts: &[Script]) -> String {
    let mut text = String::new();
    for script in scripts {
        match script {
            Script::Text(sql) => text.push_str(&format!("{}\n{sql}\n", sql.len())),
            Script::File(path) => {
                let found = fs::metadata(path).map(|file| {
                    let (size, inode) = (file.size(), file.ino());
                    format!("{size} {inode} {}.{}", file.mtime(), file.mtime_nsec())
                });
                text.push_str(&format!("{}\n{}\n", path.display(), found.unwrap_or_default()));
            }
        }
    }
    format!("{:016x}{:016x}", hash(0, &text), hash(1, &text))
}

// ---- statements that would be lost --------------------------------------------------------------

/// The client program that reads the SQL.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Dialect {
    Psql,
    Mysql,
}

/// The first words of the current statement.
#[derive(Default)]
struct Statement {
    line: usize,
    /// The offset at which the statement begins in the text.
    at: usize,
    /// The first three words, in upper case.
    words: Vec<String>,
    last_word: String,
    copies_from_stdin: bool,
}

impl Statement {
    fn add(&mut self, word: &[u8], at: usize, line: usize) {
        let word = String::from_utf8_lossy(word).to_ascii_uppercase();
        if self.words.is_empty() {
            (self.at, self.line) = (at, line);
        }
        if word == "STDIN" && self.last_word == "FROM" {
            self.copies_from_stdin = self.words.first().is_some_and(|first| first == "COPY");
        }
        self.last_word.clone_from(&word);
        if self.words.len() < 3 {
            self.words.push(word);
        }
    }
}

/// Finds a statement that would keep later SQL out of the open database. Returns its line and the
/// reason.
fn check(text: &[u8], dialect: Dialect) -> Result<(), (usize, String)> {
    let mysql = dialect == Dialect::Mysql;
    let mut delimiter = b";".to_vec();
    let mut statement = Statement::default();
    let mut open_since = None;
    let (mut at, mut line) = (0, 1);
    while at < text.len() {
        let rest = &text[at..];
        let begins_line = at == 0 || text[at - 1] == b'\n';
        let previous = if at == 0 { b' ' } else { text[at - 1] };
        let mut length = 1;
        if mysql && begins_line && statement.words.is_empty() {
            if let Some(given) = client_command(rest, "DELIMITER") {
                delimiter = given.to_vec();
                length = end_of_line(rest);
                at += length;
                continue;
            }
            if client_command(rest, "\\u").is_some() {
                return Err((line, elsewhere(&rest[..end_of_line(rest)], dialect)));
            }
        }
        if rest.starts_with(&delimiter) {
            length = delimiter.len();
            let ended = std::mem::take(&mut statement);
            judge(&ended, text, dialect, &mut open_since)?;
            if ended.copies_from_stdin && !mysql {
                length += data_of_copy(&rest[length..]);
            }
        } else if rest.starts_with(b"--") || (mysql && rest[0] == b'#') {
            length = end_of_line(rest);
        } else if rest.starts_with(b"/*") {
            length = comment(rest, !mysql);
        } else if rest[0] == b'\'' || rest[0] == b'"' || (mysql && rest[0] == b'`') {
            let is_escaped =
                rest[0] != b'`' && (mysql || (rest[0] == b'\'' && matches!(previous, b'e' | b'E')));
            length = quoted(rest, is_escaped);
        } else if rest[0] == b'$' && !mysql && !is_word(previous) {
            length = dollar_quoted(rest);
        } else if rest[0] == b'\\' && !mysql {
            length = end_of_line(rest);
            let command = &rest[1..length];
            let name = command.split(u8::is_ascii_whitespace).next().unwrap_or_default();
            if matches!(name, b"c" | b"connect") {
                return Err((line, elsewhere(&rest[..length], dialect)));
            }
            // `\g`, `\gexec`, `\gset` and `\gx` end a statement as a semicolon does.
            if name.starts_with(b"g") {
                judge(&std::mem::take(&mut statement), text, dialect, &mut open_since)?;
            }
        } else if is_word(rest[0]) {
            length = rest.iter().position(|byte| !is_word(*byte)).unwrap_or(rest.len());
            statement.add(&rest[..length], at, line);
        }
        line += rest[..length].iter().filter(|byte| **byte == b'\n').count();
        at += length;
    }
    judge(&statement, text, dialect, &mut open_since)?;
    match open_since {
        None => Ok(()),
        Some(line) => Err((
            line,
            "this transaction is not committed at the end of the file, so its statements would be lost: add \
                `COMMIT;`"
                .to_owned(),
        )),
    }
}

/// Updates `open_since` if a statement begins or ends a transaction. Fails if the statement
/// switches to another database.
fn judge(
    statement: &Statement,
    text: &[u8],
    dialect: Dialect,
    open_since: &mut Option<usize>,
) -> Result<(), (usize, String)> {
    let words: Vec<&str> = statement.words.iter().map(String::as_str).collect();
    match words[..] {
        ["USE", ..] if dialect == Dialect::Mysql => {
            let rest = &text[statement.at..];
            return Err((statement.line, elsewhere(&rest[..end_of_line(rest)], dialect)));
        }
        ["BEGIN", "NOT", ..] => {}
        ["BEGIN", ..] | ["START", "TRANSACTION", ..] | ["SET", "AUTOCOMMIT", "0" | "OFF"] => {
            open_since.get_or_insert(statement.line);
        }
        ["ROLLBACK", "TO", ..] | [_, "AND", "CHAIN"] => {}
        ["COMMIT" | "END" | "ROLLBACK" | "ABORT", ..]
        | ["PREPARE", "TRANSACTION", ..]
        | ["SET", "AUTOCOMMIT", "1" | "ON"] => *open_since = None,
        _ => {}
    }
    Ok(())
}

fn elsewhere(command: &[u8], dialect: Dialect) -> String {
    let command = String::from_utf8_lossy(command);
    let option = match dialect {
        Dialect::Psql => "`pg_dump` without `--create`",
        Dialect::Mysql => "`mariadb-dump` without `--databases`",
    };
    format!(
        "`{}` leads to another database, and no test's database would have the statements after it: remove \
         the line, or dump with {option}",
        command.trim().trim_end_matches(';')
    )
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn end_of_line(text: &[u8]) -> usize {
    text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len())
}

/// The argument of the client command `name`, if the text begins with that command.
fn client_command<'a>(text: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let line = text[..end_of_line(text)].trim_ascii();
    let is_it = line.get(..name.len())?.eq_ignore_ascii_case(name.as_bytes());
    let argument = &line[name.len()..];
    (is_it && argument.first().is_some_and(u8::is_ascii_whitespace)).then(|| argument.trim_ascii())
}

fn comment(text: &[u8], nests: bool) -> usize {
    let (mut at, mut depth) = (2, 1);
    while at < text.len() && depth > 0 {
        if text[at..].starts_with(b"*/") {
            (at, depth) = (at + 2, depth - 1);
        } else if nests && text[at..].starts_with(b"/*") {
            (at, depth) = (at + 2, depth + 1);
        } else {
            at += 1;
        }
    }
    at
}

/// Length of a quoted string. A doubled quote counts as the end of one string and the start of the
/// next.
fn quoted(text: &[u8], is_escaped: bool) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != text[0] {
        at += if is_escaped && text[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

fn dollar_quoted(text: &[u8]) -> usize {
    let tag = text[1..]
        .iter()
        .position(|byte| !is_word(*byte))
        .map(|end| end + 1);
    let Some(end) = tag.filter(|end| text[*end] == b'$' && !text[1].is_ascii_digit()) else {
        return 1;
    };
    let tag = &text[..=end];
    let body = &text[tag.len()..];
    let closing = body.windows(tag.len()).position(|part| part == tag);
    closing.map_or(text.len(), |at| tag.len() + at + tag.len())
}

/// Length of the data of a `COPY`, up to and including the line `\.`.
fn data_of_copy(text: &[u8]) -> usize {
    let mut at = end_of_line(text);
    while at < text.len() {
        at += 1;
        let line = &text[at..at + end_of_line(&text[at..])];
        at += line.len();
        if line.trim_ascii_end() == b"\\." {
            break;
        }
    }
    at.min(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str, dialect: Dialect) -> Option<usize> {
        check(text.as_bytes(), dialect).err().map(|(line, _)| line)
    }

    #[test]
    fn sql_that_leads_elsewhere_is_found_by_its_line() {
        let psql = |text: &str| problem(text, Dialect::Psql);
        assert_eq!(
            psql("CREATE DATABASE app;\n\\connect app\nCREATE TABLE x ();"),
            Some(2)
        );
        assert_eq!(psql("SELECT 1;\n\\c app"), Some(2));
        assert_eq!(psql("SELECT '\n\\c app\n';"), None);
        assert_eq!(psql("SELECT E'\\'\n\\c ';\\c b"), Some(2));
        assert_eq!(psql("DO $a$\n\\c $$ ; begin;\n$a$;"), None);
        assert_eq!(psql("-- \\c app\n/* /* */ \\c b */ \\copy t FROM 'x'\n"), None);
        assert_eq!(
            psql("COPY t (a) FROM stdin;\n\\c app\nBEGIN;\n\\.\nSELECT 1;"),
            None
        );
        assert_eq!(
            psql("COPY t FROM stdin WITH (FORMAT csv);\n1\n\\.\n\\c app"),
            Some(4)
        );
        let mysql = |text: &str| problem(text, Dialect::Mysql);
        assert_eq!(
            mysql("CREATE DATABASE app;\nUSE `app`;\nCREATE TABLE x (y INT);"),
            Some(2)
        );
        assert_eq!(mysql("\nuse app\n"), Some(2));
        assert_eq!(
            mysql("INSERT INTO t VALUES ('it\\'s', \"use x;\");\n# use x;\n"),
            None
        );
        assert_eq!(mysql("SELECT 1 FROM t USE INDEX (a);"), None);
    }

    #[test]
    fn a_transaction_that_stays_open_is_found_by_its_line() {
        let psql = |text: &str| problem(text, Dialect::Psql);
        assert_eq!(psql("SELECT 1;\nBEGIN;\nINSERT INTO t VALUES (1);\n"), Some(2));
        assert_eq!(psql("START TRANSACTION ISOLATION LEVEL SERIALIZABLE;"), Some(1));
        assert_eq!(psql("begin; SELECT 1; commit;"), None);
        assert_eq!(psql("BEGIN; SAVEPOINT a; ROLLBACK TO a;"), Some(1));
        assert_eq!(psql("BEGIN; ROLLBACK"), None);
        let function = "CREATE FUNCTION f() RETURNS int LANGUAGE sql\nBEGIN ATOMIC\n SELECT 1;\n END;";
        assert_eq!(psql(function), None);
        let mysql = |text: &str| problem(text, Dialect::Mysql);
        assert_eq!(mysql("SET autocommit = 0;\nINSERT INTO t VALUES (1);"), Some(1));
        assert_eq!(
            mysql("SET AUTOCOMMIT=0; START TRANSACTION; SELECT 1; COMMIT;"),
            None
        );
        let procedure =
            "DELIMITER //\nCREATE PROCEDURE p()\nBEGIN\n SELECT 1;\nEND//\nDELIMITER ;\nSELECT 1;";
        assert_eq!(mysql(procedure), None);
    }

    #[test]
    fn a_name_with_a_space_is_no_sql() {
        for path in ["my dump.sql", "./my schema", "/tmp/a b", "schema.sql", "schema"] {
            assert!(!is_sql(path), "{path}");
        }
        for sql in ["SELECT 1", "CREATE TABLE a (b INT);", "/* x */ SELECT 1", "a\nb"] {
            assert!(is_sql(sql), "{sql}");
        }
        let error = find("no such dump.sql", &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("no such dump.sql"), "{error}");
    }

    #[test]
    fn numbers_in_names_are_in_their_order() {
        let mut names = ["V10__c.sql", "V9__b.sql", "V09__a.sql", "Va.sql", "V100__d.sql"];
        names.sort_by_key(|name| (in_order(name), *name));
        assert_eq!(
            names,
            ["V09__a.sql", "V9__b.sql", "V10__c.sql", "V100__d.sql", "Va.sql"]
        );
    }

    #[test]
    fn a_directory_is_read_in_order_and_without_what_undoes() {
        let dir = std::env::temp_dir().join(format!("mirakuru-unit-{}-sql", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        for name in ["2_b", "10_c"] {
            fs::create_dir_all(dir.join(name)).unwrap();
            fs::write(dir.join(name).join("up.sql"), name).unwrap();
            fs::write(dir.join(name).join("down.sql"), "no").unwrap();
        }
        for name in ["1_a.up.sql", "1_a.down.sql", ".hidden.sql", "README.md"] {
            fs::write(dir.join(name), name).unwrap();
        }
        let mut scripts = Vec::new();
        find(dir.to_str().unwrap(), &mut scripts).unwrap();
        let texts = scripts.iter().map(|script| script.read(Dialect::Psql).unwrap());
        assert_eq!(texts.collect::<Vec<_>>(), [&b"1_a.up.sql"[..], b"2_b", b"10_c"]);

        let before = digest(&scripts);
        assert_eq!(digest(&scripts), before);
        fs::write(dir.join("1_a.up.sql"), "another text").unwrap();
        assert_ne!(digest(&scripts), before);
        fs::remove_dir_all(&dir).unwrap();
        let error = find("no/such/dir", &mut scripts).unwrap_err();
        assert!(error.to_string().contains("no/such/dir"), "{error}");
    }
}
