//! Options for what the VMM does beside running the guest: one per ioctl, each as often as needed.

use crate::output::usage;
use anyhow::Result;
use clap::Args;
use vmtape_abi::Query;
use vmtape_machine::{
    CpuidChange,
    vmm::{Action, Step, When},
};

/// Ioctls of the VMM.
#[derive(Clone, Debug, Default, Args)]
#[command(
    next_help_heading = "Ioctls of the VMM (WHEN: start, exit=N or insn=N; at one moment in the order of this list)"
)]
pub struct ScriptArgs {
    /// KVM_SET_USER_MEMORY_REGION: gpa=A,size=S[,slot=N,flags=F,WHEN]; size=0 deletes the slot
    #[arg(long, value_name = "REGION")]
    memory_region: Vec<String>,

    /// KVM_SET_MSRS: INDEX=VALUE[,vcpu=N,WHEN]
    #[arg(long, value_name = "MSR")]
    set_msr: Vec<String>,

    /// KVM_SET_CPUID2 with the table as it was but for CHANGE[,vcpu=N,WHEN]: same, phys-bits=36, virt-bits=57, +FEATURE,
    /// -FEATURE, 0x80000008.eax=VALUE, reorder, nent=257
    #[arg(long, value_name = "CHANGE", allow_hyphen_values = true)]
    set_cpuid: Vec<String>,

    #[arg(
        long,
        value_name = "CAP",
        help = "KVM_CHECK_EXTENSION: NUMBER[,WHEN]; `vmtape backends` has the numbers"
    )]
    check_extension: Vec<String>,

    /// KVM_GET_CPUID2: WHEN[,vcpu=N]
    #[arg(long, value_name = "WHEN")]
    get_cpuid: Vec<String>,

    /// KVM_GET_SUPPORTED_CPUID: WHEN
    #[arg(long, value_name = "WHEN")]
    get_supported_cpuid: Vec<String>,

    /// KVM_GET_MSRS: INDEX[,vcpu=N,WHEN]
    #[arg(long, value_name = "MSR")]
    get_msr: Vec<String>,

    /// A value that no ioctl shows: ept-vpid-cap, max-usable-gpa, eptp, shadow-pages, gfn-track-bytes, last-vmentry-cpu
    /// [,vcpu=N,WHEN]
    #[arg(long, value_name = "NAME")]
    query: Vec<String>,
}

impl ScriptArgs {
    /// The script. The machine has slots of its own up to `own_slots`.
    pub fn steps(&self, own_slots: u32) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        let mut next_slot = own_slots;
        let mut add =
            |option: &str, texts: &[String], parse: &mut dyn FnMut(&mut Words) -> Result<Action, String>| {
                for text in texts {
                    let step = Words::new(text).and_then(|mut words| {
                        let action = parse(&mut words)?;
                        words.done(action)
                    });
                    steps.push(step.map_err(|cause| usage(format!("--{option} {text}: {cause}")))?);
                }
                Ok::<_, anyhow::Error>(())
            };
        add("memory-region", &self.memory_region, &mut |words| memory_region(words, &mut next_slot))?;
        add("set-msr", &self.set_msr, &mut set_msr)?;
        add("set-cpuid", &self.set_cpuid, &mut set_cpuid)?;
        add("check-extension", &self.check_extension, &mut |words| {
            Ok(Action::CheckExtension { cap: words.number_alone()? })
        })?;
        add("get-cpuid", &self.get_cpuid, &mut |words| Ok(Action::GetCpuid { vcpu: words.vcpu()? }))?;
        add("get-supported-cpuid", &self.get_supported_cpuid, &mut |_| Ok(Action::GetSupportedCpuid))?;
        add("get-msr", &self.get_msr, &mut |words| {
            Ok(Action::GetMsr { vcpu: words.vcpu()?, index: words.number_alone()? })
        })?;
        add("query", &self.query, &mut |words| {
            let vcpu = words.vcpu()?;
            Ok(Action::Query { vcpu, query: query(words.rest.pop().unwrap_or_default())? })
        })?;
        Ok(steps)
    }
}

/// The guest width that a step asks for.
pub fn asked_width(step: &Step) -> Option<u8> {
    match &step.action {
        Action::SetCpuid { change, .. } => change.parse::<CpuidChange>().ok()?.phys_bits(),
        _ => None,
    }
}

fn memory_region(words: &mut Words, next_slot: &mut u32) -> Result<Action, String> {
    let slot = match words.value("slot") {
        Some(slot) => number(slot)?,
        None => {
            *next_slot += 1;
            *next_slot - 1
        }
    };
    let gpa = words.value("gpa").map(size_in_bytes).transpose()?.unwrap_or(0);
    let size = words.value("size").ok_or("size=S is needed")?;
    let flags = words.value("flags").map(number).transpose()?.unwrap_or(0);
    Ok(Action::SetMemoryRegion { slot, gpa, size: size_in_bytes(size)?, flags })
}

fn set_msr(words: &mut Words) -> Result<Action, String> {
    let vcpu = words.vcpu()?;
    let word = words.rest.pop().ok_or("INDEX=VALUE is needed")?;
    let (index, data) = word.split_once('=').ok_or_else(|| format!("`{word}` is not INDEX=VALUE"))?;
    Ok(Action::SetMsr { vcpu, index: number(index)?, data: number(data)? })
}

fn set_cpuid(words: &mut Words) -> Result<Action, String> {
    let vcpu = words.vcpu()?;
    let change = std::mem::take(&mut words.rest).join(",");
    if change.is_empty() {
        return Err("a change is needed: same, phys-bits=36, +FEATURE, 0x80000008.eax=VALUE, ...".into());
    }
    change.parse::<CpuidChange>()?;
    Ok(Action::SetCpuid { vcpu, change })
}

fn query(name: &str) -> Result<u32, String> {
    let query = Query::from_name(name);
    query
        .map(|query| query.0)
        .ok_or_else(|| format!("`{name}` is nothing that can be asked for (see --help)"))
}

/// The words of one option, less those that every option has.
struct Words<'a> {
    at: When,
    rest: Vec<&'a str>,
}

impl<'a> Words<'a> {
    fn new(text: &'a str) -> Result<Self, String> {
        let is_moment =
            |word: &&str| *word == "start" || word.starts_with("exit=") || word.starts_with("insn=");
        let (moments, rest): (Vec<_>, Vec<_>) = text.split(',').partition(is_moment);
        match moments[..] {
            [] => Ok(Self { at: When::Start, rest }),
            [moment] => Ok(Self { at: moment.parse()?, rest }),
            [first, second, ..] => Err(format!("both `{first}` and `{second}`: one moment is needed")),
        }
    }

    /// Takes the value of `key=VALUE`.
    fn value(&mut self, key: &str) -> Option<&'a str> {
        let value = |word: &&'a str| word.split_once('=').filter(|(k, _)| *k == key).map(|(_, value)| value);
        let at = self.rest.iter().position(|word| value(word).is_some())?;
        value(&self.rest.remove(at))
    }

    fn vcpu(&mut self) -> Result<u32, String> {
        self.value("vcpu").map_or(Ok(0), number)
    }

    /// Takes a word that is a number.
    fn number_alone(&mut self) -> Result<u32, String> {
        number(self.rest.pop().ok_or("a number is needed")?)
    }

    /// The step, if every word had its use.
    fn done(self, action: Action) -> Result<Step, String> {
        match self.rest.first() {
            Some(word) => Err(format!("`{word}` means nothing here")),
            None => Ok(Step { at: self.at, action }),
        }
    }
}

/// A number in C's decimal or hexadecimal spelling.
fn number<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let number = parsed.ok().and_then(|number| number.try_into().ok());
    number.ok_or_else(|| format!("`{text}` is no number, or too large a one"))
}

/// Bytes, or with a suffix K, M, G.
fn size_in_bytes(text: &str) -> Result<u64, String> {
    let shift = match text.chars().last() {
        Some('k' | 'K') => 10,
        Some('m' | 'M') => 20,
        Some('g' | 'G') => 30,
        _ => return number(text),
    };
    let digits: u64 = number(&text[..text.len() - 1])?;
    digits.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is not a size of memory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(option: &str, texts: &[&str]) -> Result<Vec<Step>> {
        let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
        let mut args = ScriptArgs::default();
        match option {
            "memory-region" => args.memory_region = texts,
            "set-msr" => args.set_msr = texts,
            "set-cpuid" => args.set_cpuid = texts,
            _ => args.check_extension = texts,
        }
        args.steps(2)
    }

    #[test]
    fn moments_and_changes() {
        let found = steps("set-cpuid", &["exit=1000,phys-bits=36,-pdpe1gb", "vcpu=1,same"]).unwrap();
        let change = |vcpu, change: &str| Action::SetCpuid { vcpu, change: change.to_owned() };
        assert_eq!(
            found,
            [
                Step { at: When::Exit(1000), action: change(0, "phys-bits=36,-pdpe1gb") },
                Step { at: When::Start, action: change(1, "same") },
            ]
        );
        assert_eq!(asked_width(&found[0]), Some(36));
    }

    #[test]
    fn slots_follow_those_of_the_machine() {
        let found = steps("memory-region", &["gpa=64G,size=2M,insn=5", "gpa=0,size=0,slot=2"]).unwrap();
        let region = |gpa, size| Action::SetMemoryRegion { slot: 2, gpa, size, flags: 0 };
        assert_eq!(found[0], Step { at: When::Insn(5), action: region(1 << 36, 2 << 20) });
        assert_eq!(found[1].action, region(0, 0));
    }

    #[test]
    fn nonsense_is_refused() {
        for (option, text) in [
            ("set-cpuid", "phys-bits"),
            ("set-cpuid", "exit=x,same"),
            ("set-cpuid", "exit=20"),
            ("set-cpuid", "exit=20,insn=20,same"),
            ("set-cpuid", "physbits=36"),
            ("memory-region", "gpa=1"),
            ("memory-region", "size=1T"),
            ("set-msr", "5"),
            ("check-extension", "185,9"),
            ("check-extension", "5000000000"),
        ] {
            assert!(steps(option, &[text]).is_err(), "{option} {text}");
        }
        assert_eq!(
            steps("set-msr", &["0x277=0x606"]).unwrap()[0].action,
            Action::SetMsr { vcpu: 0, index: 0x277, data: 0x606 }
        );
    }
}
