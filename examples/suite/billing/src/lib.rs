//! The second package of the workspace. It consists of its tests.
