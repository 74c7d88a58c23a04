//! The fields of a VMCS by their encoding, with the kernel's names.
//!
//! Manual: Intel SDM volume 3D, doc 325384-087, appendix B Field Encoding in VMCS; volume 3C 25.11.2 VMREAD, VMWRITE, and
//! Encodings of VMCS Fields.

use vmtape_arch::open_enum;

open_enum! {
    /// A VMCS component encoding.
    pub struct VmcsField(u32) {
        VIRTUAL_PROCESSOR_ID = 0x0000 => "VIRTUAL_PROCESSOR_ID",
        POSTED_INTR_NV = 0x0002 => "POSTED_INTR_NV",
        GUEST_INTR_STATUS = 0x0810 => "GUEST_INTR_STATUS",
        GUEST_PML_INDEX = 0x0812 => "GUEST_PML_INDEX",
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
        GUEST_INTERRUPTIBILITY_INFO = 0x4824 => "GUEST_INTERRUPTIBILITY_INFO",
        GUEST_ACTIVITY_STATE = 0x4826 => "GUEST_ACTIVITY_STATE",
        CR0_GUEST_HOST_MASK = 0x6000 => "CR0_GUEST_HOST_MASK",
        CR4_GUEST_HOST_MASK = 0x6002 => "CR4_GUEST_HOST_MASK",
        CR0_READ_SHADOW = 0x6004 => "CR0_READ_SHADOW",
        CR4_READ_SHADOW = 0x6006 => "CR4_READ_SHADOW",
        EXIT_QUALIFICATION = 0x6400 => "EXIT_QUALIFICATION",
        GUEST_LINEAR_ADDRESS = 0x640a => "GUEST_LINEAR_ADDRESS",
        GUEST_CR0 = 0x6800 => "GUEST_CR0",
        GUEST_CR3 = 0x6802 => "GUEST_CR3",
        GUEST_CR4 = 0x6804 => "GUEST_CR4",
        GUEST_DR7 = 0x681a => "GUEST_DR7",
        GUEST_RSP = 0x681c => "GUEST_RSP",
        GUEST_RIP = 0x681e => "GUEST_RIP",
        GUEST_RFLAGS = 0x6820 => "GUEST_RFLAGS",
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

    /// What fits into the field.
    pub const fn mask(self) -> u64 {
        match self.width() {
            Width::BITS16 => 0xffff,
            Width::BITS32 => 0xffff_ffff,
            _ => u64::MAX,
        }
    }
}
