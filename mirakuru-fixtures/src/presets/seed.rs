//! Seeds: code that fills a database. [`seed`](super::PostgresRecipe::seed) runs the code once for
//! each key, and later runs use the result.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use mirakuru_core::__private::{hash, spawn};
use mirakuru_core::Error;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Fill = dyn Fn(&str) -> Result<(), Failure> + Send + Sync;

/// Code that fills a database, and the key of its result.
#[derive(Clone)]
pub(super) struct Seed {
    key: String,
    fill: Arc<Fill>,
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Seed").field(&self.key).finish()
    }
}

impl Seed {
    pub(super) fn new<E>(
        key: impl Into<String>,
        fill: impl Fn(&str) -> Result<(), E> + Send + Sync + 'static,
    ) -> Seed
    where
        E: Into<Failure>,
    {
        Seed {
            key: key.into(),
            fill: Arc::new(move |url| fill(url).map_err(Into::into)),
        }
    }

    /// Runs the code on its own thread, so that the code may start an async runtime even if the
    /// test has one.
    pub(super) fn run(&self, url: &str) -> Result<(), Error> {
        let result = Arc::new(OnceLock::new());
        let (fill, url, filled) = (Arc::clone(&self.fill), url.to_owned(), Arc::clone(&result));
        let failed = |source| Error::other(format!("run the seed `{}`", self.key), source);
        let thread = spawn("mirakuru-seed", Box::new(move || drop(filled.set(fill(&url)))));
        if let Err(payload) = thread.map_err(|source| failed(source.into()))?.join() {
            panic::resume_unwind(payload);
        }
        let filled = Arc::into_inner(result).and_then(OnceLock::into_inner);
        filled.unwrap_or(Ok(())).map_err(failed)
    }
}

/// The variable in which a recipe keeps a digest of its seeds, so that recipes with different seeds
/// are not shared.
pub(super) const VARIABLE: &str = "MIRAKURU_SEED";

/// Identifies the seeds and their order.
pub(super) fn digest(seeds: &[Seed]) -> String {
    let mut keys = String::new();
    for seed in seeds {
        keys.push_str(&format!("{} {}\n", seed.key.len(), seed.key));
    }
    format!("{:016x}", hash(0, &keys))
}

/// Computes a key from the files in a directory and its subdirectories. The key changes if a file
/// is added, removed, renamed or changed. Use it for [`seed`](super::PostgresRecipe::seed) with a
/// directory of migrations.
///
/// ```
/// # use mirakuru_fixtures as mirakuru;
/// let key = mirakuru::presets::hash_of_dir("src")?;
/// assert_eq!(key.len(), 16);
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
///
/// Returns an error if the directory or one of its files cannot be read.
pub fn hash_of_dir(path: impl AsRef<Path>) -> io::Result<String> {
    let mut text = Vec::new();
    add_dir(path.as_ref(), Path::new(""), &mut text)?;
    // The hash function takes a string, so map each byte to a character.
    let mut characters = String::new();
    for byte in text {
        characters.push(char::from(byte));
    }
    Ok(format!("{:016x}", hash(0, &characters)))
}

fn add_dir(root: &Path, below: &Path, text: &mut Vec<u8>) -> io::Result<()> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(root.join(below))? {
        paths.push(entry?.path());
    }
    paths.sort();
    for path in paths {
        let name = below.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            add_dir(root, &name, text)?;
            continue;
        }
        let content = fs::read(path)?;
        text.extend_from_slice(name.as_os_str().as_bytes());
        text.extend_from_slice(format!("\n{}\n", content.len()).as_bytes());
        text.extend_from_slice(&content);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_directory_changes_with_each_file() {
        let dir = std::env::temp_dir().join(format!("mirakuru-unit-{}-hash", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("sub")).unwrap();
        let mut seen = Vec::new();
        let mut changed = |what: &str| {
            let hash = hash_of_dir(&dir).unwrap();
            assert!(!seen.contains(&hash), "{what}");
            assert_eq!(hash, hash_of_dir(&dir).unwrap());
            seen.push(hash);
        };
        changed("empty");
        fs::write(dir.join("1.sql"), "a").unwrap();
        changed("added");
        fs::write(dir.join("1.sql"), "b").unwrap();
        changed("changed");
        fs::rename(dir.join("1.sql"), dir.join("2.sql")).unwrap();
        changed("renamed");
        fs::rename(dir.join("2.sql"), dir.join("sub/2.sql")).unwrap();
        changed("moved");
        fs::remove_dir_all(&dir).unwrap();
        assert!(hash_of_dir(&dir).is_err());
    }

    #[test]
    fn an_error_names_the_key() {
        let seed = Seed::new("v7", |_: &str| Err::<(), _>("no such table"));
        let error = seed.run("x://").unwrap_err();
        assert_eq!(error.to_string(), "failed to run the seed `v7`: no such table");
    }
}
