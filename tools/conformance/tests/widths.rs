//! Addresses that a page table has too few levels for. See: Intel, 5-Level Paging and 5-Level EPT

use anyhow::Result;
use vmtape_conformance::{tail, vmtape};

/// Nothing lies at the address, so each access exits, is emulated, and reaches the VMM. The guest goes on.
#[test]
fn mmio_beyond_four_level_tables_reaches_the_vmm() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (backend, host) in [("vmx", "intel-52-4level"), ("svm-npt", "amd-52-4level")] {
        let cpu = "max,guest-phys-bits=52";
        let run = vmtape(
            folder.path(),
            &["run", "-b", backend, "--host", host, "--cpu", cpu, "--guest-status", "builtin:bar"],
        )?;
        assert_eq!(run.status.code(), Some(1), "{backend} on {host}: {}", tail(&run));
        assert!(
            String::from_utf8_lossy(&run.stdout).contains("ffffc00000000 answers"),
            "{backend}: {}",
            tail(&run)
        );
    }
    Ok(())
}
