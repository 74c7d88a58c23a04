//! The x86-64 interpreter: decoder cache, instruction families, flags, TLB. It knows no page walk and no device.
#![forbid(unsafe_code)]

mod env;
mod ram;

pub use env::{Decision, Env, Interrupted};
pub use ram::Ram;
