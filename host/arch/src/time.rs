//! Virtual time: what a machine's clocks count, and what KVM, whose host lives by it too, tells a guest of it.

/// Devices live by virtual time in nanoseconds.
pub const NS_PER_SECOND: u64 = 1_000_000_000;
/// One retired instruction is one tick of the time-stamp counter, which runs at 100 MHz: slow enough that a guest's
/// waiting loops end soon, fast enough that its timer interrupts leave it time to work.
pub const NS_PER_TICK: u64 = 10;
/// The first second of a run, in seconds since 1970: 2026-01-01 00:00:00. Any constant keeps runs equal.
pub const EPOCH_SECONDS: u64 = 1_767_225_600;
