//! A host without guests' memory and devices: a log, a few pages, and the moment at which it crashes.

use std::collections::BTreeMap;
use vmtape_abi::{BusOp, EmulateRequest, Emulated, EmulatorMmu, FlushScope, Host, MemoryStatus};
use vmtape_arch::{
    PAGE_SIZE,
    level::Place,
    note::{Note, NoteKind},
    vcpu::VcpuState,
};

/// Bytes of a word.
const WORD: usize = 8;

/// When a fault point answers: the n-th time that any of some is asked.
#[derive(Clone, Debug)]
pub struct Moment<'a> {
    pub points: &'a [u32],
    pub left: u64,
}

/// The host.
#[derive(Default)]
pub struct BareHost<'a> {
    /// Pages of its own, by address.
    pages: BTreeMap<u64, Vec<u8>>,
    /// What backends logged: the kernel's messages.
    pub log: Vec<String>,
    pub moment: Option<Moment<'a>>,
}

impl BareHost<'_> {
    /// Takes a page, and fills it so that any change shows: each word holds its own address, inverted.
    pub fn claim(&mut self, hpa: u64) {
        self.pages.insert(hpa, contents(hpa));
    }

    /// How many bytes of a page are in words that are not as it was filled.
    pub fn changed(&self, hpa: u64) -> usize {
        let (then, words) = (contents(hpa), self.pages.get(&hpa).map_or(&[][..], |page| page.as_chunks().0));
        words.iter().zip(then.as_chunks::<WORD>().0).filter(|(now, then)| now != then).count() * WORD
    }

    fn at(&mut self, hpa: u64, len: usize) -> Option<&mut [u8]> {
        let (page, offset) = (hpa & !(PAGE_SIZE - 1), (hpa % PAGE_SIZE) as usize);
        self.pages.get_mut(&page)?.get_mut(offset..offset + len)
    }
}

fn contents(hpa: u64) -> Vec<u8> {
    (hpa..hpa + PAGE_SIZE).step_by(WORD).flat_map(|address| (!address).to_le_bytes()).collect()
}

impl Host for BareHost<'_> {
    fn try_read(&mut self, hpa: u64, buf: &mut [u8]) -> MemoryStatus {
        let Some(bytes) = self.at(hpa, buf.len()) else { return MemoryStatus::REFUSED };
        buf.copy_from_slice(bytes);
        MemoryStatus::READY
    }

    fn try_write(&mut self, hpa: u64, data: &[u8]) -> MemoryStatus {
        let Some(bytes) = self.at(hpa, data.len()) else { return MemoryStatus::REFUSED };
        bytes.copy_from_slice(data);
        MemoryStatus::READY
    }

    fn try_cmpxchg(&mut self, _hpa: u64, _old: u64, _new: u64, _size: u8) -> MemoryStatus {
        MemoryStatus::REFUSED
    }

    fn fault_in(&mut self, _hpa: u64, _size: u64) -> MemoryStatus {
        MemoryStatus::REFUSED
    }

    fn resident(&self, _hpa: u64, size: u64) -> u64 {
        size
    }

    fn flush_tlb(&mut self, _vcpu: u32, _scope: FlushScope, _address: u64) {}

    fn emulate(
        &mut self,
        _vcpu: u32,
        _state: &mut VcpuState,
        _request: &EmulateRequest,
        _mmu: &mut dyn EmulatorMmu,
    ) -> Emulated {
        Emulated::default()
    }

    fn bus(&mut self, _vcpu: u32, _op: &mut BusOp) -> bool {
        false
    }

    fn interrupt(&mut self, _vcpu: u32, _ack: bool) -> Option<u8> {
        None
    }

    fn nmi(&mut self, _vcpu: u32, _ack: bool) -> bool {
        false
    }

    fn init(&mut self, _vcpu: u32) -> bool {
        false
    }

    fn smi(&mut self, _vcpu: u32, _ack: bool) -> bool {
        false
    }

    fn note_at(&mut self, _vcpu: u32, _place: Place, _note: Note) {}

    fn wants(&self, _kind: NoteKind) -> bool {
        false
    }

    fn log(&mut self, _level: u32, text: &str) {
        self.log.push(text.to_owned());
    }

    fn wants_faults(&self) -> bool {
        self.moment.is_some()
    }

    fn fault_point(&mut self, _vcpu: u32, id: u32, _a: u64, _b: u64) -> Option<u64> {
        let moment = self.moment.as_mut().filter(|moment| moment.points.contains(&id))?;
        moment.left = moment.left.checked_sub(1)?;
        (moment.left == 0).then_some(1)
    }
}
