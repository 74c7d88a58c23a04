//! Options for what the VMM does beside running the guest: one per ioctl, each as often as needed.

use crate::output::usage;
use anyhow::Result;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use vmtape_machine::{
    CpuidChange,
    vmm::{Action, Step, When},
};
use vmtape_traces::ioctl::{IOCTLS, Ioctl, Spelling};

const HEADING: &str =
    "Ioctls of the VMM (WHEN: start, exit=N or insn=N; at one moment in the order of the command line)";
/// Words that are a moment by themselves.
const MOMENTS: [&str; 2] = ["create", "start"];

/// Ioctls of the VMM: options and their values, in the order of the command line.
#[derive(Clone, Debug, Default)]
pub struct ScriptArgs(Vec<(&'static Ioctl, String)>);

impl Args for ScriptArgs {
    fn augment_args(command: Command) -> Command {
        command.args(IOCTLS.iter().map(|ioctl| {
            Arg::new(ioctl.option)
                .long(ioctl.option)
                .value_name(ioctl.value)
                .help(ioctl.help)
                .help_heading(HEADING)
                .action(ArgAction::Append)
                // A change of CPUID may begin with one.
                .allow_hyphen_values(true)
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ScriptArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut found = Vec::new();
        for ioctl in IOCTLS {
            let values = matches.get_many::<String>(ioctl.option).into_iter().flatten();
            let places = matches.indices_of(ioctl.option).into_iter().flatten();
            found.extend(places.zip(values).map(|(place, value)| (place, ioctl, value.clone())));
        }
        found.sort_by_key(|(place, ..)| *place);
        Ok(Self(found.into_iter().map(|(_, ioctl, value)| (ioctl, value)).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl ScriptArgs {
    /// The script. The machine has slots of its own up to `own_slots`.
    pub fn steps(&self, own_slots: u32) -> Result<Vec<Step>> {
        let mut next_slot = own_slots;
        let steps = self.0.iter().map(|(ioctl, text)| {
            step(ioctl, text, &mut next_slot)
                .map_err(|cause| usage(format!("--{} {text}: {cause}", ioctl.option)))
        });
        steps.collect()
    }
}

/// The guest width that a step asks for.
pub fn asked_width(step: &Step) -> Option<u8> {
    match &step.action {
        Action::SetCpuid { change, .. } => change.parse::<CpuidChange>().ok()?.phys_bits(),
        _ => None,
    }
}

/// One option: its moment, and the ioctl.
fn step(ioctl: &Ioctl, text: &str, next_slot: &mut u32) -> Result<Step, String> {
    if text.starts_with("--") {
        return Err(format!("an option where {} is needed", ioctl.value));
    }
    let is_moment =
        |word: &&str| MOMENTS.contains(word) || word.starts_with("exit=") || word.starts_with("insn=");
    let (moments, words): (Vec<_>, Vec<_>) = text.split(',').partition(is_moment);
    let at = match moments[..] {
        [] => When::Start,
        [moment] => moment.parse()?,
        [first, second, ..] => return Err(format!("both `{first}` and `{second}`: one moment is needed")),
    };
    let mut spelling = Spelling::new(words, next_slot);
    let action = (ioctl.parse)(&mut spelling)?;
    spelling.done()?;
    let step = Step { at, action };
    // Whether there is such a vCPU is asked once the machine is known.
    step.check(u32::MAX)?;
    Ok(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(option: &str, texts: &[&str]) -> Result<Vec<Step>> {
        let ioctl = IOCTLS.iter().find(|ioctl| ioctl.option == option).unwrap();
        ScriptArgs(texts.iter().map(|text| (ioctl, (*text).to_owned())).collect()).steps(2)
    }

    #[test]
    fn ioctls_are_made_in_the_order_of_the_command_line() {
        let command = ScriptArgs::augment_args(Command::new("test"));
        let words = ["test", "--get-msr", "5", "--set-cpuid", "-avx", "--get-msr", "6,insn=3"];
        let args = ScriptArgs::from_arg_matches(&command.get_matches_from(words)).unwrap();
        let texts: Vec<_> = args.steps(0).unwrap().iter().map(|step| step.action.to_string()).collect();
        assert_eq!(texts, ["KVM_GET_MSRS vcpu 0 5", "KVM_SET_CPUID2 vcpu 0, -avx", "KVM_GET_MSRS vcpu 0 6"]);
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
            ("set-msr", "--quiet"),
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
