//! A mapping under test: one linear address with tables and a data page of its own.

use crate::kernel::Kernel;
use iced_x86::{IcedError, code_asm::*};

/// The address under test, in a top-level slot that nothing else uses.
pub const GVA: u64 = 0xffff_9234_0000_0000;
/// Index of `GVA` in the PML4.
const GVA_PML4_INDEX: u64 = 292;
/// Index of `GVA` in its PDPT.
const GVA_PDPT_INDEX: u64 = 208;
/// The tables of the mapping; the entries for `GVA` in the last two are the first ones.
pub const PDPT: u64 = 0x210_0000;
pub const PDE: u64 = 0x210_1000;
pub const PTE: u64 = 0x210_2000;
/// The data page. It starts with a `ret`, so that it can be called.
pub const DATA: u64 = 0x200_0000;
/// What the data page starts with: c3 is `ret`.
pub const SIGNATURE: u64 = 0x1122_3344_5566_77c3;

/// Present, writable, user.
pub const P_W_U: u64 = 7;

/// Bit 7 of a PDE or PDPTE.
const PAGE_SIZE: u64 = 0x80;

/// How large a page maps the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    Small,
    Large,
    Huge,
}

impl Page {
    /// The words of the parameter `page`.
    pub const WORDS: &'static [&'static str] = &["4K", "2M", "1G"];

    pub fn of(word: Option<&str>) -> Self {
        match word {
            Some("2M") => Self::Large,
            Some("1G") => Self::Huge,
            _ => Self::Small,
        }
    }

    fn size(self) -> u64 {
        match self {
            Self::Small => 1 << 12,
            Self::Large => 1 << 21,
            Self::Huge => 1 << 30,
        }
    }
}

/// A paging entry: what it is called, where it lies, what it holds.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub name: &'static str,
    pub address: u64,
    pub value: u64,
}

/// The four entries that translate one linear address.
pub struct Mapping {
    /// The linear address to touch.
    pub gva: u64,
    /// From level 4 down to level 1.
    pub entries: [Entry; 4],
}

impl Mapping {
    /// Maps the page of `gpa`, present, writable and user.
    pub fn new(gpa: u64, page: Page) -> Self {
        let offset = page.size() - 1;
        let small = (gpa & !offset) | P_W_U;
        let pml4e = crate::boot::layout::PML4 + 8 * GVA_PML4_INDEX;
        let table = |at, table| if page == at { small | PAGE_SIZE } else { table | P_W_U };
        Self {
            gva: GVA + (gpa & offset),
            entries: [
                Entry { name: "pml4e", address: pml4e, value: PDPT | P_W_U },
                Entry { name: "pdpte", address: PDPT + 8 * GVA_PDPT_INDEX, value: table(Page::Huge, PDE) },
                Entry { name: "pde", address: PDE, value: table(Page::Large, PTE) },
                Entry { name: "pte", address: PTE, value: small },
            ],
        }
    }

    /// The entry with which a walk ends that finds everything present, and the one above it.
    pub fn leaf_and_parent(&self) -> (Entry, Entry) {
        let [_, pdpte, pde, _] = self.entries;
        let level = match (pdpte.value & PAGE_SIZE, pde.value & PAGE_SIZE) {
            (0, 0) => 3,
            (0, _) => 2,
            _ => 1,
        };
        (self.entries[level], self.entries[level - 1])
    }

    /// Writes the entries. Clobbers RAX.
    pub fn install(&self, k: &mut Kernel) -> Result<(), IcedError> {
        self.entries.iter().try_for_each(|entry| set_entry(k, entry.address, entry.value))
    }
}

/// Builds the upper levels and the data page. The PDE and PTE are the program's own. Clobbers RAX.
pub fn prepare(k: &mut Kernel) -> Result<(), IcedError> {
    let a = &mut k.a;
    for (address, value) in [
        (crate::boot::layout::PML4 + 8 * GVA_PML4_INDEX, PDPT | P_W_U),
        (PDPT + 8 * GVA_PDPT_INDEX, PDE | P_W_U),
        (DATA, SIGNATURE),
    ] {
        a.mov(rax, value)?;
        a.mov(qword_ptr(address), rax)?;
    }
    Ok(())
}

/// Writes an entry.
pub fn set_entry(k: &mut Kernel, address: u64, value: u64) -> Result<(), IcedError> {
    k.a.mov(rax, value)?;
    k.a.mov(qword_ptr(address), rax)
}

/// Leaves the guest's MAXPHYADDR in EAX and GuestPhysBits in EDX (0 where CPUID does not say). Clobbers RBX and RCX.
/// See: APM vol. 3 E.4.7 Function 8000_0008h
pub fn address_widths(k: &mut Kernel) -> Result<(), IcedError> {
    let (mut absent, mut done) = (k.a.create_label(), k.a.create_label());
    k.a.mov(eax, 0x8000_0000u32)?;
    k.a.cpuid()?;
    k.a.cmp(eax, 0x8000_0008u32 as i32)?;
    k.a.jb(absent)?;
    k.a.mov(eax, 0x8000_0008u32)?;
    k.a.cpuid()?;
    k.a.mov(edx, eax)?;
    k.a.shr(edx, 16)?;
    k.a.and(edx, 0xff)?;
    k.a.and(eax, 0xff)?;
    k.a.jmp(done)?;
    k.here(&mut absent)?;
    k.a.mov(eax, 36)?;
    k.a.xor(edx, edx)?;
    k.here(&mut done)
}

/// Leaves in RAX an entry for [`DATA`] with the lowest address bit beyond the width in EAX. Where there is none, the guest
/// ends.
pub fn illegal_entry(k: &mut Kernel) -> Result<(), IcedError> {
    let mut possible = k.a.create_label();
    k.a.cmp(eax, 52)?;
    k.a.jb(possible)?;
    k.print("no address is illegal at 52 bits\nSUMMARY: 0 tests\n")?;
    k.a.xor(eax, eax)?;
    k.exit()?;
    k.here(&mut possible)?;
    k.a.mov(ecx, eax)?;
    k.a.mov(eax, 1)?;
    k.a.shl(rax, cl)?;
    k.a.or(rax, (DATA | 1) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The indices that kvm-unit-tests prints for this address (x86/access.c dump_mapping(): `L4 I292`, `L3 I208`).
    #[test]
    fn the_entries_are_those_of_the_address() {
        let index = |shift: u32| GVA >> shift & 0x1ff;
        assert_eq!([39, 30, 21, 12].map(index), [GVA_PML4_INDEX, GVA_PDPT_INDEX, 0, 0]);
        assert_eq!((GVA_PML4_INDEX, GVA_PDPT_INDEX), (292, 208));
    }

    #[test]
    fn the_leaf_follows_from_the_page_size_bits() {
        for (page, leaf, parent, offset) in [
            (Page::Small, "pte", "pde", 0x234),
            (Page::Large, "pde", "pdpte", 0x1_2234),
            (Page::Huge, "pdpte", "pml4e", 0x301_2234),
        ] {
            let mapping = Mapping::new(0x1_0301_2234, page);
            let found = mapping.leaf_and_parent();
            assert_eq!((found.0.name, found.1.name), (leaf, parent));
            assert_eq!(found.0.value & !0xfff, (0x1_0301_2234 - offset) & !0xfff, "{page:?}");
            assert_eq!(mapping.gva - GVA, offset, "{page:?}");
        }
    }
}
