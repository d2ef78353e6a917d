//! The second package of the workspace, which contains only tests.
