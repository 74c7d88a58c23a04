//! Where the vendors' processors differ: one row per difference, each with the clause that says so.
//!
//! The interpreter asks [`Rules`], which the machine chooses by its host's vendor. What only bounds registers (widths, bits
//! of CR4) is [`crate::Model`]'s; SYSCALL, SYSENTER and the decoder's near branches ask its vendor.
//!
//! SDM: Intel 64 and IA-32 Architectures Software Developer's Manual, 325462-084. APM: AMD64 Architecture Programmer's
//! Manual, 40332 revision 4.08. KVM: Linux 6.12, arch/x86/kvm.

use vmtape_arch::host::Vendor;

/// What this silicon does where others do otherwise. Plain switches, so that a row that turns out wrong on some processor
/// can be set by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// PUSH of a segment register with a 32-bit operand writes 16 bits and leaves the rest of the slot alone.
    pub push_segment_writes_16_bits: bool,
    /// A fault in REPE or REPNE CMPS or SCAS brings back the flags from before the instruction.
    pub repeated_compare_restores_flags: bool,
    /// REP with a count of zero and a 32-bit address size in 64-bit code clears the upper halves of RCX, and of the
    /// pointers of MOVS and STOS.
    pub empty_repeat_cuts_registers: bool,
    /// An unmasked x87 exception keeps a store from looking at its memory operand.
    pub x87_exception_before_store: bool,
    /// An access that goes beyond offset 0xffff_ffff of a segment of 4 GiB wraps around, rather than being beyond the
    /// limit.
    pub flat_segments_wrap: bool,
    /// Which NaN DPPS and DPPD prefer in a sum: that of the higher element.
    pub dot_product_prefers_high: bool,
}

/// Where a row's value for Intel comes from. AMD's are all held against silicon: see `tests/native`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// The manual or the source cited says so.
    Documented,
    /// No manual settles it: the reading that agrees best with what was reported of an Intel processor.
    Unverified,
}

/// One difference between the vendors.
#[derive(Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    pub clause: &'static str,
    pub support: Support,
    pub rule: fn(&mut Rules) -> &mut bool,
}

/// All of them.
pub const TABLE: &[Row] = &[
    Row {
        name: "push-segment-writes-16-bits",
        clause: "SDM vol. 2B PUSH: recent Intel Core and Atom processors write the selector by a 16-bit move; \
                 APM vol. 3 PUSH: zero-extended. KVM emulate.c em_push_sreg() moves 16 bits for all",
        support: Support::Documented,
        rule: |rules| &mut rules.push_segment_writes_16_bits,
    },
    Row {
        name: "repeated-compare-restores-flags",
        clause: "SDM vol. 2B REP: on a fault during CMPS or SCAS, EFLAGS is restored to the state before the \
                 instruction. KVM x86.c x86_emulate_instruction() writes no flags on a fault",
        support: Support::Documented,
        rule: |rules| &mut rules.repeated_compare_restores_flags,
    },
    Row {
        name: "empty-repeat-cuts-registers",
        clause: "KVM emulate.c string_registers_quirk(): Intel CPUs mask counter and pointers when ECX is zero",
        support: Support::Documented,
        rule: |rules| &mut rules.empty_repeat_cuts_registers,
    },
    Row {
        name: "x87-exception-before-store",
        clause: "SDM vol. 3A Table 7-2 leaves the order of faults in one instruction to the implementation",
        support: Support::Unverified,
        rule: |rules| &mut rules.x87_exception_before_store,
    },
    Row {
        name: "flat-segments-wrap",
        clause: "SDM vol. 3A 6.3 Limit Checking: with an effective limit of 4 GiB, accesses that wrap may or may not \
                 cause an exception",
        support: Support::Unverified,
        rule: |rules| &mut rules.flat_segments_wrap,
    },
    Row {
        name: "dot-product-prefers-high",
        clause: "SDM vol. 2A DPPS, DPPD: horizontal propagation of NaNs is implementation dependent",
        support: Support::Unverified,
        rule: |rules| &mut rules.dot_product_prefers_high,
    },
];

impl Rules {
    pub const AMD: Self = Self {
        push_segment_writes_16_bits: false,
        repeated_compare_restores_flags: false,
        empty_repeat_cuts_registers: false,
        x87_exception_before_store: false,
        flat_segments_wrap: false,
        dot_product_prefers_high: false,
    };

    pub const INTEL: Self = Self {
        push_segment_writes_16_bits: true,
        repeated_compare_restores_flags: true,
        empty_repeat_cuts_registers: true,
        x87_exception_before_store: true,
        flat_segments_wrap: true,
        dot_product_prefers_high: true,
    };

    /// A vendor's silicon.
    pub const fn of(vendor: Vendor) -> Self {
        if vendor.0 == Vendor::AMD.0 { Self::AMD } else { Self::INTEL }
    }

    /// KVM's emulator for a guest that was told this vendor: a processor of neither's.
    pub const fn emulator(guest: Vendor) -> Self {
        Self {
            push_segment_writes_16_bits: true,
            repeated_compare_restores_flags: true,
            empty_repeat_cuts_registers: guest.0 == Vendor::INTEL.0,
            ..Self::AMD
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_its_row() {
        let mut rules = Rules::AMD;
        TABLE.iter().for_each(|row| *(row.rule)(&mut rules) = true);
        assert_eq!(rules, Rules::INTEL, "the vendors differ in something that the table lacks");
    }
}
