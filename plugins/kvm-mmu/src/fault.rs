//! One page fault on its way through KVM's MMU.
//!
//! See: KVM arch/x86/kvm/mmu/mmu_internal.h struct kvm_page_fault, enum RET_PF

use crate::{config::Unmappable, slots::Slot};
use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};
use vmtape_abi::Errno;
use vmtape_arch::{
    exception::{Exception, PageFaultError},
    exit::{EptQualification, NpfInfo},
    level::Stage,
};

/// `KVM_PFN_NOSLOT`.
pub const PFN_NOSLOT: u64 = 1 << 63;

/// The error code of a fault as KVM's MMU takes it: a #PF's, an NPF's EXITINFO1, or what an EPT qualification becomes.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct FaultCode {
    pub p: bool,
    pub w: bool,
    pub u: bool,
    pub rsvd: bool,
    pub fetch: bool,
    #[bits(27)]
    __: u32,
    pub guest_final: bool,
    pub guest_page: bool,
    #[bits(14)]
    __: u16,
    pub implicit: bool,
    #[bits(15)]
    __: u16,
}

/// Why a software walk failed (`struct x86_exception`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalkFault {
    /// Whose tables it was: those of whoever runs, or L1's nested ones, and on the way to what.
    pub stage: Stage,
    /// The linear address; for the nested stages L2's guest physical address.
    pub address: u64,
    pub error: PageFaultError,
    /// The access and the rights found, where the tables are EPT and no rule of their format was broken.
    pub qualification: EptQualification,
}

impl WalkFault {
    /// The page fault that whoever runs takes (`nested_page_fault` is false).
    pub fn exception(self) -> Exception {
        Exception::pf(self.address, self.error)
    }

    /// Whether L1 hears of it by an exit of L2 (`nested_page_fault`).
    pub fn is_nested(&self) -> bool {
        self.stage != Stage::GUEST
    }

    /// EXITINFO1 of the nested page fault that L1 takes. See: APM vol. 2 15.25.6 Nested versus Guest Page Faults, Fault Ordering
    pub fn npf_info(&self) -> NpfInfo {
        NpfInfo::new()
            .with_code(self.error.into_bits())
            .with_final_page(self.stage == Stage::NESTED_FINAL)
            .with_table(self.stage == Stage::NESTED_TABLE)
    }

    /// EXITINFO1 and 2 that `nested_svm_inject_npf_exit` gives L1. `silicon`: vmcb02's, if its own exit is a nested page fault.
    ///
    /// Up to 6.12 (`by_walker` off) the stage and the address are silicon's, even where the fault is of another address that KVM's
    /// emulator used meanwhile; without an exit of that kind the stage is always that of a final address.
    pub fn npf_exit_info(&self, silicon: Option<(NpfInfo, u64)>, by_walker: bool) -> (NpfInfo, u64) {
        let code = self.error.into_bits();
        let one_stage = |info: &NpfInfo| info.final_page() != info.table();
        match silicon {
            Some((info, address)) if !by_walker => (info.with_code(code), address),
            // Straight from the exit: silicon knows the stage.
            Some((info, address)) if address == self.address && one_stage(&info) => {
                let stage = NpfInfo::new().with_final_page(info.final_page()).with_table(info.table());
                (stage.with_code(code), self.address)
            }
            // KVM warns and takes it for a final one.
            Some((_, address)) if address == self.address => {
                (NpfInfo::new().with_final_page(true).with_code(code), self.address)
            }
            _ if by_walker => (self.npf_info(), self.address),
            _ => (NpfInfo::new().with_final_page(true).with_code(code), self.address),
        }
    }

    /// Under EPT: L1 takes a misconfiguration, not a violation. See: KVM vmx/nested.c nested_ept_inject_page_fault()
    pub fn is_misconfiguration(&self) -> bool {
        self.error.rsvd()
    }
}

/// `enum` RET_PF_*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetPf {
    Continue,
    Retry,
    Emulate,
    WriteProtected,
    Invalid,
    Fixed,
    Spurious,
    /// A negative errno, with which KVM_RUN fails.
    Failed(Errno),
}

/// `struct kvm_page_fault`.
#[derive(Clone, Copy, Debug)]
pub struct PageFault {
    pub addr: u64,
    pub code: FaultCode,
    pub gfn: u64,
    pub slot: Option<Slot>,
    pub pfn: u64,
    pub max_level: u8,
    pub req_level: u8,
    pub goal_level: u8,
    pub map_writable: bool,
}

impl PageFault {
    /// The fault as `kvm_mmu_do_page_fault` starts with it.
    pub fn new(addr: u64, code: FaultCode) -> Self {
        Self {
            addr,
            code,
            gfn: 0,
            slot: None,
            pfn: PFN_NOSLOT,
            max_level: 3,
            req_level: 1,
            goal_level: 1,
            map_writable: false,
        }
    }
}

/// What the exit handler has to do after `kvm_mmu_page_fault`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// Back into the guest.
    Resume,
    /// The guest takes this page fault.
    Inject(Exception),
    /// L1 takes this fault of its nested tables, by an exit of L2.
    InjectNested(WalkFault),
    /// `x86_emulate_instruction` with EMULTYPE_PF.
    Emulate,
    /// The emulation may instead unprotect the page and let the guest try again (EMULTYPE_ALLOW_RETRY_PF).
    EmulateOrRetry,
    /// KVM_RUN fails.
    Errno(i32),
    /// The nested tables cannot map the memory: userspace hears of it, in this way.
    Unmappable(Unmappable),
}

/// Two guest frames that meet in one entry, because the tables have too few levels to tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// What the entry was before.
    pub old: u64,
    /// The frame that now claims it.
    pub gfn: u64,
    /// The claim is MMIO's, which takes the entry away; a page of memory leaves it as it is.
    pub mmio: bool,
}
