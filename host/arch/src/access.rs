//! One linear access that missed the host's TLB, and what a backend answers.

use crate::{event::Event, exception::Exception, flag::Flag, layout, memory_type::MemoryType, open_enum};
use serde::{Deserialize, Serialize};

open_enum! {
    /// What the access does.
    pub struct AccessKind(u8) {
        READ = 0 => "read",
        WRITE = 1 => "write",
        FETCH = 2 => "fetch",
    }
}

/// An access to guest memory. With CR0.PG=0 the linear address is the guest physical address.
/// CR0, CR3, CR4, EFER, PKRU and RFLAGS.AC are those of the vCPU state that goes with it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    pub gva: u64,
    pub kind: AccessKind,
    /// CPL=3 and not implicit supervisor.
    pub user: Flag,
    /// Descriptor tables, TSS, event delivery from CPL 3: supervisor whatever the CPL; SMAP ignores RFLAGS.AC.
    pub implicit: Flag,
    pub size: u8,
    pub pad: u32,
    /// The event whose delivery needs this access (not valid outside delivery).
    pub delivering: Event,
}

layout!(Access: 32, kind: 8, size: 11, delivering: 16);

open_enum! {
    /// What lies under a mapping.
    pub struct MappingKind(u8) {
        RAM = 0 => "RAM",
        /// The APIC-access page: each access is offered to the backend as `APIC_READ` or `APIC_WRITE`.
        APIC_PAGE = 1 => "APIC page",
        /// No RAM: every access goes to the device bus (only KVM's emulator sees such mappings).
        DEVICE = 2 => "device",
    }
}

/// A translation for the host's TLB, valid for accesses with the same privilege (user or supervisor, RFLAGS.AC).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// Guest physical address of the 4 KiB page that holds the access.
    pub gpa: u64,
    /// Host physical address of that page (see `MemoryRegion::hpa`).
    pub hpa: u64,
    /// Which accesses may use it; `write` only once every dirty bit that a write would set is set.
    pub read: Flag,
    pub write: Flag,
    pub fetch: Flag,
    pub global: Flag,
    pub kind: MappingKind,
    /// log2 of the guest's page, so that INVLPG of any address in it flushes this entry.
    pub guest_page_shift: u8,
    /// How silicon caches the access, by all tables and registers together; `UNTOLD` where the backend has no idea of it.
    pub memory_type: MemoryType,
    /// How it would be cached by the guest's own tables and PAT alone; `UNTOLD` where silicon does not walk them.
    pub guest_memory_type: MemoryType,
}

layout!(Mapping: 24, hpa: 8, read: 16, kind: 20, memory_type: 22);

open_enum! {
    /// How a backend answers at the boundary.
    pub struct Verdict(u32) {
        /// `access`: the mapping is filled in. Otherwise: go on as silicon without virtualization would.
        NATIVE = 0 => "native",
        /// Deliver the exception to the guest (an `access` that faults in the guest's own tables).
        FAULT = 1 => "fault",
        /// Leave guest mode: the exit is filled in.
        EXIT = 2 => "exit",
    }
}

/// The answer to an access: which field counts is told by `verdict`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    pub verdict: Verdict,
    pub pad: u32,
    pub mapping: Mapping,
    pub fault: Exception,
    /// Not zero, with NATIVE: for as long as answers carry this number, the same access has the same answer and asking for it has no
    /// other effect, while what it was made from is the same: the guest's memory that was read, and of the vCPU CR0, CR3, CR4, EFER,
    /// the PDPTE registers, PKRU, PAT and RFLAGS.AC. The host then need not ask. A number never comes back.
    pub epoch: u64,
}

layout!(Answer: 56, mapping: 8, fault: 32, epoch: 48);
