//! What can be wrong with the name of a guest.

use thiserror::Error;

/// Why there is no such guest.
#[derive(Debug, Error)]
pub enum GuestError {
    #[error("no built-in guest `{0}` (see `vmtape guests`)")]
    UnknownGuest(String),
    #[error("builtin:{guest} has no parameter `{key}` (see `vmtape guests {guest}`)")]
    UnknownParameter { guest: &'static str, key: String },
    #[error("builtin:{guest}: {key}={value} is not {key}={expected}")]
    BadValue { guest: &'static str, key: &'static str, value: String, expected: String },
    #[error("builtin:{guest}: {key} cannot stand beside {other}")]
    Clash { guest: &'static str, key: &'static str, other: &'static str },
}
