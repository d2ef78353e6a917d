//! Stores, reads and shows the output of a service.

pub(crate) mod live;
pub(crate) mod log_file;
pub(crate) mod logs;
pub(crate) mod mark;
mod parts;
pub(crate) mod reader;
#[cfg(test)]
pub(crate) mod test_writer;
#[cfg(test)]
mod tests;
