//! A port or a socket path belongs to one service alone.

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
