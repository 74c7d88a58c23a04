//! KVM's own tables as silicon's walks see them: EPT, NPT and shadow entries, and what may go wrong with one.

use crate::{fault_points::FaultPoint, pages::Pages};
use vmtape_abi::Host;

/// The fault points of a kind of table. The accessed and dirty bits of shadow entries are nobody's business.
pub(crate) struct Points {
    flip: FaultPoint,
    accessed: Option<FaultPoint>,
    dirty: Option<FaultPoint>,
}

/// Those of EPT and NPT.
pub(crate) static NESTED_POINTS: Points = Points {
    flip: FaultPoint::NESTED_ENTRY_FLIP,
    accessed: Some(FaultPoint::NESTED_LOST_ACCESSED),
    dirty: Some(FaultPoint::NESTED_LOST_DIRTY),
};
/// Those of shadow paging.
pub(crate) static SHADOW_POINTS: Points =
    Points { flip: FaultPoint::SHADOW_ENTRY_FLIP, accessed: None, dirty: None };

/// The tables during the translation of one address.
pub(crate) struct PrivateTables<'a> {
    pub pages: &'a mut Pages,
    vcpu: u32,
    address: u64,
    /// Whom to ask for faults, in runs that have them.
    pub faults: Option<(&'a mut dyn Host, &'static Points)>,
}

impl<'a> PrivateTables<'a> {
    pub fn new(pages: &'a mut Pages, vcpu: u32, address: u64) -> Self {
        Self { pages, vcpu, address, faults: None }
    }

    /// An entry as silicon reads it.
    pub fn entry(&mut self, address: u64) -> u64 {
        let entry = self.stored(address);
        entry ^ self.ask(|points| Some(points.flip), entry).unwrap_or(0)
    }

    /// The update that sets an entry's accessed bit is lost.
    pub fn loses_accessed(&mut self, entry: u64) -> bool {
        self.ask(|points| points.accessed, entry).is_some()
    }

    /// The update that sets an entry's dirty bit is lost.
    pub fn loses_dirty(&mut self, entry: u64) -> bool {
        self.ask(|points| points.dirty, entry).is_some()
    }

    /// An entry as it stands. A bent one above it leads to whatever memory there is; where there is none, nobody drives the bus low.
    pub fn stored(&mut self, address: u64) -> u64 {
        match &mut self.faults {
            Some((host, _)) if !self.pages.spans(address) => host.read_u64(address).unwrap_or(u64::MAX),
            _ => self.pages.read(address),
        }
    }

    pub fn set(&mut self, address: u64, entry: u64) {
        match &mut self.faults {
            Some((host, _)) if !self.pages.spans(address) => {
                // Where no memory is, the update goes nowhere.
                let _ = host.write(address, &entry.to_le_bytes());
            }
            _ => self.pages.write(address, entry),
        }
    }

    fn ask(&mut self, point: fn(&Points) -> Option<FaultPoint>, entry: u64) -> Option<u64> {
        let (host, points) = self.faults.as_mut()?;
        point(points)?.ask(self.vcpu, self.address, entry, &mut **host)
    }
}
