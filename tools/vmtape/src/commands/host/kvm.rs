//! /dev/kvm, as far as a host describes itself there: no VM is made.

// UNSAFETY: ioctl is the only way to ask, and it writes through a pointer. Both calls are here, each with a buffer of the
// size that its number says.
#![expect(unsafe_code)]

use std::{fs::File, io, os::fd::AsRawFd, path::Path};
use vmtape_arch::cpuid::CpuidEntry;

/// `_IO(KVMIO, 0x03)` and `_IOWR(KVMIO, 0x05, struct kvm_cpuid2)`. See: Linux include/uapi/linux/kvm.h
const KVM_CHECK_EXTENSION: libc::c_ulong = 0xae03;
const KVM_GET_SUPPORTED_CPUID: libc::c_ulong = 0xc008_ae05;
/// KVM_CAP_SMALLER_MAXPHYADDR.
const SMALLER_MAXPHYADDR: u32 = 185;
/// KVM_MAX_CPUID_ENTRIES.
const MOST_ENTRIES: usize = 256;
/// 32-bit words of struct kvm_cpuid2 before its entries, and of an entry, the last three of which are padding.
const HEADER: usize = 2;
const ENTRY: usize = 10;

/// The open device.
pub struct Kvm(File);

impl Kvm {
    pub fn open(path: &Path) -> io::Result<Self> {
        File::options().read(true).write(true).open(path).map(Self)
    }

    /// KVM_CHECK_EXTENSION: zero where KVM does not know the capability; `None` where nobody answers.
    pub fn check_extension(&self, cap: u32) -> Option<i32> {
        // SAFETY: the argument is a number, the descriptor is open, and nothing is written.
        let value = unsafe { libc::ioctl(self.0.as_raw_fd(), KVM_CHECK_EXTENSION, libc::c_ulong::from(cap)) };
        (value >= 0).then_some(value)
    }

    /// KVM_GET_SUPPORTED_CPUID.
    pub fn supported_cpuid(&self) -> io::Result<Vec<CpuidEntry>> {
        let mut words = vec![0u32; HEADER + ENTRY * MOST_ENTRIES];
        words[0] = MOST_ENTRIES as u32;
        // SAFETY: the buffer is a struct kvm_cpuid2 with room for as many entries as its first word says; KVM writes no
        // more, and the buffer outlives the call.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), KVM_GET_SUPPORTED_CPUID, words.as_mut_ptr()) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let count = (words[0] as usize).min(MOST_ENTRIES);
        Ok(words[HEADER..].chunks_exact(ENTRY).take(count).map(entry).collect())
    }
}

/// What KVM says of itself here, if anybody may ask.
pub fn ask() -> (Option<Vec<CpuidEntry>>, Option<bool>) {
    match Kvm::open(Path::new("/dev/kvm")) {
        Ok(kvm) => {
            (kvm.supported_cpuid().ok(), kvm.check_extension(SMALLER_MAXPHYADDR).map(|value| value != 0))
        }
        Err(_) => (None, None),
    }
}

fn entry(words: &[u32]) -> CpuidEntry {
    CpuidEntry {
        function: words[0],
        index: words[1],
        flags: words[2],
        eax: words[3],
        ebx: words[4],
        ecx: words[5],
        edx: words[6],
        pad: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kvm_says_nothing() -> io::Result<()> {
        let null = Kvm::open(Path::new("/dev/null"))?;
        assert_eq!(null.check_extension(0), None);
        assert!(null.supported_cpuid().is_err());
        Ok(())
    }
}
