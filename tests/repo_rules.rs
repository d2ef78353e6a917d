//! Rules of this repository that the compiler does not check.
//!
//! This is a separate binary, because it only reads files: it builds and runs in a second. It is
//! long because the rules share a small scanner for Rust code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const CRATES: [&str; 4] = [".", "mirakuru-core", "mirakuru-macros", "mirakuru-fixtures"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this package is a folder of it")
        .to_owned()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// All Rust files below a folder.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    files_of(folder, "rs")
}

/// All files below a folder with this extension.
fn files_of(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        // `tests/compile_fail/tests/ui` is a link to `tests/ui`.
        if path.is_dir() && !path.is_symlink() {
            files.extend(files_of(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The code without comments and without the content of literals. The line breaks stay.
fn bare_code(source: &str) -> String {
    scan(source).0
}

/// The bare code, and the numbers of the lines that belong to raw strings.
fn scan(source: &str) -> (String, BTreeSet<usize>) {
    let (mut bare, mut raw) = (String::new(), BTreeSet::new());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let taken = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if first == '"' {
            bare.push('"');
            literal(rest)
        } else if let Some(length) = raw_string(rest, &bare) {
            bare.push('"');
            let line = bare.matches('\n').count();
            raw.extend(line..=line + rest[..length].matches('\n').count());
            length
        } else if let Some(length) = char_literal(rest) {
            bare.push('\'');
            length
        } else {
            bare.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        bare.extend(rest[..taken].chars().filter(|&c| c == '\n'));
        rest = &rest[taken..];
    }
    (bare, raw)
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of the string literal that begins here.
fn literal(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of the raw string that begins here. `None` if there is none.
fn raw_string(text: &str, before: &str) -> Option<usize> {
    let after = text.strip_prefix('r')?;
    // `for"` begins no raw string, but `br"` does.
    let previous = before.strip_suffix('b').unwrap_or(before).chars().next_back();
    if previous.is_some_and(|c| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let hashes = after.chars().take_while(|&c| c == '#').count();
    after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let begin = 2 + hashes;
    Some(
        text[begin..]
            .find(&end)
            .map_or(text.len(), |at| begin + at + end.len()),
    )
}

/// The length of the character literal that begins here. `None` for a lifetime, which has no second
/// quote.
fn char_literal(text: &str) -> Option<usize> {
    let mut chars = text.strip_prefix('\'')?.char_indices();
    let (_, first) = chars.next()?;
    if first == '\\' {
        // The escaped character may itself be a quote.
        chars.next()?;
        return chars.find(|&(_, c)| c == '\'').map(|(at, _)| at + 2);
    }
    chars.next().filter(|&(_, c)| c == '\'').map(|(at, _)| at + 2)
}

/// Whether a line contains this word as a whole.
fn has_word(line: &str, word: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(inside)
            && !line[at + word.len()..].chars().next().is_some_and(inside)
    })
}

#[test]
fn the_scanner_sees_code_and_only_code() {
    let source = "let a = \"unsafe\"; // unsafe\n/* unsafe /* nix::x */ */ let b = '\"'; let c: &'static str \
        = r#\"\"nix::\"#;\n\
                  unsafe { libc::kill(1, '\\'' as i32) } // nix::y\nlet unsafe_code = 1;";
    let bare = bare_code(source);
    let lines: Vec<&str> = bare.lines().collect();
    assert_eq!(lines.len(), 4, "{bare}");
    assert!(
        !has_word(lines[0], "unsafe") && !has_word(lines[1], "unsafe"),
        "{bare}"
    );
    assert!(!bare.contains("nix"), "{bare}");
    assert!(
        has_word(lines[2], "unsafe") && has_word(lines[2], "libc"),
        "{bare}"
    );
    assert!(!has_word(lines[3], "unsafe"), "{bare}");
}

/// `unsafe`, `nix` and `libc` are allowed in one folder only, so that all of it can be reviewed.
#[test]
fn system_calls_are_under_sys_alone() {
    let sys = root().join("mirakuru-core/src/sys");
    let mut offences = Vec::new();
    let mut seen = 0;
    for folder in CRATES {
        for file in rust_files(&root().join(folder).join("src")) {
            if file.starts_with(&sys) {
                continue;
            }
            seen += 1;
            let code = bare_code(&fs::read_to_string(&file).unwrap());
            for (number, line) in code.lines().enumerate() {
                for word in ["unsafe", "nix", "libc"] {
                    if has_word(line, word) {
                        offences.push(format!("{}:{}: {}", file.display(), number + 1, line.trim()));
                    }
                }
            }
        }
    }
    assert!(seen > 10, "where are the sources? {seen} files");
    assert!(
        offences.is_empty(),
        "only mirakuru-core/src/sys may have these:\n{}",
        offences.join("\n")
    );
}

// ---- imports ------------------------------------------------------------------------------------

/// The core's folders from the bottom up, as listed at the head of its `lib.rs`.
fn folders() -> Vec<String> {
    let lib = read("mirakuru-core/src/lib.rs");
    let names = lib.lines().filter_map(|line| line.strip_prefix("//! - `"));
    names
        .filter_map(|line| Some(line.split_once("/`")?.0.to_owned()))
        .collect()
}

/// The members of a group of imports: `a::{b, c}` and `d` for `{a::{b, c}, d}`.
fn members(group: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut members) = (0, 1, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || depth == 1 && c == ',' {
            members.push(group[begin..at].trim());
            begin = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    members
}

/// The first names of all paths in a file that start at the root of its crate. The file is `depth`
/// modules below the root, so `super::` repeated `depth` times also leads to the root.
fn names_from_the_root(code: &str, depth: usize) -> Vec<String> {
    let up = "super::".repeat(depth);
    let mut names = Vec::new();
    for root in ["crate::", up.as_str()] {
        for (at, _) in code.match_indices(root) {
            // Here `crate` or `super` is the end of a longer name or path.
            if code[..at].ends_with(|c: char| c.is_alphanumeric() || "_$:".contains(c)) {
                continue;
            }
            let path = &code[at + root.len()..];
            let first = |path: &str| -> String {
                let name = path.chars().take_while(|c| c.is_alphanumeric() || *c == '_');
                name.collect()
            };
            match path.starts_with('{') {
                true => names.extend(members(path).into_iter().map(first)),
                false => names.push(first(path)),
            }
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// The code of a file without the module `tests` at its end.
fn without_tests(code: &str) -> &str {
    code.split("\nmod tests {").next().unwrap_or_default()
}

#[test]
fn imports_are_seen_through_groups_and_supers() {
    let code = "use crate::{error::Error, sys::{files, net}, Tcp};\nfn f() { crate::run::lease(); \
        super::super::util::x(); \
                a::crate_::y(); super::z() }\n#[cfg(test)]\nmod tests {\n    use crate::timeline;\n}\n";
    let mut names = names_from_the_root(without_tests(code), 2);
    names.sort();
    assert_eq!(names, ["Tcp", "error", "run", "sys", "util"]);
}

/// A folder of the core imports only from folders that stand above it in the map. It imports from
/// files, because the root's re-exports hide where a name comes from. Tests may import anything.
#[test]
fn no_import_of_the_core_runs_upward() {
    let folders = folders();
    let src = root().join("mirakuru-core/src");
    let modules: BTreeSet<String> = fs::read_dir(&src)
        .expect("the core")
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(
        folders.iter().cloned().collect::<BTreeSet<_>>(),
        modules,
        "the map"
    );
    let (mut offences, mut seen) = (Vec::new(), 0);
    for (place, folder) in folders.iter().enumerate() {
        for file in rust_files(&src.join(folder)) {
            let path = file.strip_prefix(&src).expect("it is below");
            // These files are compiled for tests only.
            if ["tests", "harness", "test_writer", "own_process"]
                .iter()
                .any(|name| path.file_stem().is_some_and(|stem| stem == *name))
            {
                continue;
            }
            let depth = path.iter().count() - usize::from(path.ends_with("mod.rs"));
            let code = bare_code(&fs::read_to_string(&file).expect("a file"));
            for name in names_from_the_root(without_tests(&code), depth) {
                seen += 1;
                if folders
                    .iter()
                    .position(|other| *other == name)
                    .is_none_or(|other| other > place)
                {
                    offences.push(format!("{}: crate::{name}", path.display()));
                }
            }
        }
    }
    assert!(seen > 100, "where are the imports? {seen}");
    assert!(
        offences.is_empty(),
        "these run upward, or through the root:\n{}",
        offences.join("\n")
    );
}

// ---- widths -------------------------------------------------------------------------------------

/// The lines of a file that are too wide: over 110 columns for code, or over 100 for comments and
/// Markdown prose. Tables, addresses and raw strings are exempt, because they cannot be broken.
fn too_wide(path: &Path, text: &str) -> Vec<String> {
    let markdown = path.extension().is_some_and(|extension| extension == "md");
    let raw = if markdown { BTreeSet::new() } else { scan(text).1 };
    let (mut wide, mut in_code) = (Vec::new(), false);
    for (number, line) in text.lines().enumerate() {
        let bare = line.trim_start();
        let comment = bare.starts_with("//") && !raw.contains(&number);
        let prose = if markdown {
            bare
        } else {
            bare.trim_start_matches(['/', '!']).trim_start()
        };
        if (markdown || comment) && prose.starts_with("```") {
            in_code = !in_code;
        }
        in_code &= markdown || comment;
        let limit = if (markdown || comment) && !in_code {
            100
        } else {
            110
        };
        let unbreakable = raw.contains(&number)
            || (markdown || comment) && (prose.starts_with('|') || line.contains("://"));
        if line.chars().count() > limit && !unbreakable {
            wide.push(format!("{}:{}: {line}", path.display(), number + 1));
        }
    }
    wide
}

#[test]
fn a_wide_line_is_seen() {
    let wide = |path: &str, text: String| too_wide(Path::new(path), &text).len();
    let (words, long) = ("word ".repeat(20), "word ".repeat(22));
    assert_eq!(wide("a.rs", format!("// {words}x\n")), 1);
    assert_eq!(wide("a.rs", format!("let {words}x;\nlet {long}x;\n")), 1);
    assert_eq!(
        wide("a.rs", format!("/// ```\n/// {words}x\n/// ```\n/// {words}x\n")),
        1
    );
    assert_eq!(
        wide(
            "a.rs",
            format!("let a = r#\"{long}\n// {words}x\"#;\n/// | {words}x\n")
        ),
        0
    );
    assert_eq!(
        wide(
            "a.md",
            format!("{words}x\n| {words}x\n```\n{words}x\n{long}x\n```\n")
        ),
        2
    );
}

/// All files with code or prose.
fn texts() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for folder in [
        "mirakuru-core",
        "mirakuru-fixtures",
        "mirakuru-macros",
        "src",
        "tests",
        "benches",
        "examples",
    ] {
        files.extend(files_of(&root().join(folder), "rs"));
    }
    for folder in ["docs", "examples"] {
        files.extend(files_of(&root().join(folder), "md"));
    }
    files.extend(
        ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "ARCHITECTURE.md"].map(|page| root().join(page)),
    );
    assert!(files.len() > 150, "where are the files? {}", files.len());
    files
        .iter()
        .map(|file| file.strip_prefix(root()).expect("it is below").to_owned())
        .collect()
}

/// Narrow lines are easy to read, and files can be compared side by side.
#[test]
fn no_line_is_too_wide() {
    let mut wide = Vec::new();
    for path in texts() {
        wide.extend(too_wide(&path, &read(&path)));
    }
    assert!(
        wide.is_empty(),
        "wider than 100 columns, or 110 of code:\n{}",
        wide.join("\n")
    );
}

/// The number of lines from which a file says at its head why it is long.
const LONG: usize = 800;

/// A long file is hard to find one's way in, so one that stays long has a reason.
#[test]
fn a_long_file_says_why() {
    let silent: Vec<String> = texts()
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter(|path| {
            let text = read(path);
            let head: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("//!")).collect();
            let head = head.concat();
            text.lines().count() > LONG && !head.contains(" is long because ")
        })
        .map(|path| path.display().to_string())
        .collect();
    assert!(
        silent.is_empty(),
        "over {LONG} lines without \"The file is long because ..\" at the head:\n{}",
        silent.join("\n")
    );
}

/// Finds places where a text repeats at least four words at once.
fn said_twice(text: &str) -> Vec<String> {
    // A backslash at the end of a line continues a string.
    let text = text.replace("\\\n", " ");
    let words: Vec<&str> = text
        .split_whitespace()
        .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()))
        .collect();
    let mut found = Vec::new();
    for length in 4..=12 {
        for pair in words.windows(2 * length) {
            let (once, again) = pair.split_at(length);
            let is_word = |word: &str| word.chars().all(char::is_alphabetic) && !word.is_empty();
            let are_words = once.iter().all(|word| is_word(word));
            if once == again && are_words && BTreeSet::from_iter(once).len() > 3 {
                found.push(once.join(" "));
            }
        }
    }
    found
}

#[test]
fn no_text_says_the_same_twice() {
    assert_eq!(
        said_twice("let a = \"stop: read the log of it: \\\n  read the log of it\";"),
        ["read the log of it"]
    );
    let twice: Vec<(PathBuf, Vec<String>)> = texts()
        .into_iter()
        .map(|path| (path.clone(), said_twice(&read(&path))))
        .filter(|(path, found)| !found.is_empty() && !path.ends_with("repo_rules.rs"))
        .collect();
    assert!(twice.is_empty(), "{twice:?}");
}

// ---- the interface ------------------------------------------------------------------------------

/// Dependencies that must not appear in the interface. Otherwise a new major version of one would
/// force a new major version of mirakuru.
const FOREIGN: [&str; 7] = [
    "libc",
    "nix",
    "once_cell",
    "regex",
    "shell_words",
    "tracing",
    "ureq",
];

/// The parts of a file that belong to the interface: `pub` items, the bodies of `pub` enums and
/// traits, and the headers of implementations. The lint `unreachable_pub` makes sure that `pub`
/// items are public.
fn interface(code: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut lines = code.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let with_body = line.starts_with("pub enum ") || line.starts_with("pub trait ");
        if !line.starts_with("pub ") && !line.starts_with("impl") {
            continue;
        }
        let mut part = line.to_owned();
        let depth = |part: &str| part.matches('{').count() as i32 - part.matches('}').count() as i32;
        while !part.ends_with([';', ',']) && (!part.contains('{') || with_body && depth(&part) > 0) {
            let Some(line) = lines.next() else { break };
            part = format!("{part} {line}");
        }
        if !with_body {
            part.truncate(part.find('{').unwrap_or(part.len()));
        }
        parts.push(part);
    }
    parts
}

/// The dependencies above, and the names that a file imports from them.
fn foreign_names(code: &str) -> Vec<String> {
    let mut names: Vec<String> = FOREIGN.iter().map(|name| (*name).to_owned()).collect();
    for statement in code.split(';') {
        let Some((_, path)) = statement.rsplit_once("use ") else {
            continue;
        };
        if FOREIGN.iter().any(|name| path.starts_with(&format!("{name}::"))) {
            let words = path.split(|c: char| !c.is_alphanumeric() && c != '_');
            names.extend(
                words
                    .filter(|word| word.starts_with(char::is_uppercase))
                    .map(str::to_owned),
            );
            names.extend(path.split_once(" as ").map(|(_, alias)| alias.trim().to_owned()));
        }
    }
    names
}

fn foreign_types(code: &str) -> Vec<String> {
    let names = foreign_names(code);
    let mut parts = interface(code);
    parts.retain(|part| names.iter().any(|name| has_word(part, name)));
    parts
}

#[test]
fn a_foreign_type_in_the_interface_is_seen() {
    let seen = |code: &str| !foreign_types(code).is_empty();
    assert!(seen(
        "use regex::bytes::Regex;\npub fn f(\n    pattern: &Regex,\n) -> bool {\n}"
    ));
    assert!(seen("pub struct A {\n    pub b: nix::unistd::Pid,\n}"));
    assert!(seen(
        "use ureq::http as types;\npub enum A {\n    B {\n        c: types::Uri,\n    },\n}"
    ));
    assert!(seen("impl From<ureq::Error> for Error {\n}"));
    assert!(seen("pub use once_cell::sync::Lazy;"));
    assert!(!seen(
        "use regex::Regex;\npub struct A {\n    b: Regex,\n}\npub fn f() -> bool {\n    \
            Regex::new()\n}\npub(crate) fn g(r: Regex) {}"
    ));
}

/// `FOREIGN` lacks `rstest`, which is re-exported for the attribute's expansion: see `docs/api.md`.
#[test]
fn no_foreign_type_stands_in_the_interface() {
    let sys = root().join("mirakuru-core/src/sys");
    let (mut offences, mut seen) = (Vec::new(), 0);
    for folder in [".", "mirakuru-core", "mirakuru-fixtures"] {
        for file in rust_files(&root().join(folder).join("src")) {
            // Nothing in this folder is re-exported.
            if file.starts_with(&sys) {
                continue;
            }
            let code = bare_code(&fs::read_to_string(&file).unwrap());
            let code = code.split("\nmod tests {").next().unwrap_or_default();
            seen += interface(code).len();
            let found = foreign_types(code).into_iter();
            offences.extend(found.map(|part| format!("{}: {part}", file.display())));
        }
    }
    assert!(seen > 500, "where is the interface? {seen} parts");
    assert!(
        offences.is_empty(),
        "no type of a dependency may stand in the interface:\n{}",
        offences.join("\n")
    );
}

/// The value of a key in a section of a manifest.
fn value(manifest: &str, section: &str, key: &str) -> Option<String> {
    let mut inside = false;
    for line in manifest.lines() {
        let line = line.trim();
        if line.starts_with('[') {
            inside = line == format!("[{section}]");
        } else if inside {
            if let Some((k, v)) = line.split_once('=') {
                if k.trim() == key {
                    return Some(v.trim().to_owned());
                }
            }
        }
    }
    None
}

/// All manifests of the repository. `target` is left out, because tests write manifests there.
fn manifests() -> Vec<(PathBuf, String)> {
    let mut paths = vec![PathBuf::from("Cargo.toml")];
    for entry in fs::read_dir(root()).expect("the repository").flatten() {
        if entry.path().is_dir() && entry.file_name() != "target" {
            let found = files_of(&entry.path(), "toml");
            paths.extend(found.into_iter().filter(|path| path.ends_with("Cargo.toml")));
        }
    }
    let manifest = |path: PathBuf| (path.clone(), read(path));
    paths.into_iter().map(manifest).collect()
}

/// All crates have the same version, and a manifest that requires one of them requires exactly this
/// version.
#[test]
fn versions_agree() {
    let manifest = read("Cargo.toml");
    let version = value(&manifest, "workspace.package", "version").expect("the workspace's version");
    let version = version.trim_matches('"');
    for folder in CRATES {
        let member = read(Path::new(folder).join("Cargo.toml"));
        for key in ["version", "edition", "rust-version", "license"] {
            let inherited = value(&member, "package", &format!("{key}.workspace"));
            assert_eq!(
                inherited.as_deref(),
                Some("true"),
                "{folder}: `{key}.workspace = true` is missing"
            );
        }
        assert_eq!(
            value(&member, "lints", "workspace").as_deref(),
            Some("true"),
            "{folder}: the lints"
        );
    }
    let mut seen = 0;
    for (path, manifest) in manifests() {
        for line in manifest.lines().filter(|line| line.starts_with("mirakuru")) {
            if line.contains("version") {
                let is_it = line.contains(&format!("version = \"={version}\""));
                assert!(is_it, "{}: {line}", path.display());
                seen += 1;
            }
        }
    }
    // The root names three members; each of the three packages of tests names the facade.
    assert!(seen >= 6, "where are the versions? {seen}");
    let changelog = read("CHANGELOG.md");
    let newest = changelog
        .lines()
        .find_map(|line| line.strip_prefix("## "))
        .expect("a version");
    assert_eq!(
        newest.split_whitespace().next(),
        Some(version),
        "the newest version of CHANGELOG.md"
    );
}

/// Each published crate contains both licences, with the same text.
#[test]
fn every_crate_has_both_licences() {
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        let text = read(licence);
        for folder in CRATES {
            assert_eq!(read(Path::new(folder).join(licence)), text, "{folder}/{licence}");
        }
    }
}

/// The README's Rust is compiled as doctests, and its first 40 lines show two commands.
#[test]
fn the_readme_is_tested() {
    let readme = read("README.md");
    let screenful: String = readme.lines().take(40).map(|line| format!("{line}\n")).collect();
    for command in ["cargo run --example quickstart", "tests/run"] {
        assert!(
            screenful.contains(command),
            "`{command}` is not in the first screenful"
        );
    }
    assert!(readme.contains("```rust"), "the README has no Rust");
    let lib = read("src/lib.rs");
    assert!(
        lib.contains("include_str!(\"../README.md\")"),
        "src/lib.rs does not include the README for doctests"
    );
}

/// The names and texts of the guide's chapters.
fn chapters() -> Vec<(String, String)> {
    let files = fs::read_dir(root().join("docs/guide")).expect("the guide");
    let paths = files.map(|file| file.expect("a chapter").path());
    let chapters = paths.filter(|path| path.extension().is_some_and(|e| e == "md"));
    let chapters = chapters.map(|path| {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        (name, read(&path))
    });
    chapters.collect()
}

/// The documentation of the attribute names exactly the keys that may be repeated.
#[test]
fn every_key_that_may_be_repeated_is_documented() {
    let table = read("mirakuru-macros/src/args.rs");
    let rows = table
        .lines()
        .filter_map(|line| line.trim().strip_prefix("many(\""));
    let keys: Vec<&str> = rows.filter_map(|row| row.split('"').next()).collect();
    assert!(keys.len() > 3, "where is the table? {keys:?}");
    let page = read("src/lib.rs").replace("\n///", "");
    let (_, sentence) = page.split_once("These may be repeated: ").expect("the sentence");
    let sentence = sentence.split('.').next().unwrap_or_default();
    let named: Vec<&str> = sentence.split('`').skip(1).step_by(2).collect();
    assert_eq!(
        named, keys,
        "src/lib.rs and SETTERS in mirakuru-macros/src/args.rs"
    );
}

/// A chapter's code is compiled only if rustdoc includes the chapter.
#[test]
fn every_chapter_of_the_guide_is_found_and_tested() {
    let list = read("src/guide.rs");
    let readme = read("README.md");
    let chapters = chapters();
    assert!(chapters.len() > 10, "where is the guide?");
    for (name, text) in &chapters {
        let modules = list.rsplit("chapters! {").next().expect("the list");
        assert!(has_word(modules, name), "src/guide.rs does not include {name}.md");
        assert!(
            list.contains(&format!("]({name})")),
            "src/guide.rs does not list {name}.md"
        );
        assert!(
            readme.contains(&format!(
                "(https://docs.rs/mirakuru/latest/mirakuru/guide/{name}/)"
            )),
            "README.md does not link to {name}.md"
        );
        // Links to files and to docs.rs must have a target in rustdoc's pages as well.
        for line in text.lines().filter(|line| line.starts_with('[')) {
            if let Some((label, target)) = line.split_once("]: ") {
                let here = format!("{label}]: ");
                assert!(
                    list.contains(&here),
                    "src/guide.rs does not say where `{here}` leads to"
                );
                if let Some(other) = target.strip_suffix(".md") {
                    assert!(
                        chapters.iter().any(|(name, _)| name == other),
                        "{name}.md: no {target}"
                    );
                }
            }
        }
    }
}

/// If shown code is not run, a comment above it says why.
#[test]
fn code_that_is_not_run_says_why() {
    let mut pages = chapters();
    pages.push(("README".to_owned(), read("README.md")));
    for (name, text) in pages {
        // The first line of the paragraph above.
        let mut above = None;
        for line in text.lines() {
            let unrun = ["no_run", "ignore", "compile_fail", "should_panic"]
                .iter()
                .any(|word| line.contains(word));
            assert!(
                !(line.starts_with("```rust") && unrun)
                    || above.is_some_and(|line: &str| line.starts_with("<!-- Not ")),
                "{name}.md: `{line}` without a comment above it that says why"
            );
            above = if line.is_empty() {
                None
            } else {
                above.or(Some(line))
            };
        }
    }
}

/// The reasons why tests are ignored on the portable back end, each with the files of these tests.
fn left_out_on_the_portable_back_end() -> BTreeMap<String, Vec<String>> {
    let mut left_out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for folder in [
        "tests",
        "src",
        "mirakuru-core",
        "mirakuru-fixtures",
        "mirakuru-macros",
    ] {
        for file in rust_files(&root().join(folder)) {
            let path = file.strip_prefix(root()).expect("it is below").to_path_buf();
            let text = read(&path);
            let code: Vec<&str> = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .collect();
            let code = code.join("\n");
            if folder == "tests" {
                assert!(
                    !code.contains(concat!("not(", "mirakuru_portable)")),
                    "{}: left out in silence. Give each test `#[cfg_attr(mirakuru_portable, ignore = \
                        \"..\")]`",
                    path.display()
                );
            }
            // The topic of a test is its file. All presets are one topic.
            let group = match path.iter().nth(1).and_then(|name| name.to_str()) {
                Some("presets") => "presets".to_owned(),
                Some(_) if folder == "tests" => {
                    path.file_stem().expect("a file").to_string_lossy().into_owned()
                }
                _ => folder.to_owned(),
            };
            for after in code.split("mirakuru_portable,").skip(1) {
                let Some(reason) = after.trim_start().strip_prefix("ignore = \"") else {
                    continue;
                };
                let reason = reason.split('"').next().expect("the first of them");
                let reason = reason
                    .strip_prefix("the portable back end ")
                    .unwrap_or_else(|| panic!("{}: what is it that does not: {reason:?}?", path.display()));
                left_out.entry(reason.to_owned()).or_default().push(group.clone());
            }
        }
    }
    left_out
}

/// A table in the guide lists the reasons for ignored tests on the portable back end, with the
/// number of tests.
#[test]
fn what_the_portable_back_end_leaves_out_is_listed() {
    let left_out = left_out_on_the_portable_back_end();
    assert!(left_out.len() > 3, "where are the attributes? {left_out:?}");
    let mut expected = String::from("| it | tests | where |\n| --- | ---: | --- |\n");
    for (reason, files) in left_out {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for file in &files {
            *counts.entry(file).or_default() += 1;
        }
        let counts: Vec<String> = counts.iter().map(|(file, n)| format!("`{file}` {n}")).collect();
        expected += &format!("| {reason} | {} | {} |\n", files.len(), counts.join(", "));
    }
    assert!(
        read("docs/guide/limits.md").contains(&format!("\n{expected}\n")),
        "docs/guide/limits.md does not have this table:\n\n{expected}"
    );
}

/// The tests that the page about attackers names exist.
#[test]
fn the_tests_that_the_page_about_attackers_names_exist() {
    let page = read("docs/guide/attackers.md");
    let mut sources: Vec<PathBuf> = rust_files(&root().join("tests/it"));
    sources.extend(rust_files(&root().join("mirakuru-core/src")));
    let named: Vec<&str> = page.split('`').filter(|word| word.contains("::")).collect();
    assert!(named.len() > 15, "{named:?}");
    for name in named {
        let (module, test) = name.rsplit_once("::").expect("a path");
        let is_there = sources.iter().any(|path| {
            let of_module = path.components().any(|part| {
                let part = part.as_os_str().to_string_lossy();
                part.strip_suffix(".rs").unwrap_or(&part) == module
            });
            // A test may also be a row in the table of teardown.
            let forms = [format!("fn {test}("), format!("    {test}: Death::")];
            of_module && forms.iter().any(|form| read(path).contains(form))
        });
        assert!(is_there, "{name}");
    }
}

/// If no list names a file, cargo does not compile it, and its tests do not run.
#[test]
fn every_file_of_tests_is_run() {
    let mut lists = vec![("tests".to_owned(), read("tests/Cargo.toml"), "path = \"NAME.rs\"")];
    for folder in ["tests/it", "tests/presets"] {
        lists.push((
            folder.to_owned(),
            read(Path::new(folder).join("main.rs")),
            "mod NAME;",
        ));
        // The modules of `flush.rs` are in `flush/`.
        for entry in fs::read_dir(root().join(folder)).expect("the tests").flatten() {
            if entry.path().is_dir() {
                let folder = format!("{folder}/{}", entry.file_name().to_string_lossy());
                lists.push((folder.clone(), read(format!("{folder}.rs")), "mod NAME;"));
            }
        }
    }
    assert!(lists.len() > 4, "where are the folders? {lists:?}");
    for (folder, list, entry) in lists {
        for file in fs::read_dir(root().join(&folder)).expect("the tests").flatten() {
            let path = file.path();
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            if path.extension().is_some_and(|extension| extension == "rs") && name != "main" {
                let entry = entry.replace("NAME", &name);
                let is_listed = list.lines().any(|line| {
                    let line = line.trim();
                    line == entry || line.starts_with("pub") && line.ends_with(&format!(" {entry}"))
                });
                assert!(is_listed, "{folder}/{name}.rs: `{entry}` is missing");
            }
        }
    }
}

/// Sleeps without a comment above. A sleep between two polls, directly in `while` or `loop`, needs
/// none.
fn sleeps_without_a_reason(source: &str) -> Vec<String> {
    let bare = bare_code(source);
    let (lines, code): (Vec<&str>, Vec<&str>) = (source.lines().collect(), bare.lines().collect());
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut found = Vec::new();
    for (at, line) in code.iter().enumerate() {
        let is_sleep = line.contains("sleep(") && !line.contains("fn ") && !line.contains("_sleep(");
        let has_reason = at > 0 && lines[at - 1].trim_start().starts_with("//");
        let is_outside = |above: &&&str| !above.trim().is_empty() && indent(above) < indent(line);
        let block = code[..at].iter().rev().find(is_outside);
        let is_poll = block.is_some_and(|block| has_word(block, "while") || has_word(block, "loop"));
        if is_sleep && !has_reason && !is_poll {
            found.push(format!("{}: {}", at + 1, line.trim()));
        }
    }
    found
}

/// A fixed sleep makes a test slow, or lets it fail on a busy machine, so a comment above each
/// sleep gives the reason.
#[test]
fn every_sleep_of_a_test_has_a_reason() {
    let code = "fn f() {\n    sleep(A);\n    // Why.\n    sleep(B);\n    while x {\n        sleep(C);\n    \
        }\n    for y in z {\n        sleep(D);\n    }\n    \"sleep(E)\";\n}\n";
    assert_eq!(sleeps_without_a_reason(code), ["2: sleep(A);", "9: sleep(D);"]);
    let mut found = Vec::new();
    for folder in ["tests/it", "tests/presets", "tests/common"] {
        for file in rust_files(&root().join(folder)) {
            for place in sleeps_without_a_reason(&read(&file)) {
                found.push(format!("{}:{place}", file.display()));
            }
        }
    }
    assert!(found.is_empty(), "say why above:\n{}", found.join("\n"));
}

/// The names of environment variables in the code of a file, without tests and comments.
fn variables_of(code: &str) -> BTreeSet<String> {
    // String literals that begin like this are variables of other tools.
    const OF_OTHERS: [&str; 9] = [
        "NEXTEST",
        "CARGO",
        "RUSTFLAGS",
        "GITHUB_",
        "GITLAB_",
        "JUNIT_",
        "XDG_",
        "LD_",
        "LLVM_",
    ];
    const WHOLE: [&str; 5] = ["CI", "NO_COLOR", "TERM", "TMPDIR", "PATH"];
    let code = without_tests(code)
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices('"') {
        let rest = &code[at + 1..];
        let name = &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())];
        let is_read = code[..at].ends_with("var_os(") || code[..at].ends_with("env::var(");
        let is_ours = name.starts_with("MIRAKURU_") && !name.starts_with("MIRAKURU_BUILT_WITH");
        let is_whole = rest[name.len()..].starts_with('"');
        let is_others = OF_OTHERS.iter().any(|start| name.starts_with(start)) || WHOLE.contains(&name);
        if is_ours || (is_whole && (is_read || is_others)) {
            found.insert(name.to_owned());
        }
    }
    found
}

#[test]
fn variables_are_seen_in_code_alone() {
    let code = "const A: &str = \"MIRAKURU_A\"; // \"no\"\n/// \"MIRAKURU_B\"\nenv::var(\"C\"); \
        var_os(format!(\"MIRAKURU_{name}\")); (\"MIRAKURU_BUILT_WITH_X\", \"NEXTEST_D\", \"E\")\n\
        #[cfg(test)]\nmod tests {\n    env::var(\"F\");\n}\n";
    let found: Vec<String> = variables_of(code).into_iter().collect();
    assert_eq!(found, ["C", "MIRAKURU_", "MIRAKURU_A", "NEXTEST_D"]);
}

/// The names of variables in the code of all crates, each with its files.
fn files_of_variables() -> BTreeMap<String, Vec<PathBuf>> {
    let mut found: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for folder in CRATES {
        for file in rust_files(&root().join(folder).join("src")) {
            let code = fs::read_to_string(&file).expect("a file of ours");
            if !file.ends_with("own_process.rs") && !file.ends_with("tests.rs") {
                for name in variables_of(&code) {
                    found.entry(name).or_default().push(file.clone());
                }
            }
        }
    }
    found
}

/// A name that two files need is a constant, so that nobody mistypes it.
#[test]
fn a_variable_of_ours_is_named_in_one_file() {
    let files = files_of_variables();
    assert!(files.contains_key("MIRAKURU_ID"), "{files:?}");
    // `MIRAKURU_` is the beginning of several names.
    let is_ours = |name: &str| name.starts_with("MIRAKURU_") && !name.ends_with('_');
    let twice: Vec<_> = files
        .iter()
        .filter(|(name, files)| is_ours(name) && files.len() > 1)
        .collect();
    assert!(twice.is_empty(), "make them constants: {twice:#?}");
}

/// One page of the guide lists every variable that changes the behaviour of mirakuru.
#[test]
fn every_variable_of_the_environment_is_in_the_guide() {
    // These variables do not change the behaviour. The first is only removed, the second is the
    // version in a user agent, and mirakuru sets the third for a process of its own.
    const NOT_READ: [&str; 3] = ["CARGO_MAKEFLAGS", "CARGO_PKG_VERSION", "MIRAKURU_STAND_IN"];
    let page = read("docs/guide/looking_on.md");
    let (_, section) = page.split_once("## The environment").expect("the section");
    let seen: Vec<String> = files_of_variables().into_keys().collect();
    assert!(seen.len() > 20, "{seen:?}");
    let missing: Vec<&String> = seen
        .iter()
        .filter(|name| !NOT_READ.contains(&name.as_str()))
        .filter(|name| !section.contains(&format!("`{name}")))
        .collect();
    assert!(missing.is_empty(), "not in docs/guide/looking_on.md: {missing:?}");
}

/// CI runs the same script as developers.
#[test]
fn ci_runs_the_test_script_and_nothing_else() {
    let ci = read(".ci/run");
    assert!(ci.starts_with("#!/usr/bin/env bash\n"), "{ci}");
    assert!(
        ci.lines()
            .last()
            .is_some_and(|line| line.starts_with("exec ") && line.contains("tests/run")),
        "{ci}"
    );
}
