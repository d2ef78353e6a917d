//! The guide: a short chapter for each topic, beginning with the first steps. mirakuru's own tests
//! compile and run the code in the chapters.
//!
//! | chapter | |
//! | --- | --- |
//! | [A first test](first_test) | the attribute, `{port}`, presets, your own program, more than one service |
//! | [Choosing a readiness condition](readiness) | how a test knows that a service can be used |
//! | [Programs of the workspace](programs) | `bin`: programs of any package, features, test runners, coverage |
//! | [Systems](systems) | services that need each other, clusters, upgrades |
//! | [Sharing and scopes](sharing) | one service for many tests, and a part of it for each test |
//! | [Lines of a log](logs) | wait for a line, capture a value, check that no error was logged |
//! | [Watch services while tests run](looking_on) | live output, services that stay, the environment variables |
//! | [Migrations in code](migrations) | run your own migrations once, and keep the result |
//! | [Nextest](nextest) | mirakuru under a runner that starts a process for each test |
//! | [Async tests](async_tests) | tokio and others |
//! | [Containers](containers) | services in containers of podman or Docker, and `on_end` |
//! | [CI](ci) | GitHub Actions, GitLab, slow machines, root |
//! | [Servers that already run](external_servers) | a service container of CI, a shared test database |
//! | [Resistance tests](resistance) | how your code behaves while a service is down, or hangs |
//! | [Writing a preset](writing_a_preset) | a reusable service of your own, with a handle type |
//! | [When a start hangs or fails](debugging) | how to read a report, and how to find the cause |
//! | [Coming from Python mirakuru](from_python) | each option and method, and its replacement |
//! | [Coming from Testcontainers](from_testcontainers) | similarities, differences, when to stay |
//! | [Limits](limits) | what mirakuru does not do, and where it was run |
//! | [What hostile processes can do](attackers) | attacks by another user, by a service, by a service of another user |

/// Declares a module for each chapter. On a code forge, the links in a chapter lead to files and to
/// docs.rs. The definitions here come first and override them, so that the links lead to the items.
/// `tests/repo_rules.rs` checks that no definition is missing.
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
        #[doc = "[external_servers]: crate::guide::external_servers"]
        #[doc = "[limits]: crate::guide::limits"]
        #[doc = "[looking_on]: crate::guide::looking_on"]
        #[doc = "[logs]: crate::guide::logs"]
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
