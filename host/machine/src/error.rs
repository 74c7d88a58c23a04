//! What can go wrong before a run begins.

use thiserror::Error;
use vmtape_abi::Errno;

/// A machine that cannot be built.
#[derive(Debug, Error)]
pub enum Error {
    #[error("{file}: {cause}")]
    Image { file: String, cause: LoadError },
    #[error("memory size {0:#x}: {1}")]
    Memory(u64, &'static str),
    #[error("cannot reserve {0} MiB of memory for the guest: {1}")]
    Reserve(u64, String),
    #[error("{0} vCPUs: between 1 and {max} are possible", max = crate::devices::MAX_VCPUS)]
    Vcpus(u32),
    #[error(
        "the tape was recorded with revision {0} of the interpreter, this program knows {known} and older: replay it with \
         the program that recorded it, or a newer one",
        known = vmtape_cpu::revision::REVISION
    )]
    CpuRevision(u32),
    #[error("CPU model '{text}': {cause}")]
    Model { text: String, cause: String },
    #[error("host '{text}': {cause}")]
    Host { text: String, cause: String },
    /// A host's description is no such file, or none that can be read.
    #[error("{path}: {cause}")]
    Passport { path: String, cause: String },
    #[error("the backend refuses {what}: errno {errno}", errno = .errno.0)]
    Backend { what: String, errno: Errno },
    #[error("the VMM's script: {0}")]
    Script(String),
    /// A state that has no representation as bytes.
    #[error("{what} cannot be written as bytes: {cause}")]
    Encode { what: &'static str, cause: postcard::Error },
    #[error("checkpoint: {0}")]
    Checkpoint(String),
}

/// Why an image cannot be loaded.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LoadError {
    #[error("neither a 32-bit ELF multiboot image, nor a bzImage, nor a boot sector")]
    Unknown,
    #[error("damaged ELF file: {0}")]
    Elf(String),
    #[error(
        "ELF for another machine or class: a 32-bit i386 executable is needed (kvm-unit-tests' .flat, not .elf)"
    )]
    ElfClass,
    #[error("no multiboot header in the first 8 KiB")]
    NoMultiboot,
    #[error("the multiboot header asks for features {0:#x} that this loader does not give")]
    MultibootFeatures(u32),
    #[error("truncated: a segment ends at byte {end:#x} of a file of {len:#x} bytes")]
    Truncated { end: u64, len: u64 },
    #[error("segment at {0:#x} has more bytes in the file than in memory")]
    SegmentSize(u64),
    #[error("segments at {0:#x} and {1:#x} overlap")]
    Overlap(u64, u64),
    #[error("{what} needs memory {start:#x}-{end:#x}, which is not RAM of this guest")]
    NoMemory { what: &'static str, start: u64, end: u64 },
    #[error("entry point {0:#x} is outside the image")]
    Entry(u64),
    #[error("bzImage: {0}")]
    BzImage(String),
    #[error("command line of {0} bytes: at most {1} fit")]
    CommandLine(usize, usize),
    #[error(
        "the initrd has {len} bytes, and between the kernel's end {start:#x} and {end:#x}, the highest address for it, are \
         fewer: give the guest more memory (-m)"
    )]
    Initrd { len: u64, start: u64, end: u64 },
    #[error("the initrd is empty")]
    EmptyInitrd,
    #[error("a boot sector takes no initrd: only bzImages and multiboot images do")]
    InitrdOfBootSector,
    #[error("boot sector image of {0} bytes is too large")]
    BootSector(usize),
}
