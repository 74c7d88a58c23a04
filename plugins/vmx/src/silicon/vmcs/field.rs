//! The fields of a VMCS by their encoding, with the kernel's names.
//!
//! Manual: Intel SDM volume 3D, doc 325384-087, appendix B Field Encoding in VMCS; volume 3C 25.11.2 VMREAD, VMWRITE, and
//! Encodings of VMCS Fields.

use vmtape_arch::{open_enum, regs::Rflags};

open_enum! {
    /// A VMCS component encoding.
    pub struct VmcsField(u32) {
        VIRTUAL_PROCESSOR_ID = 0x0000 => "VIRTUAL_PROCESSOR_ID",
        POSTED_INTR_NV = 0x0002 => "POSTED_INTR_NV",
        GUEST_ES_SELECTOR = 0x0800 => "GUEST_ES_SELECTOR",
        GUEST_CS_SELECTOR = 0x0802 => "GUEST_CS_SELECTOR",
        GUEST_SS_SELECTOR = 0x0804 => "GUEST_SS_SELECTOR",
        GUEST_DS_SELECTOR = 0x0806 => "GUEST_DS_SELECTOR",
        GUEST_FS_SELECTOR = 0x0808 => "GUEST_FS_SELECTOR",
        GUEST_GS_SELECTOR = 0x080a => "GUEST_GS_SELECTOR",
        GUEST_LDTR_SELECTOR = 0x080c => "GUEST_LDTR_SELECTOR",
        GUEST_TR_SELECTOR = 0x080e => "GUEST_TR_SELECTOR",
        GUEST_INTR_STATUS = 0x0810 => "GUEST_INTR_STATUS",
        GUEST_PML_INDEX = 0x0812 => "GUEST_PML_INDEX",
        HOST_ES_SELECTOR = 0x0c00 => "HOST_ES_SELECTOR",
        HOST_CS_SELECTOR = 0x0c02 => "HOST_CS_SELECTOR",
        HOST_SS_SELECTOR = 0x0c04 => "HOST_SS_SELECTOR",
        HOST_DS_SELECTOR = 0x0c06 => "HOST_DS_SELECTOR",
        HOST_FS_SELECTOR = 0x0c08 => "HOST_FS_SELECTOR",
        HOST_GS_SELECTOR = 0x0c0a => "HOST_GS_SELECTOR",
        HOST_TR_SELECTOR = 0x0c0c => "HOST_TR_SELECTOR",
        IO_BITMAP_A = 0x2000 => "IO_BITMAP_A",
        IO_BITMAP_B = 0x2002 => "IO_BITMAP_B",
        MSR_BITMAP = 0x2004 => "MSR_BITMAP",
        PML_ADDRESS = 0x200e => "PML_ADDRESS",
        TSC_OFFSET = 0x2010 => "TSC_OFFSET",
        VIRTUAL_APIC_PAGE_ADDR = 0x2012 => "VIRTUAL_APIC_PAGE_ADDR",
        APIC_ACCESS_ADDR = 0x2014 => "APIC_ACCESS_ADDR",
        EPT_POINTER = 0x201a => "EPT_POINTER",
        GUEST_PHYSICAL_ADDRESS = 0x2400 => "GUEST_PHYSICAL_ADDRESS",
        VMCS_LINK_POINTER = 0x2800 => "VMCS_LINK_POINTER",
        GUEST_IA32_DEBUGCTL = 0x2802 => "GUEST_IA32_DEBUGCTL",
        GUEST_IA32_PAT = 0x2804 => "GUEST_IA32_PAT",
        GUEST_IA32_EFER = 0x2806 => "GUEST_IA32_EFER",
        GUEST_PDPTR0 = 0x280a => "GUEST_PDPTR0",
        GUEST_PDPTR1 = 0x280c => "GUEST_PDPTR1",
        GUEST_PDPTR2 = 0x280e => "GUEST_PDPTR2",
        GUEST_PDPTR3 = 0x2810 => "GUEST_PDPTR3",
        HOST_IA32_PAT = 0x2c00 => "HOST_IA32_PAT",
        HOST_IA32_EFER = 0x2c02 => "HOST_IA32_EFER",
        PIN_BASED_VM_EXEC_CONTROL = 0x4000 => "PIN_BASED_VM_EXEC_CONTROL",
        CPU_BASED_VM_EXEC_CONTROL = 0x4002 => "CPU_BASED_VM_EXEC_CONTROL",
        EXCEPTION_BITMAP = 0x4004 => "EXCEPTION_BITMAP",
        PAGE_FAULT_ERROR_CODE_MASK = 0x4006 => "PAGE_FAULT_ERROR_CODE_MASK",
        PAGE_FAULT_ERROR_CODE_MATCH = 0x4008 => "PAGE_FAULT_ERROR_CODE_MATCH",
        CR3_TARGET_COUNT = 0x400a => "CR3_TARGET_COUNT",
        VM_EXIT_CONTROLS = 0x400c => "VM_EXIT_CONTROLS",
        VM_ENTRY_CONTROLS = 0x4012 => "VM_ENTRY_CONTROLS",
        VM_ENTRY_INTR_INFO_FIELD = 0x4016 => "VM_ENTRY_INTR_INFO_FIELD",
        VM_ENTRY_EXCEPTION_ERROR_CODE = 0x4018 => "VM_ENTRY_EXCEPTION_ERROR_CODE",
        VM_ENTRY_INSTRUCTION_LEN = 0x401a => "VM_ENTRY_INSTRUCTION_LEN",
        TPR_THRESHOLD = 0x401c => "TPR_THRESHOLD",
        SECONDARY_VM_EXEC_CONTROL = 0x401e => "SECONDARY_VM_EXEC_CONTROL",
        VM_INSTRUCTION_ERROR = 0x4400 => "VM_INSTRUCTION_ERROR",
        VM_EXIT_REASON = 0x4402 => "VM_EXIT_REASON",
        VM_EXIT_INTR_INFO = 0x4404 => "VM_EXIT_INTR_INFO",
        VM_EXIT_INTR_ERROR_CODE = 0x4406 => "VM_EXIT_INTR_ERROR_CODE",
        IDT_VECTORING_INFO_FIELD = 0x4408 => "IDT_VECTORING_INFO_FIELD",
        IDT_VECTORING_ERROR_CODE = 0x440a => "IDT_VECTORING_ERROR_CODE",
        VM_EXIT_INSTRUCTION_LEN = 0x440c => "VM_EXIT_INSTRUCTION_LEN",
        VMX_INSTRUCTION_INFO = 0x440e => "VMX_INSTRUCTION_INFO",
        GUEST_ES_LIMIT = 0x4800 => "GUEST_ES_LIMIT",
        GUEST_CS_LIMIT = 0x4802 => "GUEST_CS_LIMIT",
        GUEST_SS_LIMIT = 0x4804 => "GUEST_SS_LIMIT",
        GUEST_DS_LIMIT = 0x4806 => "GUEST_DS_LIMIT",
        GUEST_FS_LIMIT = 0x4808 => "GUEST_FS_LIMIT",
        GUEST_GS_LIMIT = 0x480a => "GUEST_GS_LIMIT",
        GUEST_LDTR_LIMIT = 0x480c => "GUEST_LDTR_LIMIT",
        GUEST_TR_LIMIT = 0x480e => "GUEST_TR_LIMIT",
        GUEST_GDTR_LIMIT = 0x4810 => "GUEST_GDTR_LIMIT",
        GUEST_IDTR_LIMIT = 0x4812 => "GUEST_IDTR_LIMIT",
        GUEST_ES_AR_BYTES = 0x4814 => "GUEST_ES_AR_BYTES",
        GUEST_CS_AR_BYTES = 0x4816 => "GUEST_CS_AR_BYTES",
        GUEST_SS_AR_BYTES = 0x4818 => "GUEST_SS_AR_BYTES",
        GUEST_DS_AR_BYTES = 0x481a => "GUEST_DS_AR_BYTES",
        GUEST_FS_AR_BYTES = 0x481c => "GUEST_FS_AR_BYTES",
        GUEST_GS_AR_BYTES = 0x481e => "GUEST_GS_AR_BYTES",
        GUEST_LDTR_AR_BYTES = 0x4820 => "GUEST_LDTR_AR_BYTES",
        GUEST_TR_AR_BYTES = 0x4822 => "GUEST_TR_AR_BYTES",
        GUEST_INTERRUPTIBILITY_INFO = 0x4824 => "GUEST_INTERRUPTIBILITY_INFO",
        GUEST_ACTIVITY_STATE = 0x4826 => "GUEST_ACTIVITY_STATE",
        GUEST_SYSENTER_CS = 0x482a => "GUEST_SYSENTER_CS",
        HOST_IA32_SYSENTER_CS = 0x4c00 => "HOST_IA32_SYSENTER_CS",
        CR0_GUEST_HOST_MASK = 0x6000 => "CR0_GUEST_HOST_MASK",
        CR4_GUEST_HOST_MASK = 0x6002 => "CR4_GUEST_HOST_MASK",
        CR0_READ_SHADOW = 0x6004 => "CR0_READ_SHADOW",
        CR4_READ_SHADOW = 0x6006 => "CR4_READ_SHADOW",
        EXIT_QUALIFICATION = 0x6400 => "EXIT_QUALIFICATION",
        GUEST_LINEAR_ADDRESS = 0x640a => "GUEST_LINEAR_ADDRESS",
        GUEST_CR0 = 0x6800 => "GUEST_CR0",
        GUEST_CR3 = 0x6802 => "GUEST_CR3",
        GUEST_CR4 = 0x6804 => "GUEST_CR4",
        GUEST_ES_BASE = 0x6806 => "GUEST_ES_BASE",
        GUEST_CS_BASE = 0x6808 => "GUEST_CS_BASE",
        GUEST_SS_BASE = 0x680a => "GUEST_SS_BASE",
        GUEST_DS_BASE = 0x680c => "GUEST_DS_BASE",
        GUEST_FS_BASE = 0x680e => "GUEST_FS_BASE",
        GUEST_GS_BASE = 0x6810 => "GUEST_GS_BASE",
        GUEST_LDTR_BASE = 0x6812 => "GUEST_LDTR_BASE",
        GUEST_TR_BASE = 0x6814 => "GUEST_TR_BASE",
        GUEST_GDTR_BASE = 0x6816 => "GUEST_GDTR_BASE",
        GUEST_IDTR_BASE = 0x6818 => "GUEST_IDTR_BASE",
        GUEST_DR7 = 0x681a => "GUEST_DR7",
        GUEST_RSP = 0x681c => "GUEST_RSP",
        GUEST_RIP = 0x681e => "GUEST_RIP",
        GUEST_RFLAGS = 0x6820 => "GUEST_RFLAGS",
        GUEST_PENDING_DBG_EXCEPTIONS = 0x6822 => "GUEST_PENDING_DBG_EXCEPTIONS",
        GUEST_SYSENTER_ESP = 0x6824 => "GUEST_SYSENTER_ESP",
        GUEST_SYSENTER_EIP = 0x6826 => "GUEST_SYSENTER_EIP",
        HOST_CR0 = 0x6c00 => "HOST_CR0",
        HOST_CR3 = 0x6c02 => "HOST_CR3",
        HOST_CR4 = 0x6c04 => "HOST_CR4",
        HOST_FS_BASE = 0x6c06 => "HOST_FS_BASE",
        HOST_GS_BASE = 0x6c08 => "HOST_GS_BASE",
        HOST_TR_BASE = 0x6c0a => "HOST_TR_BASE",
        HOST_GDTR_BASE = 0x6c0c => "HOST_GDTR_BASE",
        HOST_IDTR_BASE = 0x6c0e => "HOST_IDTR_BASE",
        HOST_IA32_SYSENTER_ESP = 0x6c10 => "HOST_IA32_SYSENTER_ESP",
        HOST_IA32_SYSENTER_EIP = 0x6c12 => "HOST_IA32_SYSENTER_EIP",
        HOST_RSP = 0x6c14 => "HOST_RSP",
        HOST_RIP = 0x6c16 => "HOST_RIP",
    }
}

open_enum! {
    /// Bits 14:13 of an encoding.
    pub struct Width(u8) {
        BITS16 = 0 => "16-bit",
        BITS64 = 1 => "64-bit",
        BITS32 = 2 => "32-bit",
        NATURAL = 3 => "natural-width",
    }
}

open_enum! {
    /// Bits 11:10 of an encoding.
    pub struct FieldType(u8) {
        CONTROL = 0 => "control",
        EXIT_INFORMATION = 1 => "VM-exit information",
        GUEST = 2 => "guest state",
        HOST = 3 => "host state",
    }
}

impl VmcsField {
    pub const fn width(self) -> Width {
        Width((self.0 >> 13 & 3) as u8)
    }

    pub const fn field_type(self) -> FieldType {
        FieldType((self.0 >> 10 & 3) as u8)
    }

    /// Bits 9:1 of an encoding. Bit 0, the access type, selects the upper half of a 64-bit field.
    pub const fn index(self) -> usize {
        (self.0 >> 1 & 0x1ff) as usize
    }

    /// Whether a change of these bits leaves the checks alone that VM entry makes only once, because no check or one of each
    /// entry looks at them.
    pub fn is_checked_by_each_entry(self, changed: u64) -> bool {
        match self {
            Self::GUEST_RFLAGS => !Rflags::from_bits(changed).vm(),
            Self::GUEST_RIP
            | Self::GUEST_RSP
            | Self::GUEST_INTERRUPTIBILITY_INFO
            | Self::GUEST_ACTIVITY_STATE
            | Self::GUEST_PENDING_DBG_EXCEPTIONS
            | Self::VM_ENTRY_INTR_INFO_FIELD
            | Self::VM_ENTRY_EXCEPTION_ERROR_CODE
            | Self::VM_ENTRY_INSTRUCTION_LEN
            | Self::TSC_OFFSET => true,
            field => field.field_type() == FieldType::EXIT_INFORMATION,
        }
    }

    /// The field of another segment register, by its encoding number, given the one of ES: the manual numbers them alike.
    pub const fn of_segment(self, register: usize) -> Self {
        Self(self.0 + 2 * register as u32)
    }

    /// What fits into the field.
    pub const fn mask(self) -> u64 {
        match self.width() {
            Width::BITS16 => 0xffff,
            Width::BITS32 => 0xffff_ffff,
            _ => u64::MAX,
        }
    }
}
