//! The second package of the workspace, which has only tests.
