//! The MSRs that move with a vCPU: what KVM lists on both sides, and what a VMM adds because KVM keeps it unlisted.
//!
//! See: QEMU 10.2.2 target/i386/kvm/kvm.c kvm_get_msrs(), kvm_put_msrs()

use vmtape_abi::{Backend, Host};
use vmtape_arch::{
    cpuid::CpuidEntry,
    msr::Msr,
    state::{MAX_IO_MSRS, MsrEntry},
    vcpu::VcpuState,
};

/// IA32_MTRR_PHYSBASE0 to IA32_MTRR_PHYSMASK7.
const MTRR_VARIABLE: std::ops::Range<u32> = 0x200..0x210;
/// IA32_MTRR_FIX64K_00000 to IA32_MTRR_FIX4K_F8000.
const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// IA32_MC0_CTL on: control, status, address and miscellaneous of each bank.
const MCE_BANKS: u32 = 0x400;
const REGISTERS_PER_BANK: u32 = 4;
const MCG_CAP_BANKS: u64 = 0xff;

/// The MSRs of one vCPU.
pub(crate) struct Msrs<'a> {
    pub(crate) backend: &'a mut dyn Backend,
    pub(crate) vcpu: u32,
    pub(crate) state: &'a mut VcpuState,
    pub(crate) host: &'a mut dyn Host,
    /// What CPUID says on the silicon itself.
    pub(crate) silicon: Vec<CpuidEntry>,
}

impl Msrs<'_> {
    /// What is to be saved. Not the time-stamp counter, whose offset is a state of its own; its deadline comes last, when the
    /// local APIC's timer is in the mode that has one.
    pub(crate) fn list(&mut self) -> Vec<u32> {
        let banks = self.backend.get_msr(self.vcpu, self.state, Msr::IA32_MCG_CAP.0, self.host).unwrap_or(0);
        let banks = MCE_BANKS..MCE_BANKS + (banks & MCG_CAP_BANKS) as u32 * REGISTERS_PER_BANK;
        let mtrrs = MTRR_FIXED.into_iter().chain(MTRR_VARIABLE).chain([Msr::MTRR_DEF_TYPE.0]);
        let listed = self.backend.msr_index_list(&self.silicon).into_iter();
        let (mut list, deadline): (Vec<_>, Vec<_>) = listed
            .chain(mtrrs)
            .chain(banks)
            .filter(|index| Msr(*index) != Msr::IA32_TSC)
            .partition(|index| Msr(*index) != Msr::IA32_TSC_DEADLINE);
        list.extend(deadline);
        list
    }

    /// Reads registers. One that is refused, which KVM's count tells, is left out.
    pub(crate) fn get(&mut self, indices: &[u32]) -> Vec<MsrEntry> {
        let mut entries: Vec<_> = indices.iter().map(|index| MsrEntry::new(*index, 0)).collect();
        let mut read = 0;
        while read < entries.len() {
            let end = entries.len().min(read + MAX_IO_MSRS - 1);
            let asked = &mut entries[read..end];
            let done = self.backend.get_msrs(self.vcpu, self.state, asked, self.host).unwrap_or(0) as usize;
            read += done;
            if read < end {
                entries.remove(read);
            }
        }
        entries
    }

    /// Writes registers. One that is refused, which KVM's count tells, stays as it is; gives their numbers.
    pub(crate) fn set(&mut self, entries: &[MsrEntry]) -> Vec<u32> {
        let mut left = entries;
        let mut all_refused = Vec::new();
        while !left.is_empty() {
            let asked = &left[..left.len().min(MAX_IO_MSRS - 1)];
            let done = self.backend.set_msrs(self.vcpu, self.state, asked, self.host).unwrap_or(0) as usize;
            let refused = usize::from(done < asked.len());
            all_refused.extend(asked.get(done).map(|entry| entry.index));
            left = &left[(done + refused).min(left.len())..];
        }
        all_refused
    }
}
