//! The second package of the workspace: see its tests.
