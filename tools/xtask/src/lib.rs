//! Repository rules as code.

mod circles;
pub mod tidy;
