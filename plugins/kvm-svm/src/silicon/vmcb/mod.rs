//! The virtual machine control block, as it lies in memory. KVM's half writes it, silicon reads it at VMRUN and writes it at
//! #VMEXIT.
//!
//! The register file of a vCPU is `VcpuState`, of the host and of KVM alike. The save area mirrors it at two moments: KVM's
//! half brings it up to date before VMRUN and clears the clean bits of what differs, and #VMEXIT stores what the manual says
//! it stores: ES, CS, SS, DS, GDTR, IDTR, CPL, EFER, CR0, CR2, CR3, CR4, DR6, DR7, RFLAGS, RIP, RSP and RAX. What VMLOAD and
//! VMSAVE move (FS, GS, TR, LDTR and the MSRs of system calls) is in no VMCB unless those instructions put it there.
//!
//! Manual: AMD APM volume 2, 24593 rev. 3.42, appendix B Layout of VMCB.

mod clean;
mod control;
mod intercept;
mod save;
mod sparse;

pub use clean::Clean;
pub use control::{ControlArea, EventInfo, IntCtl, IntState};
pub use intercept::InterceptVector;
pub use save::{Mirror, SaveArea, VmcbSegment};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// A VMCB.
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vmcb {
    pub control: ControlArea,
    pub save: SaveArea,
}

const _: () = assert!(size_of::<Vmcb>() == vmtape_arch::PAGE_SIZE as usize);
const _: () = assert!(std::mem::offset_of!(Vmcb, save) == 0x400);

impl Default for Vmcb {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl Serialize for Vmcb {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        sparse::words(self.as_bytes(), 0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Vmcb {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut vmcb = Self::default();
        sparse::fill(vmcb.as_mut_bytes(), &sparse::Words::deserialize(deserializer)?)?;
        Ok(vmcb)
    }
}

/// The MSR permission map: two bits per MSR, the lower for reads, the upper for writes; a set bit exits.
/// See: APM 15.11 MSR Intercepts
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Msrpm([u8; MSRPM_SIZE as usize]);

/// Bytes of the MSR permission map.
pub const MSRPM_SIZE: u64 = 0x2000;
/// Bytes of the I/O permission map: a bit per port, and what an access at the last ports reaches beyond.
/// See: APM 15.10.1 I/O Permissions Map
pub const IOPM_SIZE: u64 = 0x3000;

/// First MSRs of the map's vectors, of 0x800 bytes each.
const MSRPM_VECTORS: [u32; 3] = [0, 0xc000_0000, 0xc001_0000];
const MSRS_IN_VECTOR: u32 = 0x2000;

impl Default for Msrpm {
    /// Every MSR exits.
    fn default() -> Self {
        Self([0xff; MSRPM_SIZE as usize])
    }
}

impl Msrpm {
    /// The bit that stands for reads; that of writes follows. `None`: no vector has the MSR.
    fn bit(index: u32) -> Option<usize> {
        let vector = MSRPM_VECTORS.iter().position(|first| (index ^ first) < MSRS_IN_VECTOR)? as u32;
        Some((2 * (vector * MSRS_IN_VECTOR + index % MSRS_IN_VECTOR)) as usize)
    }

    /// The byte that has the two bits of an MSR.
    pub fn byte(index: u32) -> Option<usize> {
        Self::bit(index).map(|bit| bit / 8)
    }

    /// At a byte, what either of two maps intercepts.
    pub fn merge(&mut self, at: usize, one: &Self, other: &[u8]) {
        let range = at..at + other.len();
        for ((to, one), other) in self.0[range.clone()].iter_mut().zip(&one.0[range]).zip(other) {
            *to = one | other;
        }
    }

    /// Whether an access exits; one to an MSR that is in no vector always does.
    pub fn exits(&self, index: u32, write: bool) -> bool {
        Self::bit(index).is_none_or(|bit| self.0[bit / 8] >> (bit % 8 + usize::from(write)) & 1 != 0)
    }

    /// Lets reads and writes of an MSR through, or not.
    pub fn set_exits(&mut self, index: u32, read: bool, write: bool) {
        if let Some(bit) = Self::bit(index) {
            let byte = &mut self.0[bit / 8];
            let exits = u8::from(read) | u8::from(write) << 1;
            *byte = *byte & !(3 << (bit % 8)) | exits << (bit % 8);
        }
    }
}

impl Serialize for Msrpm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        sparse::words(&self.0, u64::MAX).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Msrpm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut map = Self::default();
        sparse::fill(&mut map.0, &sparse::Words::deserialize(deserializer)?)?;
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places from kvm-unit-tests x86/svm.c: byte 0x800 begins 0xc0000000, 0x1000 begins 0xc0010000.
    #[test]
    fn msr_permission_map() {
        for (index, byte, shift) in [
            (0, 0, 0),
            (0x277, 0x9d, 6),
            (0x1fff, 0x7ff, 6),
            (0xc000_0080, 0x820, 0),
            (0xc001_0117, 0x1045, 6),
        ] {
            let mut map = Msrpm::default();
            map.set_exits(index, false, true);
            assert!(!map.exits(index, false) && map.exits(index, true), "{index:#x}");
            assert_eq!(map.0[byte], !(1 << shift), "{index:#x}");
            assert_eq!(map.0.iter().filter(|byte| **byte != 0xff).count(), 1);
            let saved = postcard::to_stdvec(&map).unwrap();
            assert_eq!(postcard::from_bytes::<Msrpm>(&saved).unwrap(), map);
            map.set_exits(index, true, true);
            assert_eq!(map, Msrpm::default());
        }
        for outside in [0x2000, 0x4b56_4d00, 0xc000_2000, 0xc001_2000] {
            let mut map = Msrpm::default();
            map.set_exits(outside, false, false);
            assert!(map.exits(outside, false) && map == Msrpm::default(), "{outside:#x}");
        }
    }

    #[test]
    fn a_saved_vmcb_comes_back() {
        let mut vmcb = Vmcb::default();
        (vmcb.control.exit_code, vmcb.save.rax, vmcb.save.g_pat) = (u64::MAX, 7, 0x0007_0406_0007_0406);
        let saved = postcard::to_stdvec(&vmcb).unwrap();
        assert!(saved.len() < 64);
        assert_eq!(postcard::from_bytes::<Vmcb>(&saved).unwrap(), vmcb);
        // A word behind the end.
        let behind = postcard::to_stdvec(&vec![(0x200u16, 1u64)]).unwrap();
        assert!(postcard::from_bytes::<Vmcb>(&behind).is_err());
    }
}
