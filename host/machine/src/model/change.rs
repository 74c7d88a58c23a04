//! Changes to a CPUID table, in words: what a VMM passes to KVM_SET_CPUID2 instead of what it passed before.

use super::features::{Feature, named};
use std::str::FromStr;
use vmtape_arch::cpuid::{CPUID_FLAG_SIGNIFICANT_INDEX as INDEXED, CpuidEntry, find};

/// A change to a table.
///
/// Words, separated by commas: `same`; `phys-bits=N`, `virt-bits=N`, `guest-phys-bits=N` (leaf 0x80000008); `+FEATURE`,
/// `-FEATURE`, `FEATURE=on|off`; `LEAF[.SUBLEAF].REGISTER=VALUE`, as in `0x80000008.eax=0x3024`; `reorder`: the first two
/// entries change places; `nent=N`: cut, or filled up with entries of leaves that nobody asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CpuidChange(Vec<Change>);

#[derive(Clone, Debug, PartialEq)]
enum Change {
    /// Bits of leaf 0x80000008 EAX from this one on.
    Width {
        shift: u32,
        bits: u8,
    },
    Feature(&'static Feature, bool),
    Register {
        leaf: u32,
        subleaf: u32,
        register: usize,
        value: u32,
    },
    Reorder,
    Entries(usize),
}

/// See: SDM vol. 2A CPUID, Linear/Physical Address size; APM vol. 3 E.4.7 Function 8000_0008h
const ADDRESS_SIZES: u32 = 0x8000_0008;
/// Leaves that no software asks for fill up a table.
const FILLER: u32 = 0x7000_0000;
/// Far above KVM_MAX_CPUID_ENTRIES (256), and small enough for a tape.
const MOST_ENTRIES: usize = 4096;
const REGISTERS: [&str; 4] = ["eax", "ebx", "ecx", "edx"];

impl FromStr for CpuidChange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words = text.split(',').filter(|word| *word != "same");
        Ok(Self(words.map(change).collect::<Result<_, _>>()?))
    }
}

fn change(word: &str) -> Result<Change, String> {
    if let Some(name) = word.strip_prefix('+') {
        return Ok(Change::Feature(named(name)?, true));
    }
    if let Some(name) = word.strip_prefix('-') {
        return Ok(Change::Feature(named(name)?, false));
    }
    let Some((key, value)) = word.split_once('=') else {
        return match word {
            "reorder" => Ok(Change::Reorder),
            _ => Err(format!("`{word}` is no change to a CPUID table")),
        };
    };
    let width = |shift| match value.parse() {
        Ok(bits) => Ok(Change::Width { shift, bits }),
        Err(_) => Err(format!("{word}: `{value}` is not a width")),
    };
    match key {
        "phys-bits" => width(0),
        "virt-bits" => width(8),
        "guest-phys-bits" => width(16),
        "nent" => match value.parse() {
            Ok(count) if count <= MOST_ENTRIES => Ok(Change::Entries(count)),
            _ => Err(format!("{word}: a number of entries up to {MOST_ENTRIES} is needed")),
        },
        _ if key.contains('.') => register(key, value),
        _ => {
            let feature = named(key)?;
            match value {
                "on" => Ok(Change::Feature(feature, true)),
                "off" => Ok(Change::Feature(feature, false)),
                _ => Err(format!("{word}: `{value}` is neither on nor off")),
            }
        }
    }
}

/// `LEAF[.SUBLEAF].REGISTER`.
fn register(key: &str, value: &str) -> Result<Change, String> {
    let number = |text: &str| {
        let parsed = match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        parsed.map_err(|_| format!("{key}={value}: `{text}` is not a number of 32 bits"))
    };
    let (place, name) = key.rsplit_once('.').unwrap_or((key, ""));
    let register = REGISTERS.iter().position(|register| *register == name);
    let register = register.ok_or_else(|| format!("{key}: `{name}` is none of eax, ebx, ecx, edx"))?;
    let (leaf, subleaf) = place.split_once('.').unwrap_or((place, "0"));
    Ok(Change::Register { leaf: number(leaf)?, subleaf: number(subleaf)?, register, value: number(value)? })
}

impl CpuidChange {
    /// The changed table.
    pub fn apply(&self, table: &[CpuidEntry]) -> Vec<CpuidEntry> {
        let mut table = table.to_vec();
        self.0.iter().for_each(|change| change.apply(&mut table));
        table
    }

    /// The guest's MAXPHYADDR that the change asks for, if it does.
    pub fn phys_bits(&self) -> Option<u8> {
        self.0.iter().rev().find_map(|change| match change {
            Change::Width { shift: 0, bits } => Some(*bits),
            _ => None,
        })
    }
}

impl Change {
    fn apply(&self, table: &mut Vec<CpuidEntry>) {
        match *self {
            Self::Width { shift, bits } => {
                let eax = &mut entry(table, ADDRESS_SIZES, 0).eax;
                *eax = *eax & !(0xff << shift) | u32::from(bits) << shift;
            }
            Self::Feature(feature, on) if on || find(table, feature.leaf, feature.subleaf).is_some() => {
                feature.set(entry(table, feature.leaf, feature.subleaf), on);
            }
            Self::Feature(..) => {}
            Self::Register { leaf, subleaf, register, value } => {
                let entry = entry(table, leaf, subleaf);
                *[&mut entry.eax, &mut entry.ebx, &mut entry.ecx, &mut entry.edx][register] = value;
            }
            Self::Reorder if table.len() > 1 => table.swap(0, 1),
            Self::Reorder => {}
            Self::Entries(count) => {
                let filler = |n: usize| CpuidEntry { function: FILLER + n as u32, ..Default::default() };
                table.extend((table.len()..count).map(filler));
                table.truncate(count);
            }
        }
    }
}

/// The entry of a leaf; a table without it gets one.
fn entry(table: &mut Vec<CpuidEntry>, function: u32, index: u32) -> &mut CpuidEntry {
    let fits = |e: &CpuidEntry| e.function == function && (e.flags & INDEXED == 0 || e.index == index);
    let at = table.iter().position(fits).unwrap_or_else(|| {
        let flags = if index == 0 { 0 } else { INDEXED };
        table.push(CpuidEntry { function, index, flags, ..Default::default() });
        table.len() - 1
    });
    &mut table[at]
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtape_arch::cpuid::maxphyaddr;

    fn table() -> Vec<CpuidEntry> {
        let plain = |function, eax| CpuidEntry { function, eax, ..Default::default() };
        vec![plain(0, 0xd), plain(1, 0), plain(0x8000_0000, ADDRESS_SIZES), plain(ADDRESS_SIZES, 0x302e)]
    }

    fn changed(text: &str) -> Vec<CpuidEntry> {
        text.parse::<CpuidChange>().unwrap().apply(&table())
    }

    #[test]
    fn widths_and_features() {
        let changed = changed("phys-bits=36,guest-phys-bits=40,-pdpe1gb,+pni");
        assert_eq!(maxphyaddr(&changed), 36);
        assert_eq!(find(&changed, ADDRESS_SIZES, 0).unwrap().eax, 0x28_3024);
        assert_eq!(find(&changed, 1, 0).unwrap().ecx, 1);
        assert_eq!("phys-bits=36".parse::<CpuidChange>().unwrap().phys_bits(), Some(36));
    }

    #[test]
    fn tables_as_kvm_refuses_them() {
        assert_eq!(changed("same"), table());
        assert_eq!(changed("nent=257").len(), 257);
        assert_eq!(changed("nent=1").len(), 1);
        assert_eq!(changed("virt-bits=52")[3].eax, 0x342e);
        let reordered = changed("reorder");
        assert_eq!((reordered[0].function, reordered[1].function), (1, 0));
        assert_eq!(changed("7.0.ebx=0x80")[4].ebx, 0x80);
        assert_eq!(changed("0x80000008.eax=5")[3].eax, 5);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", "phys-bits", "phys-bits=x", "+magic", "7.0.efx=1", "7.x.ebx=1", "nent=99999", "pni=3"]
        {
            assert!(text.parse::<CpuidChange>().is_err(), "{text}");
        }
    }
}
