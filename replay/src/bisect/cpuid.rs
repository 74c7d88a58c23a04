//! Axis `cpuid`: the smallest set of CPUID changes that makes the verdict flip, by delta debugging.

use super::{
    Bench, Finding, Pair,
    search::{Mark, minimize},
};
use crate::{Error, bisect::trial, spec};
use vmtape_arch::cpuid::CpuidEntry;
use vmtape_machine::{
    MachineSpec,
    model::{FEATURES, Register},
};

const AXIS: &str = "cpuid";
/// The leaf with the address widths.
const WIDTHS: u32 = 0x8000_0008;

/// What to search.
pub struct Request {
    /// The machine that is tried; its CPUID is replaced.
    pub machine: MachineSpec,
    /// The CPUID with all changes, and the one without any.
    pub to: Vec<CpuidEntry>,
    pub from: Vec<CpuidEntry>,
    /// The CPU model of `from`, as `--cpu` spells it.
    pub model: String,
    /// The tape's own machine gets the same CPUID in each trial, and the two are compared: which part of the CPUID does
    /// the divergence need? Otherwise the tried machine alone gets it.
    pub both: bool,
}

/// The smallest part of a CPUID table that can differ by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Bits of a register: a feature, an address width, or a register that is one number.
    Bits { function: u32, index: u32, register: Register, mask: u32, value: u32 },
    /// A whole entry, which only one of the tables has.
    Entry { function: u32, index: u32, entry: Option<CpuidEntry> },
}

pub fn bisect(bench: &mut Bench, request: &Request) -> Result<Finding, Error> {
    let changes = Change::between(&request.from, &request.to);
    if changes.is_empty() {
        return Ok(bench.nothing(AXIS, "the CPU model is the tape's: no CPUID change could flip the verdict"));
    }
    let text = |set: &[usize]| match set {
        [] => "no change".to_owned(),
        set => set.iter().map(|n| changes[*n].text()).collect::<Vec<_>>().join(","),
    };
    let test = |bench: &mut Bench, set: &[usize]| {
        let what = if set.len() == changes.len() { format!("all {} changes", set.len()) } else { text(set) };
        request.test(bench, &what, set.iter().map(|n| &changes[*n]))
    };
    let all: Vec<usize> = (0..changes.len()).collect();
    if test(bench, &all)? != Mark::Bad {
        return Ok(bench.nothing(AXIS, "all CPUID changes together do not flip the verdict"));
    }
    if test(bench, &[])? == Mark::Bad {
        let mut finding = bench.found(AXIS, "first bad: whatever the CPUID says", "")?;
        finding.notes.push("no CPUID change is needed for it".into());
        return Ok(finding);
    }
    let set = minimize(changes.len(), |set| Ok(test(bench, set)? == Mark::Bad))?;
    let mut finding = bench.found(AXIS, format!("first bad: {}", text(&set)), "")?;
    let set: Vec<&Change> = set.iter().map(|n| &changes[*n]).collect();
    finding.reproduce = reproduce(bench, &request.model, &set, request.both)?;
    finding.notes.push(format!(
        "the smallest set out of {} changes: without any one of it the verdict is good",
        changes.len()
    ));
    Ok(finding)
}

/// The command that runs the tape's guest with changes to its CPUID, and compares (`both`) as the bisection did. Empty:
/// no command line says these changes.
pub(super) fn reproduce(
    bench: &Bench,
    model: &str,
    changes: &[&Change],
    both: bool,
) -> Result<String, Error> {
    let words: Vec<String> = changes.iter().map(|change| change.text()).collect();
    if words.iter().any(|word| word.contains('(') || word.starts_with("linear-bits")) {
        return Ok(String::new());
    }
    let cpu = std::iter::once(model.to_owned()).chain(words).collect::<Vec<_>>().join(",");
    let machine = bench.machine_options()?;
    let guest = &bench.machine.image.name;
    Ok(match both {
        false => format!("vmtape run {machine} --cpu {cpu} {guest}"),
        true => {
            let (_, elsewhere) = bench.command.split_once(bench.tape.name()).unwrap_or_default();
            format!(
                "vmtape record -o other.tape {machine} --cpu {cpu} {guest} && vmtape replay other.tape{elsewhere}"
            )
        }
    })
}

impl Request {
    fn test<'c>(
        &self,
        bench: &mut Bench,
        what: &str,
        changes: impl Iterator<Item = &'c Change>,
    ) -> Result<Mark, Error> {
        let mut cpuid = self.from.clone();
        changes.for_each(|change| change.apply(&mut cpuid));
        let actual = MachineSpec { cpuid: cpuid.clone(), ..self.machine.clone() };
        let mut pair = Pair { tape: None, expected: bench.machine.clone(), actual };
        if self.both {
            pair.expected.cpuid = cpuid;
            match spec::record(&pair.expected, bench.tape, &trial::budget(bench.tape)?, bench.create) {
                Ok(tape) => pair.tape = Some(tape),
                Err(error) => return bench.unable(what, error),
            }
        }
        bench.test_pair(what, pair, bench.create)
    }
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

    /// The change in the words of a CPU model, where it has some.
    pub fn text(&self) -> String {
        let leaf = |function: u32, index: u32| match index {
            0 => format!("leaf {function:#x}"),
            index => format!("leaf {function:#x}.{index}"),
        };
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
