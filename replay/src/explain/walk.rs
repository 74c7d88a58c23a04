//! Page walks, level by level, with the deciding bit marked.
//!
//! Manual: Intel SDM 325384-087, volume 3A. What AMD's manual (24593 rev. 3.42) has otherwise is told where it matters.

use crate::observer::Entry;
use vmtape_arch::{
    cpuid::maxphyaddr,
    exception::PageFaultError,
    paging::{Pte, bits},
};
use vmtape_machine::MachineSpec;

/// What stands between an entry and what is to be said of it.
pub(super) const REMARK: &str = "   <-- ";
/// How the remark begins at the entry that a fault is about.
pub(super) const DECIDES: &str = "decides: ";

/// The widths by which an entry's address is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Widths {
    pub guest: u8,
    pub host: u8,
}

/// Who walks: the width that counts is his.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walker {
    Silicon,
    Kvm,
}

impl Widths {
    /// The widths of a machine's guest and host.
    pub fn of_machine(machine: &MachineSpec) -> Self {
        Self { guest: maxphyaddr(&machine.cpuid), host: machine.silicon.phys_bits }
    }

    fn of(self, walker: Walker) -> u8 {
        match walker {
            Walker::Silicon => self.host,
            Walker::Kvm => self.guest,
        }
    }
}

/// The entries of a walk, one line each. `fault`: the page fault in which it ended.
pub fn lines(
    entries: &[Entry],
    walker: Walker,
    widths: Widths,
    fault: Option<PageFaultError>,
) -> Vec<String> {
    let deciding = fault.and_then(|fault| deciding(entries, fault, widths.of(walker)));
    let decides = |n: usize| deciding.as_ref().filter(|(at, _)| *at == n).map(|(_, why)| why.as_str());
    entries.iter().enumerate().map(|(n, entry)| line(entry, walker, widths, decides(n))).collect()
}

fn line(entry: &Entry, walker: Walker, widths: Widths, decides: Option<&str>) -> String {
    let Entry { level, gpa, before, after } = *entry;
    let place = gpa.map_or(String::new(), |gpa| format!(" at {gpa:#x}"));
    let change = if before == after { String::new() } else { format!(" -> {after:#x}") };
    let mut marks: Vec<_> = decides.map(|why| format!("{DECIDES}{why}")).into_iter().collect();
    marks.extend(remarks(entry, walker, widths));
    let marks = if marks.is_empty() { String::new() } else { format!("{REMARK}{}", marks.join("; ")) };
    format!("  level {level}{place}: {before:#x}{change} [{}]{marks}", flags(after))
}

/// The set bits of an entry by the manual's letters.
fn flags(entry: u64) -> String {
    let pte = Pte::from_bits(entry);
    let named = [
        (pte.p(), "P"),
        (pte.w(), "W"),
        (pte.u(), "U"),
        (pte.a(), "A"),
        (pte.d(), "D"),
        (pte.ps(), "PS"),
        (pte.g(), "G"),
        (pte.nx(), "NX"),
    ];
    named.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect::<Vec<_>>().join(" ")
}

/// What is to be said of an entry whatever the walk's end.
fn remarks(entry: &Entry, walker: Walker, widths: Widths) -> Vec<String> {
    let (old, new) = (Pte::from_bits(entry.before), Pte::from_bits(entry.after));
    if !old.p() {
        return Vec::new();
    }
    let mut remarks = Vec::new();
    let illegal = illegal_bit(entry.before, widths.guest);
    if let (Some(bit), Walker::Silicon, true) =
        (illegal, walker, illegal_bit(entry.before, widths.host).is_none())
    {
        remarks.push(format!(
            "bit {bit} is reserved for the guest ({} bits), not for this host ({} bits)",
            widths.guest, widths.host
        ));
    }
    if !old.a() && new.a() {
        remarks.push("accessed bit set here".to_owned());
    }
    if !old.d() && new.d() {
        remarks.push("dirty bit set here".to_owned());
    }
    remarks
}

/// The entry that a page fault is about, and why. See: SDM 4.7 Page-Fault Exceptions
fn deciding(entries: &[Entry], fault: PageFaultError, width: u8) -> Option<(usize, String)> {
    let find = |why: &dyn Fn(u8, Pte) -> Option<String>| {
        let mut found = entries.iter().enumerate();
        found.find_map(|(n, entry)| why(entry.level, Pte::from_bits(entry.before)).map(|why| (n, why)))
    };
    if !fault.p() {
        return find(&|_, pte| (!pte.p()).then(|| "not present".to_owned()));
    }
    if fault.rsvd() {
        return find(&|level, pte| reserved(level, pte, width));
    }
    let missing = |pte: Pte| match () {
        () if fault.u() && !pte.u() => Some("no user may come here (U is clear)"),
        () if fault.w() && !pte.w() => Some("not writable (W is clear)"),
        () if fault.i() && pte.nx() => Some("not executable (NX is set)"),
        () => None,
    };
    let of_user = || {
        let last = entries.len().checked_sub(1)?;
        let user = entries.iter().all(|entry| Pte::from_bits(entry.before).u());
        (user && !fault.u()).then(|| (last, "a user's page (SMEP, SMAP)".to_owned()))
    };
    find(&|_, pte| missing(pte).map(str::to_owned)).or_else(of_user)
}

/// Whether an entry is malformed for a processor of this width that has pages of all sizes.
pub fn is_malformed(entry: &Entry, width: u8) -> bool {
    reserved(entry.level, Pte::from_bits(entry.before), width).is_some()
}

/// Why a present entry is malformed. See: SDM 4.5.4, Figure 4-11. Formats of CR3 and Paging-Structure Entries
fn reserved(level: u8, pte: Pte, width: u8) -> Option<String> {
    if !pte.p() {
        return None;
    }
    if let Some(bit) = illegal_bit(pte.into_bits(), width) {
        return Some(format!("bit {bit} is reserved, addresses have {width} bits"));
    }
    let low = match (level, pte.ps()) {
        (4.., true) => bits(7, 7),
        (3, true) => bits(13, 29),
        (2, true) => bits(13, 20),
        _ => 0,
    };
    let set = pte.into_bits() & low;
    (set != 0).then(|| format!("bit {} is reserved at this level", 63 - set.leading_zeros()))
}

/// The highest address bit of an entry at or above a width.
pub fn illegal_bit(entry: u64, width: u8) -> Option<u32> {
    let above = Pte::from_bits(entry).address().checked_shr(width.into()).unwrap_or(0);
    (above != 0).then(|| 63 - above.leading_zeros() + u32::from(width))
}

/// Which bits of a paging entry differ, by name; `None` if something else differs than accessed and dirty bits.
pub fn accessed_dirty_difference(expected: u64, actual: u64) -> Option<String> {
    let ad = Pte::new().with_a(true).with_d(true).into_bits();
    let difference = Pte::from_bits(expected ^ actual);
    if difference.into_bits() == 0 || difference.into_bits() & !ad != 0 || !Pte::from_bits(expected).p() {
        return None;
    }
    let word = |set: bool| if set { "set instead of clear" } else { "clear instead of set" };
    let actual = Pte::from_bits(actual);
    let mut parts = Vec::new();
    if difference.a() {
        parts.push(format!("accessed bit {}", word(actual.a())));
    }
    if difference.d() {
        parts.push(format!("dirty bit {}", word(actual.d())));
    }
    Some(parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTHS: Widths = Widths { guest: 36, host: 48 };

    fn entry(level: u8, before: u64, after: u64) -> Entry {
        Entry { level, gpa: None, before, after }
    }

    #[test]
    fn silicons_walk_remarks_what_the_guest_would_not_allow() {
        let leaf = Entry { gpa: Some(0x2100ff8), ..entry(1, 0x10_0200_0001, 0x10_0200_0021) };
        assert_eq!(
            lines(&[leaf], Walker::Silicon, WIDTHS, None),
            ["  level 1 at 0x2100ff8: 0x1002000001 -> 0x1002000021 [P A]   <-- bit 36 is reserved for the \
              guest (36 bits), not for this host (48 bits); accessed bit set here"]
        );
        let above = lines(
            &[entry(1, 1 << 51 | 1, 1 << 51 | 1)],
            Walker::Silicon,
            WIDTHS,
            Some(PageFaultError::new().with_p(true).with_rsvd(true)),
        );
        assert!(above[0].ends_with("decides: bit 51 is reserved, addresses have 48 bits"), "{above:?}");
    }

    #[test]
    fn the_entry_that_a_fault_is_about_is_marked() {
        let table = entry(2, 0x2103027, 0x2103027);
        let marked = |leaf: u64, fault: PageFaultError| {
            let lines = lines(&[table, entry(1, leaf, leaf)], Walker::Kvm, WIDTHS, Some(fault));
            let at = lines.iter().position(|line| line.contains("decides")).unwrap();
            (at, lines[at].split_once("decides: ").unwrap().1.to_owned())
        };
        let present = PageFaultError::new().with_p(true);
        assert_eq!(marked(0, PageFaultError::new()), (1, "not present".into()));
        assert_eq!(
            marked(0x10_0200_0001, present.with_rsvd(true)),
            (1, "bit 36 is reserved, addresses have 36 bits".into())
        );
        assert_eq!(marked(0x2000001, present.with_w(true)).1, "not writable (W is clear)");
        assert_eq!(marked(0x2000003, present.with_u(true)).1, "no user may come here (U is clear)");
        assert_eq!(marked(1 << 63 | 0x2000001, present.with_i(true)).1, "not executable (NX is set)");
        assert_eq!(marked(0x2000005, present).1, "a user's page (SMEP, SMAP)");
    }

    #[test]
    fn large_pages_have_reserved_bits_of_their_own() {
        let page = entry(2, 0x2081, 0x2081);
        let fault = PageFaultError::new().with_p(true).with_rsvd(true);
        let lines = lines(&[page], Walker::Silicon, WIDTHS, Some(fault));
        assert!(lines[0].contains("decides: bit 13 is reserved at this level"), "{lines:?}");
    }

    #[test]
    fn accessed_bits_alone_are_recognized() {
        assert_eq!(
            accessed_dirty_difference(0x10_0200_0001, 0x10_0200_0021).as_deref(),
            Some("accessed bit set instead of clear")
        );
        assert_eq!(accessed_dirty_difference(0x1001, 0x2021), None);
        assert_eq!(accessed_dirty_difference(0x1000, 0x1020), None);
    }
}
