//! Scenarios of guests narrower than their host, of addresses that tables cannot map, and of CPUID that changes under a
//! shadow page; and the asserted codes of nested page faults.

mod bench;
mod cpuid;
mod hypercall;
mod modes;
mod msr;
mod patches;
mod wide;
mod widths;
