//! Finds or builds a program of the user's own workspace.

mod cargo;
mod json;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::Error;
use crate::recipe::command::{Command, IntoCommand, Program};

pub use self::cargo::skipped_list;

/// A program of the test's workspace, in the test's own package or in another one.
///
/// Use a `Bin` as a command, as in this example, or use the attribute's key `bin`:
///
/// ```no_run
/// # use mirakuru_core as mirakuru;
/// use mirakuru::{Bin, Executor, Tcp};
///
/// let server = Executor::builder(Bin::new("shop-server"))
///     .args(["--listen", "127.0.0.1:{port}"])
///     .wait_for(Tcp::addr("127.0.0.1:{port}"))
///     .start()?;
/// # Ok::<(), mirakuru::Error>(())
/// ```
///
/// The program is found or built when the executor is created, before the timeout of the start
/// begins. These places are tried in this order:
///
/// 1. the environment variable `MIRAKURU_BIN_SHOP_SERVER`: a path, which may be relative to the
///    directory in which the runner was started;
/// 2. for a program of the test's own package: `NEXTEST_BIN_EXE_shop-server`, which nextest sets,
///    and `CARGO_BIN_EXE_shop-server`, which cargo sets;
/// 3. a `cargo build` of that program, with the profile, the target and the flags of the test. Each
///    run calls cargo once for all its tests and processes, so the program is never stale. The file
///    in the target directory of the tests is not replaced.
///
/// The guide's page on programs describes each runner.
#[derive(Clone, PartialEq, Eq)]
#[must_use = "it does nothing until a recipe uses it, or `path` is called"]
pub struct Bin {
    package: Option<String>,
    name: String,
    is_example: bool,
    features: Vec<String>,
    profile: Option<String>,
    /// The path that cargo provided when the test was compiled.
    known: Option<&'static str>,
    /// The directory of the test's package at the time when the test was compiled.
    compiled_in: Option<&'static str>,
}

impl Bin {
    /// Selects a binary by its name. If several packages of the workspace have a binary with this
    /// name, add the package: `"package:name"`.
    pub fn new(name: impl Into<String>) -> Bin {
        let name = name.into();
        let (package, name) = match name.split_once(':') {
            Some((package, name)) => (Some(package.to_owned()), name.to_owned()),
            None => (None, name),
        };
        Bin {
            package,
            name,
            is_example: false,
            features: Vec::new(),
            profile: None,
            known: None,
            compiled_in: None,
        }
    }

    /// Selects an example by its name, or by `"package:name"`. Cargo does not tell a test where an
    /// example is, so a `cargo build` is always called.
    pub fn example(name: impl Into<String>) -> Bin {
        Bin {
            is_example: true,
            ..Bin::new(name)
        }
    }

    /// Builds with these features of the program's package, in addition to the default features.
    pub fn features<S: Into<String>>(mut self, features: impl IntoIterator<Item = S>) -> Bin {
        self.features.extend(features.into_iter().map(Into::into));
        self
    }

    /// Builds with this profile, such as `"release"`. The default is the profile of the test.
    pub fn profile(mut self, profile: impl Into<String>) -> Bin {
        self.profile = Some(profile.into());
        self
    }

    /// Returns the path of the program, which is built if necessary.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the workspace has no such program, if it does not compile, or if cargo
    /// cannot be used. If cargo cannot be used, the error names the variable to set.
    pub fn path(&self) -> Result<PathBuf, Error> {
        if let Some(path) = self.overridden()? {
            return Ok(path);
        }
        match self.told_by_cargo() {
            Some(path) => Ok(path),
            None => cargo::built(self),
        }
    }

    /// Sets the paths that were known when the attribute was compiled.
    #[doc(hidden)]
    pub fn __compiled(mut self, known: Option<&'static str>, package_dir: &'static str) -> Bin {
        self.known = known;
        self.compiled_in = Some(package_dir);
        self
    }

    /// The environment variable that is tried first.
    fn variable(&self) -> String {
        let word = |c: char| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        };
        format!("MIRAKURU_BIN_{}", self.name.chars().map(word).collect::<String>())
    }

    fn overridden(&self) -> Result<Option<PathBuf>, Error> {
        let variable = self.variable();
        let Some(path) = std::env::var_os(&variable).filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        let from = cargo::runner_dir().or_else(|| std::env::current_dir().ok());
        let path = from.unwrap_or_default().join(path);
        match path.metadata() {
            Ok(metadata) if metadata.is_file() => Ok(Some(path)),
            Ok(_) => Err(self.error(format!(
                "{variable} points to `{}`, which is not a file",
                path.display()
            ))),
            Err(e) => Err(self.error(format!("{variable} points to `{}`: {e}", path.display()))),
        }
    }

    /// The path that cargo or nextest provides. They build the program only with default settings,
    /// and only for tests of the same package.
    fn told_by_cargo(&self) -> Option<PathBuf> {
        if self.is_example || !self.features.is_empty() || self.profile.is_some() {
            return None;
        }
        let is_own = self.package.is_none() || self.package == std::env::var("CARGO_PKG_NAME").ok();
        let variable = |prefix: &str| std::env::var_os(format!("{prefix}_BIN_EXE_{}", self.name));
        for prefix in ["NEXTEST", "CARGO"] {
            match variable(prefix).map(PathBuf::from) {
                Some(path) if is_own && path.is_file() => return Some(path),
                _ => {}
            }
        }
        self.known.map(PathBuf::from).filter(|path| path.is_file())
    }

    /// The name, with the package if the user gave one.
    fn shown(&self) -> String {
        match &self.package {
            Some(package) => format!("{package}:{}", self.name),
            None => self.name.clone(),
        }
    }

    fn kind(&self) -> &'static str {
        if self.is_example { "example" } else { "bin" }
    }

    fn error(&self, reason: impl Into<String>) -> Error {
        let kind = if self.is_example { "example" } else { "program" };
        Error::other(
            format!("find or build the {kind} `{}` of the workspace", self.shown()),
            reason.into(),
        )
    }
}

impl fmt::Debug for Bin {
    /// Prints the same text in every test binary, even if cargo provided the path to only one of
    /// them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bin")
            .field(self.kind(), &self.shown())
            .field("features", &self.features)
            .field("profile", &self.profile)
            .finish()
    }
}

impl Program for Bin {
    fn name(&self) -> &str {
        &self.name
    }

    fn path(&self) -> Result<PathBuf, Error> {
        Bin::path(self)
    }
}

impl IntoCommand for Bin {
    fn into_command(self) -> Command {
        Command::of_program(Arc::new(self))
    }
}

impl IntoCommand for &Bin {
    fn into_command(self) -> Command {
        self.clone().into_command()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::Executor;

    #[test]
    fn the_variable_of_a_name() {
        assert_eq!(Bin::new("shop-server").variable(), "MIRAKURU_BIN_SHOP_SERVER");
        assert_eq!(Bin::new("pkg:a.b_c2").variable(), "MIRAKURU_BIN_A_B_C2");
    }

    #[test]
    fn a_recipe_shows_the_name_and_a_path_is_taken_as_it_is() {
        let dir = std::env::temp_dir().join(format!("mirakuru-{{port}}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a writable temp dir");
        let path = dir.join("sleep");
        let sleep = crate::error::programs::find_program("sleep").expect("there is a `sleep`");
        std::fs::copy(sleep, &path).expect("a program can be copied");
        let known: &'static str = path.to_str().expect("plain text").to_owned().leak();
        let bin = Bin::new("mirakuru-no-such-program").__compiled(Some(known), "/");
        assert_eq!(bin.path().expect("it is there"), path);
        let recipe = Executor::builder(&bin).arg("60");
        assert!(
            format!("{recipe:?}").contains("\"mirakuru-no-such-program 60\""),
            "{recipe:?}"
        );
        let executor = recipe.start().expect("`sleep` starts");
        assert_eq!(executor.name(), "mirakuru-no-such-program");
        assert!(executor.command().contains("{port}"), "{}", executor.command());
        drop(executor);
        std::fs::remove_dir_all(&dir).expect("it is ours");
        // Cargo's path is valid only for the default build.
        assert_eq!(bin.clone().features(["x"]).told_by_cargo(), None);
        assert_eq!(bin.told_by_cargo(), None, "the file is gone");
    }
}
