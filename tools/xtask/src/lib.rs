//! Repository rules as code, and how vmtape is installed and packed.

mod circles;
pub mod dist;
pub mod install;
pub mod tidy;
