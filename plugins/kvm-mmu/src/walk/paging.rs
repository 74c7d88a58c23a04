//! What governs a walk: mode, widths and the control bits, and which bits an entry must not have.
//!
//! See: SDM vol. 3A chapter 4 Paging; APM vol. 2 chapter 5 Page Translation and Protection.

use super::Acc;
use vmtape_arch::{
    access::AccessKind,
    exception::PageFaultError,
    paging::{EptEntry, Eptp, PagingMode, Pte, bits},
    vcpu::VcpuState,
};

/// Paging modes. See: SDM vol. 3A 4.1.1 Four Paging Modes
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// CR0.PG=0: linear addresses are physical.
    None,
    /// 4-byte entries; `pse` allows 4 MiB pages.
    Bits32 {
        pse: bool,
    },
    Pae,
    Level4,
    Level5,
    /// Extended page tables. `ad`: they have accessed and dirty bits; `execute_only`: XWR may be 100.
    Ept {
        levels: u8,
        ad: bool,
        execute_only: bool,
    },
}

impl Mode {
    /// A guest's mode; `pse` is its CR4.PSE.
    pub const fn of(mode: PagingMode, pse: bool) -> Self {
        match mode {
            PagingMode::None => Self::None,
            PagingMode::Bits32 => Self::Bits32 { pse },
            PagingMode::Pae => Self::Pae,
            PagingMode::Level4 => Self::Level4,
            PagingMode::Level5 => Self::Level5,
        }
    }

    /// Levels, of which PAE's third is held in registers.
    pub const fn levels(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Bits32 { .. } => 2,
            Self::Pae => 3,
            Self::Level4 => 4,
            Self::Level5 => 5,
            Self::Ept { levels, .. } => levels,
        }
    }

    /// The tables that an EPT pointer stands for.
    pub const fn ept(eptp: u64, execute_only: bool) -> Self {
        let eptp = Eptp::from_bits(eptp);
        Self::Ept { levels: eptp.levels_minus_one() + 1, ad: eptp.ad(), execute_only }
    }

    /// Bytes per entry.
    pub const fn entry_size(self) -> u8 {
        match self {
            Self::Bits32 { .. } => 4,
            _ => 8,
        }
    }

    /// log2 of what one entry at `level` maps.
    pub const fn shift(self, level: u8) -> u32 {
        let bits_per_level = if self.entry_size() == 4 { 10 } else { 9 };
        12 + bits_per_level * (level as u32 - 1)
    }

    /// Index into a table at `level`.
    pub const fn index(self, gva: u64, level: u8) -> u64 {
        let mask = if self.entry_size() == 4 { 0x3ff } else { 0x1ff };
        (gva >> self.shift(level)) & mask
    }
}

/// Everything but the address and the access that decides a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    pub mode: Mode,
    /// Physical address of the top table (CR3 or nCR3 without its low bits).
    pub root: u64,
    /// PAE only.
    pub pdptr: [u64; 4],
    /// PAE only: the pointers are no registers but entries in memory, which each walk reads. So under AMD's nested paging.
    /// See: APM vol. 2 15.25.10 Legacy PAE Mode
    pub pdpt: Option<u64>,
    /// MAXPHYADDR of whoever performs the walk.
    pub maxphyaddr: u8,
    /// EFER.NXE, where the mode has the bit.
    pub nx: bool,
    pub wp: bool,
    pub smep: bool,
    pub smap: bool,
    pub pke: bool,
    pub pkru: u32,
    /// RFLAGS.AC.
    pub ac: bool,
    /// 1 GiB pages exist.
    pub gbpages: bool,
    /// Bit 8 of PML5 and PML4 entries is reserved (AMD).
    pub bit8_reserved: bool,
    /// Physical width that 4 MiB pages reach: min(40, MAXPHYADDR) in silicon, 36 in KVM (`is_cpuid_PSE36`).
    pub pse36: u8,
    /// Fetches are reported in bit 4 of the error code.
    pub reports_fetch: bool,
}

/// Which bits a mode's CR3 gives the top table.
const fn root_mask(mode: Mode) -> u64 {
    match mode {
        Mode::Bits32 { .. } => bits(12, 31),
        _ => bits(12, 51),
    }
}

impl Paging {
    /// Everything off; a start for paging that is no guest's.
    pub const BARE: Self = Self {
        mode: Mode::None,
        root: 0,
        pdptr: [0; 4],
        pdpt: None,
        maxphyaddr: 52,
        nx: false,
        wp: false,
        smep: false,
        smap: false,
        pke: false,
        pkru: 0,
        ac: false,
        gbpages: false,
        bit8_reserved: false,
        pse36: 40,
        reports_fetch: false,
    };

    /// The guest's own paging as its registers say, walked with the given width.
    pub fn of(state: &VcpuState, maxphyaddr: u8, gbpages: bool, amd: bool) -> Self {
        let (cr0, cr4, efer) = (state.cr0(), state.cr4(), state.efer());
        let mode = Mode::of(state.paging_mode(), cr4.pse());
        let nx = efer.nxe() && !matches!(mode, Mode::Bits32 { .. });
        Self {
            mode,
            root: state.cr3 & root_mask(mode),
            pdptr: state.pdptr,
            pdpt: None,
            maxphyaddr,
            nx,
            wp: cr0.wp(),
            smep: cr4.smep(),
            smap: cr4.smap(),
            // Protection keys exist in 4- and 5-level paging only.
            pke: cr4.pke() && matches!(mode, Mode::Level4 | Mode::Level5),
            pkru: state.pkru,
            ac: state.rflags().ac(),
            gbpages,
            bit8_reserved: amd,
            pse36: maxphyaddr.min(40),
            reports_fetch: nx || cr4.smep(),
        }
    }

    /// The same with the pointers of PAE in memory.
    pub fn with_pdpt_in_memory(self, cr3: u64) -> Self {
        Self { pdpt: (self.mode == Mode::Pae).then_some(cr3 & bits(5, 31)), ..self }
    }

    /// The reserved bits of a present page-directory pointer of PAE. See: SDM Table 4-8; KVM x86.c pdptr_rsvd_bits()
    pub fn reserved_in_pdpte(&self) -> u64 {
        bits(self.maxphyaddr.into(), 63) | bits(5, 8) | bits(1, 2)
    }

    /// Whether the entry is there at all.
    pub fn is_present(&self, entry: Pte) -> bool {
        match self.mode {
            Mode::Ept { .. } => {
                let entry = EptEntry::from_bits(entry.into_bits());
                entry.r() || entry.w() || entry.x()
            }
            _ => entry.p(),
        }
    }

    /// Where entries have their accessed and their dirty bit; nothing where they have none.
    pub const fn accessed_dirty(&self) -> (u64, u64) {
        match self.mode {
            Mode::Ept { ad: false, .. } => (0, 0),
            Mode::Ept { .. } => {
                (EptEntry::new().with_a(true).into_bits(), EptEntry::new().with_d(true).into_bits())
            }
            _ => (Pte::new().with_a(true).into_bits(), Pte::new().with_d(true).into_bits()),
        }
    }

    /// Whether every bit that stands in `mask` is set, or there is none.
    pub const fn has_all(entry: u64, mask: u64) -> bool {
        entry & mask == mask
    }

    /// Whether a present entry breaks a rule of its format: a reserved bit, or under EPT rights or a memory type that
    /// do not exist.
    pub fn is_reserved(&self, entry: Pte, level: u8) -> bool {
        let value = entry.into_bits();
        let forbidden = match self.mode {
            // See: SDM vol. 3C 29.3.3.1 EPT Misconfigurations; KVM mmu.c __reset_rsvds_bits_mask_ept()
            Mode::Ept { execute_only, .. } => {
                let entry = EptEntry::from_bits(value);
                let rights = !entry.r() && (entry.w() || entry.x() && !execute_only);
                rights || matches!(entry.memtype(), 2 | 3 | 7)
            }
            _ => false,
        };
        forbidden || value & self.reserved(entry, level) != 0
    }

    /// The reserved bits of a present entry, given its own bit 7.
    /// See: SDM vol. 3A 4.7 Page-Fault Exceptions (RSVD flag); KVM arch/x86/kvm/mmu/mmu.c __reset_rsvds_bits_mask()
    pub fn reserved(&self, entry: Pte, level: u8) -> u64 {
        let ps = entry.ps();
        let no_nx = if self.nx { 0 } else { bits(63, 63) };
        let too_wide = bits(u32::from(self.maxphyaddr), 51);
        match (self.mode, level) {
            (Mode::None, _) => 0,
            (Mode::Ept { .. }, 4 | 5) => too_wide | bits(3, 7),
            (Mode::Ept { .. }, 3) if ps && !self.gbpages => too_wide | bits(7, 7),
            (Mode::Ept { .. }, 3) if ps => too_wide | bits(12, 29),
            (Mode::Ept { .. }, 2) if ps => too_wide | bits(12, 20),
            (Mode::Ept { .. }, 2 | 3) => too_wide | bits(3, 6),
            (Mode::Ept { .. }, _) => too_wide,
            // Address bits 39:32 of a 4 MiB page stand in 20:13; bit 21 is always reserved.
            (Mode::Bits32 { pse: true }, 2) if ps => {
                bits(u32::from(self.pse36).saturating_sub(19).max(13), 21)
            }
            (Mode::Bits32 { .. }, _) => 0,
            // PAE has neither ignored bits 62:52 nor protection keys.
            (Mode::Pae, 2) if ps => no_nx | bits(u32::from(self.maxphyaddr), 62) | bits(13, 20),
            (Mode::Pae, _) => no_nx | bits(u32::from(self.maxphyaddr), 62),
            (_, 4 | 5) => no_nx | too_wide | bits(7, 7) | if self.bit8_reserved { bits(8, 8) } else { 0 },
            (_, 3) if ps && !self.gbpages => no_nx | too_wide | bits(7, 7),
            (_, 3) if ps => no_nx | too_wide | bits(13, 29),
            (_, 2) if ps => no_nx | too_wide | bits(13, 20),
            _ => no_nx | too_wide,
        }
    }

    /// Whether the entry ends the walk.
    pub fn is_leaf(&self, entry: Pte, level: u8) -> bool {
        match (self.mode, level) {
            (_, 1) => true,
            (Mode::Bits32 { pse }, 2) => pse && entry.ps(),
            (_, 2 | 3) => entry.ps(),
            _ => false,
        }
    }

    /// The physical address that a leaf gives to `gva`.
    pub fn leaf_address(&self, entry: Pte, level: u8, gva: u64) -> u64 {
        let offset = gva & bits(0, self.mode.shift(level) - 1);
        if self.mode.entry_size() == 4 && level == 2 {
            let high = (entry.into_bits() & bits(13, 20)) << 19;
            return (entry.into_bits() & bits(22, 31)) | high | offset;
        }
        (entry.address() & !bits(0, self.mode.shift(level) - 1)) | offset
    }

    /// What one entry allows by itself.
    pub fn entry_access(&self, entry: Pte) -> Acc {
        if let Mode::Ept { .. } = self.mode {
            // Read access takes the place of the user bit. See: KVM paging_tmpl.h FNAME(gpte_access)
            let entry = EptEntry::from_bits(entry.into_bits());
            return Acc::new().with_exec(entry.x()).with_write(entry.w()).with_user(entry.r());
        }
        let nx = self.mode.entry_size() == 8 && entry.nx();
        Acc::new().with_exec(!nx).with_write(entry.w()).with_user(entry.u())
    }

    /// Checks an access against the rights accumulated over all levels; `Err` holds P and PK.
    /// See: SDM vol. 3A 4.6 Access Rights; KVM arch/x86/kvm/mmu.h permission_fault()
    pub fn permit(&self, acc: Acc, pkey: u8, access: &WalkAccess) -> Result<(), PageFaultError> {
        let fetch = access.kind == AccessKind::FETCH;
        let write = access.kind == AccessKind::WRITE;
        let rights_ok = match access.kind {
            AccessKind::FETCH => acc.exec(),
            AccessKind::WRITE => acc.write() || (!access.user && !self.wp),
            _ => true,
        };
        let mode_ok = if access.user {
            acc.user()
        } else if fetch {
            !(self.smep && acc.user())
        } else {
            !(self.smap && acc.user() && (access.implicit || !self.ac))
        };
        let key = if self.pke && acc.user() && !fetch { self.pkru >> (2 * pkey) & 3 } else { 0 };
        let key_ok = key & 1 == 0 && !(key & 2 != 0 && write && (access.user || self.wp));
        if rights_ok && mode_ok && key_ok {
            return Ok(());
        }
        Err(PageFaultError::new().with_p(true).with_pk(!key_ok))
    }

    /// Which kinds of access the rights allow in the same privilege: read, write, fetch.
    pub fn rights(&self, acc: Acc, pkey: u8, access: &WalkAccess) -> [bool; 3] {
        [AccessKind::READ, AccessKind::WRITE, AccessKind::FETCH]
            .map(|kind| self.permit(acc, pkey, &access.with_kind(kind)).is_ok())
    }

    /// The bits of an error code that describe the access itself.
    pub fn describe(&self, access: &WalkAccess) -> PageFaultError {
        PageFaultError::new()
            .with_w(access.kind == AccessKind::WRITE)
            .with_u(access.user)
            .with_i(access.kind == AccessKind::FETCH && self.reports_fetch)
    }
}

/// The access that a walk is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalkAccess {
    pub kind: AccessKind,
    /// User-mode: CPL 3 and not implicit.
    pub user: bool,
    /// Implicit supervisor access: SMAP ignores RFLAGS.AC.
    pub implicit: bool,
}

impl WalkAccess {
    /// PFERR_* of the access, as KVM's tracepoints show them.
    pub fn pferr(&self) -> u32 {
        let error = PageFaultError::new()
            .with_w(self.kind == AccessKind::WRITE)
            .with_u(self.user)
            .with_i(self.kind == AccessKind::FETCH);
        error.into_bits()
    }

    /// The access of this kind with the same privilege.
    pub fn with_kind(self, kind: AccessKind) -> Self {
        Self { kind, ..self }
    }
}

impl From<&vmtape_arch::access::Access> for WalkAccess {
    fn from(access: &vmtape_arch::access::Access) -> Self {
        Self { kind: access.kind, user: access.user.is_set(), implicit: access.implicit.is_set() }
    }
}
