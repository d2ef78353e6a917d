//! Reserves ports, locks endpoints, and finds the processes that use them.

pub(crate) mod activation;
pub(crate) mod address;
pub(crate) mod free;
pub(crate) mod holder;
pub(crate) mod identity;
pub(crate) mod lock;
pub(crate) mod owner;
pub(crate) mod port;
pub(crate) mod reserve;
pub(crate) mod table;
pub(crate) mod time_wait;
pub(crate) mod values;
