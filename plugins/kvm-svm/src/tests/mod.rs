//! Scenarios of guests narrower than their host, of addresses that tables cannot map, and of CPUID that changes under a
//! shadow page; and the asserted codes of nested page faults.

pub mod bench;
mod cpuid;
mod hypercall;
pub mod l2;
mod modes;
mod msr;
mod nested;
mod patches;
mod signals;
mod vmrun;
mod wide;
mod widths;
