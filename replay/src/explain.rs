//! Page walks, level by level, with the deciding bit marked.

use vmtape_arch::{note::Note, paging::Pte};
use vmtape_traces::ExitGroup;

/// The widths by which an entry's address is judged.
#[derive(Clone, Copy, Debug)]
pub struct Widths {
    pub guest: u8,
    pub host: u8,
}

/// The walk of the silicon in a group, one line per entry; empty if the group has none.
pub fn silicon_walk(group: &ExitGroup, widths: Widths) -> Vec<String> {
    group
        .notes
        .iter()
        .filter_map(|note| match *note {
            Note::SiliconStep { gpa, before, after, level } => {
                Some(step(level, Some(gpa), before, after, widths))
            }
            _ => None,
        })
        .collect()
}

/// The walks of KVM's software walker in a group: each with its address, entries and result.
pub fn kvm_walk(group: &ExitGroup, widths: Widths) -> Vec<String> {
    let mut lines = Vec::new();
    for note in &group.notes {
        match *note {
            Note::PagetableWalk { address, pferr } => {
                lines.push(format!("KVM walks the guest's tables for {address:#x}, access {pferr:#x}"));
            }
            Note::PagingElement { pte, level } => lines.push(step(level, None, pte, pte, widths)),
            Note::WalkerError { pferr } => lines.push(format!("  the walk fails: #PF error code {pferr:#x}")),
            _ => {}
        }
    }
    lines
}

/// One entry of a walk.
fn step(level: u8, gpa: Option<u64>, before: u64, after: u64, widths: Widths) -> String {
    let place = gpa.map_or(String::new(), |gpa| format!(" at {gpa:#x}"));
    let change = if before == after { String::new() } else { format!(" -> {after:#x}") };
    let marks = marks(before, after, widths);
    let marks = if marks.is_empty() { String::new() } else { format!("   <-- {}", marks.join(", ")) };
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

/// What decides the outcome in this entry.
fn marks(before: u64, after: u64, widths: Widths) -> Vec<String> {
    let (old, new) = (Pte::from_bits(before), Pte::from_bits(after));
    let mut marks = Vec::new();
    if !old.p() {
        marks.push("not present".to_owned());
        return marks;
    }
    if let Some(bit) = highest_at_or_above(old.address(), widths.host) {
        marks.push(format!("bit {bit} is reserved on this host ({} bits)", widths.host));
    } else if let Some(bit) = highest_at_or_above(old.address(), widths.guest) {
        marks.push(format!(
            "bit {bit} is reserved for the guest ({} bits), not for this host ({} bits)",
            widths.guest, widths.host
        ));
    }
    if !old.a() && new.a() {
        marks.push("accessed bit set here".to_owned());
    }
    if !old.d() && new.d() {
        marks.push("dirty bit set here".to_owned());
    }
    marks
}

fn highest_at_or_above(address: u64, width: u8) -> Option<u32> {
    let above = address.checked_shr(width.into()).unwrap_or(0);
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

    #[test]
    fn the_deciding_bits_are_marked() {
        assert_eq!(
            step(1, Some(0x2100ff8), 0x10_0200_0001, 0x10_0200_0021, WIDTHS),
            "  level 1 at 0x2100ff8: 0x1002000001 -> 0x1002000021 [P A]   <-- bit 36 is reserved for the guest \
             (36 bits), not for this host (48 bits), accessed bit set here"
        );
        assert_eq!(step(2, None, 0, 0, WIDTHS), "  level 2: 0x0 []   <-- not present");
        assert!(step(1, None, 1 << 51 | 1, 1 << 51 | 1, WIDTHS).contains("reserved on this host"));
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
