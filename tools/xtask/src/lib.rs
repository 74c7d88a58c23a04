//! Repository rules as code.

pub mod tidy;
