//! The names of the tracepoints' fields that are looked at.

/// Declares the names, so that a format can say once which of its fields each one is.
macro_rules! names {
    ($($name:ident => $text:literal,)*) => {
        /// A field of a tracepoint. See: KVM arch/x86/kvm/trace.h, arch/x86/kvm/mmu/mmutrace.h (5.10, 6.1, 6.12)
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "constants of the kernel's own names")]
        pub enum Name { $($name),* }

        impl Name {
            /// All of them, each at its place.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// As the kernel writes it.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

names! {
    A0 => "a0",
    A1 => "a1",
    A2 => "a2",
    A3 => "a3",
    ACCESS => "access",
    ADDR => "addr",
    APICID => "apicid",
    COUNT => "count",
    CR => "cr",
    CREATED => "created",
    CSBASE => "csbase",
    DATA => "data",
    DEST_ID => "dest_id",
    DM => "dm",
    ECX => "ecx",
    ERRNO => "errno",
    ERROR_CODE => "error_code",
    EXCEPTION => "exception",
    EXIT_REASON => "exit_reason",
    FAILED => "failed",
    FAULT_ADDRESS => "fault_address",
    FLAGS => "flags",
    FOUND => "found",
    FUNCTION => "function",
    GFN => "gfn",
    GPA => "gpa",
    GPA_MATCH => "gpa_match",
    GUEST_RIP => "guest_rip",
    GVA => "gva",
    HAS_ERROR => "has_error",
    ICR_LOW => "icr_low",
    INDEX => "index",
    INFO1 => "info1",
    INFO2 => "info2",
    INSN => "insn",
    INTR_INFO => "intr_info",
    IRQ => "irq",
    ISA => "isa",
    LEN => "len",
    LEVEL => "level",
    NEW_SPTE => "new_spte",
    NR => "nr",
    OLD_SPTE => "old_spte",
    PFERR => "pferr",
    PFN => "pfn",
    PORT => "port",
    PTE => "pte",
    RAX => "rax",
    RBX => "rbx",
    RCX => "rcx",
    RDX => "rdx",
    REASON => "reason",
    REG => "reg",
    REINJECTED => "reinjected",
    RIP => "rip",
    ROLE => "role",
    RW => "rw",
    SIZE => "size",
    SOFT => "soft",
    SPTE => "spte",
    SPTEP => "sptep",
    TM => "tm",
    TYPE => "type",
    USED_MAX_BASIC => "used_max_basic",
    VAL => "val",
    VCPU_ID => "vcpu_id",
    VEC => "vec",
    VECTOR => "vector",
    WRITE => "write",
}
