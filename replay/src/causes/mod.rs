//! THE catalogue of causes: why two machines differ, in one sentence with its source.
//!
//! A cause is found in three ways. [`trial`] runs a side again with one thing changed (a switch of its plugin's tables, a
//! property of its host); if the difference is gone, that thing is the cause. [`configuration`] finds what is the only
//! thing that differs. [`rules`] knows what backends say themselves. [`catalogue`] knows causes by what they do to a walk, which says why in words, and is all there is
//! where nothing can be run again. [`supported`] takes tables of KVM_GET_SUPPORTED_CPUID apart.

mod case;
pub mod catalogue;
mod cause;
pub mod configuration;
mod find;
mod hosts;
pub mod rules;
pub mod supported;
mod toggle;
pub mod trial;

pub use case::{Case, Seen};
pub use catalogue::stale_translation;
pub use cause::{Cause, Kind};
pub use find::find;
pub use rules::of_rules;
pub use toggle::{Finding, Side, Toggle};
