//! Two CPUID tables, held against each other in the parts that mean something by themselves.

use vmtape_arch::cpuid::CpuidEntry;
use vmtape_machine::model::{FEATURES, Register};

/// The leaf with the address widths.
const WIDTHS: u32 = 0x8000_0008;

/// The smallest part of a CPUID table that can differ by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Bits of a register: a feature, an address width, or a register that is one number.
    Bits { function: u32, index: u32, register: Register, mask: u32, value: u32 },
    /// A whole entry, which only one of the tables has.
    Entry { function: u32, index: u32, entry: Option<CpuidEntry> },
}

impl Change {
    /// The changes that make one table of another.
    pub fn between(from: &[CpuidEntry], to: &[CpuidEntry]) -> Vec<Self> {
        let key = |entry: &CpuidEntry| (entry.function, entry.index);
        let mut keys: Vec<_> = from.iter().chain(to).map(key).collect();
        keys.sort_unstable();
        keys.dedup();
        let entry = |table: &[CpuidEntry], wanted| table.iter().find(|entry| key(entry) == wanted).copied();
        keys.into_iter()
            .flat_map(|(function, index)| {
                match (entry(from, (function, index)), entry(to, (function, index))) {
                    (Some(a), Some(b)) => Self::of_entries(&a, &b),
                    (_, entry) => vec![Self::Entry { function, index, entry }],
                }
            })
            .collect()
    }

    fn of_entries(a: &CpuidEntry, b: &CpuidEntry) -> Vec<Self> {
        let (function, index) = (a.function, a.index);
        let registers = [Register::Eax, Register::Ebx, Register::Ecx, Register::Edx];
        let changes = registers.into_iter().flat_map(|register| {
            let (old, new) = (*at(&mut a.clone(), register), *at(&mut b.clone(), register));
            units(function, index, register)
                .into_iter()
                .filter(move |mask| (old ^ new) & mask != 0)
                .map(move |mask| Self::Bits { function, index, register, mask, value: new & mask })
        });
        changes.collect()
    }

    /// Another MAXPHYADDR.
    pub fn width(width: u8) -> Self {
        let (register, mask) = (Register::Eax, 0xff);
        Self::Bits { function: WIDTHS, index: 0, register, mask, value: width.into() }
    }

    pub fn apply(&self, table: &mut Vec<CpuidEntry>) {
        match self {
            Self::Bits { function, index, register, mask, value } => {
                let found = table.iter_mut().find(|e| (e.function, e.index) == (*function, *index));
                if let Some(entry) = found {
                    let bits = at(entry, *register);
                    *bits = *bits & !mask | value;
                }
            }
            Self::Entry { function, index, entry } => {
                table.retain(|entry| (entry.function, entry.index) != (*function, *index));
                table.extend(entry);
                table.sort_by_key(|entry| (entry.function, entry.index));
            }
        }
    }

    /// Whether two changes are of the same bits.
    pub fn same_place(&self, other: &Self) -> bool {
        self.place() == other.place()
    }

    fn place(&self) -> (u32, u32, Option<Register>, u32) {
        match *self {
            Self::Bits { function, index, register, mask, .. } => (function, index, Some(register), mask),
            Self::Entry { function, index, .. } => (function, index, None, 0),
        }
    }

    /// The leaf, the register and the bits that change, and in brackets what they change to, by name where they have one.
    pub fn long_text(&self) -> String {
        let (function, index, register, mask) = self.place();
        let leaf = leaf(function, index);
        let Some(register) = register else {
            let absent = matches!(self, Self::Entry { entry: None, .. });
            return format!("{leaf} ({})", if absent { "absent" } else { "added" });
        };
        let place = format!("{leaf} {}", format!("{register:?}").to_uppercase());
        let (low, high) = (mask.trailing_zeros(), u32::BITS - 1 - mask.leading_zeros());
        match (mask, self.text()) {
            (u32::MAX, _) => {
                let Self::Bits { value, .. } = self else { return place };
                format!("{place} ({value:#x})")
            }
            (_, unnamed) if unnamed.contains('(') => {
                format!("{place} bit {low} ({})", if unnamed.starts_with('+') { "set" } else { "clear" })
            }
            (_, named) if low == high => format!("{place} bit {low} ({named})"),
            (_, named) => format!("{place} bits {high}:{low} ({named})"),
        }
    }

    /// The change in the words of a CPU model, where it has some.
    pub fn text(&self) -> String {
        match *self {
            Self::Bits { function: WIDTHS, register: Register::Eax, mask, value, .. } => match mask {
                0xff => format!("phys-bits={value}"),
                0xff00 => format!("linear-bits={}", value >> 8),
                _ => format!("guest-phys-bits={}", value >> 16),
            },
            Self::Bits { function, index, register, mask, value } if mask.is_power_of_two() => {
                let named = FEATURES.iter().find(|feature| {
                    (feature.leaf, feature.subleaf, feature.register) == (function, index, register)
                        && mask == 1 << feature.bit
                });
                let sign = if value != 0 { '+' } else { '-' };
                match named {
                    Some(feature) => format!("{sign}{}", feature.name),
                    None => format!("{sign}({} {register:?} bit {})", leaf(function, index), mask.ilog2()),
                }
            }
            Self::Bits { function, index, register, value, .. } => {
                format!("({} {register:?} {value:#x})", leaf(function, index))
            }
            Self::Entry { function, index, entry: Some(_) } => format!("+({})", leaf(function, index)),
            Self::Entry { function, index, entry: None } => format!("-({})", leaf(function, index)),
        }
    }
}

fn leaf(function: u32, index: u32) -> String {
    match index {
        0 => format!("leaf {function:#x}"),
        index => format!("leaf {function:#x}.{index}"),
    }
}

/// The parts of a register that mean something by themselves, as masks.
fn units(function: u32, index: u32, register: Register) -> Vec<u32> {
    use Register::{Eax, Ebx, Ecx, Edx};
    if (function, register) == (WIDTHS, Eax) {
        return vec![0xff, 0xff00, 0xff_0000];
    }
    // See: SDM vol. 2A CPUID and APM vol. 3 appendix E for the registers that hold nothing but features
    let features = matches!(
        (function, index, register),
        (1, _, Ecx | Edx)
            | (7, 0, Ebx | Ecx | Edx)
            | (7, 1.., _)
            | (0xd, 1, Eax)
            | (0x8000_0001, _, Ecx | Edx)
            | (0x8000_0007, _, Edx)
            | (WIDTHS, _, Ebx)
            | (0x8000_000a, _, Edx)
            | (0x4000_0001, _, Eax)
    );
    if features { (0..u32::BITS).map(|bit| 1 << bit).collect() } else { vec![u32::MAX] }
}

fn at(entry: &mut CpuidEntry, register: Register) -> &mut u32 {
    match register {
        Register::Eax => &mut entry.eax,
        Register::Ebx => &mut entry.ebx,
        Register::Ecx => &mut entry.ecx,
        Register::Edx => &mut entry.edx,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtape_machine::{
        hosts,
        model::{CpuOption, silicon_cpuid},
    };

    fn table(model: &str) -> Vec<CpuidEntry> {
        let silicon = hosts::find("intel-52").expect("named");
        CpuOption::parse(model).expect(model).cpuid(&silicon, &silicon_cpuid(&silicon))
    }

    fn text(from: &str, to: &str) -> Vec<String> {
        Change::between(&table(from), &table(to)).iter().map(Change::text).collect()
    }

    #[test]
    fn changes_are_told_in_the_words_of_a_model() {
        assert_eq!(text("max,phys-bits=46", "max,-umip,phys-bits=36"), ["-umip", "phys-bits=36"]);
        // PKRU is a state component of XSAVE too.
        assert!(text("max", "max,-pku").contains(&"-(leaf 0xd.9)".to_owned()));
        assert_eq!(text("max,-smep", "max"), ["+smep"]);
        assert_eq!(text("max", "max"), [""; 0]);
    }

    #[test]
    fn changes_are_told_with_leaf_register_and_bits() {
        let long = |from: &str, to: &str| -> Vec<String> {
            Change::between(&table(from), &table(to)).iter().map(Change::long_text).collect()
        };
        assert_eq!(
            long("max,phys-bits=46", "max,-umip,phys-bits=36"),
            ["leaf 0x7 ECX bit 2 (-umip)", "leaf 0x80000008 EAX bits 7:0 (phys-bits=36)"]
        );
        let without = long("max", "max,-pku");
        assert!(without.contains(&"leaf 0xd.9 (absent)".to_owned()), "{without:?}");
        let vendor = long("max", "max,vendor=AuthenticAMD");
        assert!(vendor.contains(&"leaf 0x0 EBX (0x68747541)".to_owned()), "{vendor:?}");
    }

    /// Whatever two tables differ in, the changes between them make one of the other.
    #[test]
    fn all_changes_together_give_the_other_table() {
        for (from, to) in
            [("max", "qemu64"), ("Icelake-Server,phys-bits=46", "EPYC"), ("IvyBridge", "max,+vmx")]
        {
            let (from, to) = (table(from), table(to));
            let mut changed = from.clone();
            for change in Change::between(&from, &to) {
                change.apply(&mut changed);
            }
            let key = |entry: &CpuidEntry| (entry.function, entry.index);
            let (mut changed, mut to) = (changed, to);
            changed.sort_by_key(key);
            to.sort_by_key(key);
            let plain = |table: &[CpuidEntry]| -> Vec<[u32; 6]> {
                table.iter().map(|e| [e.function, e.index, e.eax, e.ebx, e.ecx, e.edx]).collect()
            };
            assert_eq!(plain(&changed), plain(&to));
        }
    }
}
