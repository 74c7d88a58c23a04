//! Hosts: their silicon, what KVM and a VMM make of it, and how a VMM learns of it.

pub mod enumeration;
mod find;
mod named;
mod passport;
mod reserved;

pub use find::{find, passport};
pub(crate) use named::check;
pub use named::{ALL, Host, counterpart, of_today};
pub use passport::Passport;
pub use reserved::Reserved;
