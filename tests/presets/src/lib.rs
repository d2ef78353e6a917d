//! What the tests of the presets share.
