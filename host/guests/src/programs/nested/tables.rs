//! Nested page tables: what the guest's guest takes for physical memory is its hypervisor's, 2 MiB by 2 MiB, but for one
//! region of 2 MiB with entries of its own.
//!
//! See: APM vol. 2 (24593, revision 3.42) 15.25 Nested Paging

use super::layout;
use crate::{
    kernel::Kernel,
    programs::paging::{Entry, P_W_U},
};
use iced_x86::{IcedError, code_asm::*};

const PAGE_SIZE: u64 = 0x80;
/// Directories for 4 GiB.
const DIRECTORIES: u64 = 4;
const ENTRIES: u64 = 512;

/// The nested entries that translate one address, from level 4 down to level 1.
pub struct Path {
    pub entries: [Entry; 4],
    /// Where the 2 MiB region begins.
    region: u64,
}

impl Path {
    /// Maps the page of `gpa` (below 2^48) to itself, and the 2 MiB around it page by page.
    pub fn new(gpa: u64) -> Self {
        let index = |shift: u32| 8 * (gpa >> shift & (ENTRIES - 1));
        let gigabyte = gpa >> 30;
        let pdpt = if gigabyte < ENTRIES { layout::NPDPT } else { layout::FAR_NPDPT };
        let pd = if gigabyte < DIRECTORIES { layout::NPD + 0x1000 * gigabyte } else { layout::FAR_NPD };
        let entry = |name, address, value| Entry { name, address, value };
        Self {
            entries: [
                entry("npml4e", layout::NPML4 + index(39), pdpt | P_W_U),
                entry("npdpte", pdpt + index(30), pd | P_W_U),
                entry("npde", pd + index(21), layout::NPT | P_W_U),
                entry("npte", layout::NPT + index(12), (gpa & !0xfff) | P_W_U),
            ],
            region: gpa & !0x1f_ffff,
        }
    }

    /// Writes the region's entries, then those of the path. Clobbers RAX, RCX and RDI.
    pub fn install(&self, k: &mut Kernel) -> Result<(), IcedError> {
        fill(k, layout::NPT, self.region | P_W_U, 0x1000, ENTRIES)?;
        for entry in self.entries {
            k.a.mov(rax, entry.value)?;
            k.a.mov(qword_ptr(entry.address), rax)?;
        }
        Ok(())
    }
}

/// Builds the tables for 4 GiB. Clobbers RAX, RCX and RDI.
pub fn identity(k: &mut Kernel) -> Result<(), IcedError> {
    fill(k, layout::NPML4, layout::NPDPT | P_W_U, 0, 1)?;
    fill(k, layout::NPDPT, layout::NPD | P_W_U, 0x1000, DIRECTORIES)?;
    fill(k, layout::NPD, P_W_U | PAGE_SIZE, 0x20_0000, DIRECTORIES * ENTRIES)
}

/// Writes so many entries, each `step` above the one before.
fn fill(k: &mut Kernel, table: u64, first: u64, step: i32, count: u64) -> Result<(), IcedError> {
    let mut next = k.a.create_label();
    k.a.mov(rdi, table)?;
    k.a.mov(rax, first)?;
    k.a.mov(ecx, count as u32)?;
    k.here(&mut next)?;
    k.a.mov(qword_ptr(rdi), rax)?;
    k.a.add(rdi, 8)?;
    k.a.add(rax, step)?;
    k.a.dec(ecx)?;
    k.a.jnz(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_uses_the_tables_that_are_there() {
        let near = Path::new(0x200_0123).entries.map(|entry| entry.address);
        assert_eq!(near, [layout::NPML4, layout::NPDPT, layout::NPD + 8 * 16, layout::NPT]);
        let far = Path::new(1 << 40 | 0x3000).entries.map(|entry| entry.address);
        assert_eq!(far, [layout::NPML4 + 16, layout::FAR_NPDPT, layout::FAR_NPD, layout::NPT + 24]);
    }
}
