//! What can go wrong before a run begins.

use thiserror::Error;
use vmtape_abi::Errno;

/// A machine that cannot be built.
#[derive(Debug, Error)]
pub enum Error {
    #[error("{file}: {cause}")]
    Image { file: String, cause: crate::loader::LoadError },
    #[error("memory size {0:#x}: {1}")]
    Memory(u64, &'static str),
    #[error("cannot reserve {0} MiB of memory for the guest: {1}")]
    Reserve(u64, String),
    #[error("{0} vCPUs: between 1 and {max} are possible", max = crate::spec::MAX_VCPUS)]
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
    #[error("checkpoint: {0}")]
    Checkpoint(String),
}
