//! The guide: short chapters, in the order in which a reader needs them. All code in them is
//! compiled and run by mirakuru's own tests.
//!
//! | chapter | |
//! | --- | --- |
//! | [A first test](first_test) | the attribute, `{port}`, presets, your own program, more than one service |
//! | [Choosing a readiness](readiness) | what to wait for, and why not always for the port |
//! | [Programs of the workspace](programs) | `bin`: another package's daemon, its features, runners, coverage |
//! | [Systems](systems) | services that need each other, clusters, upgrades |
//! | [Sharing and scopes](sharing) | one service for many tests, and how they keep out of each other's way |
//! | [Lines of a log](logs) | wait for the next line, capture a value, check that no error was logged |
//! | [Looking on](looking_on) | live output, services that stay, the environment variables |
//! | [Migrations in code](migrations) | run your own migrations once, and keep the result |
//! | [Nextest](nextest) | what a process for each test means here |
//! | [Async tests](async_tests) | tokio and others |
//! | [Containers](containers) | `podman run` and `docker run` as recipes, and the command at the end |
//! | [CI](ci) | GitHub Actions, GitLab, slow machines, root |
//! | [Servers that are there already](external_servers) | use a service container, a colleague's Docker |
//! | [Resistance tests](resistance) | what your code does while a service is down, or hangs |
//! | [Writing a preset](writing_a_preset) | a service of your own, with a handle of its own |
//! | [When a start hangs or fails](debugging) | how to read a report, and what to look at |
//! | [Coming from Python mirakuru](from_python) | every option and verb, side by side |
//! | [Coming from Testcontainers](from_testcontainers) | what is the same, what is not, when to stay |
//! | [Limits](limits) | honestly |
//! | [What others can do](attackers) | another user, a service, a service of another user |

/// One module for each chapter. On a code forge, the links of a chapter go to files and to docs.rs.
/// The definitions here come first and override them, so that the links go to the items.
/// `tests/repo_rules.rs` checks that none is missing.
macro_rules! chapters {
    ($($name:ident)*) => {$(
        #[doc = "[`Executor`]: crate::Executor"]
        #[doc = "[`Readiness`]: crate::Readiness"]
        #[doc = "[`Recipe`]: crate::Recipe"]
        #[doc = "[error]: crate::Error"]
        #[doc = "[presets]: crate::presets"]
        #[doc = "[start_all]: crate::start_all"]
        #[doc = "[stop_all]: crate::stop_all"]
        #[doc = "[attackers]: crate::guide::attackers"]
        #[doc = "[limits]: crate::guide::limits"]
        #[doc = "[migrations]: crate::guide::migrations"]
        #[doc = "[programs]: crate::guide::programs"]
        #[doc = "[readiness]: crate::guide::readiness"]
        #[doc = "[sharing]: crate::guide::sharing"]
        #[doc = "[systems]: crate::guide::systems"]
        #[doc = "[cluster]: struct@crate::Cluster"]
        #[doc = "[ci]: crate::guide::ci"]
        #[doc = "[containers]: crate::guide::containers"]
        #[doc = "[writing_a_preset]: crate::guide::writing_a_preset"]
        #[doc = ""]
        #[doc = include_str!(concat!("../docs/guide/", stringify!($name), ".md"))]
        pub mod $name {}
    )*};
}

chapters! {
    first_test readiness programs systems sharing logs looking_on migrations nextest async_tests
    containers ci external_servers resistance writing_a_preset debugging from_python
    from_testcontainers limits attackers
}
