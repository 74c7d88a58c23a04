//! Faults on the command line: one answer of one fault point per option.

use crate::output::usage;
use anyhow::Result;
use clap::Args;
use vmtape_abi::TableRow;
use vmtape_machine::{HostPoint, Scripted};

/// Faults to inject.
#[derive(Clone, Debug, Default, Args)]
pub struct FaultArgs {
    /// Inject a fault: POINT[,n=N,vcpu=N,value=N], as in lost-flush,n=3, or host-nmi,insn=N
    ///
    /// POINT is a name of the backend's table, which `vmtape backends NAME` shows with the meaning of VALUE (default: 1). It
    /// fires the N-th time (default: the first) that the vCPU (default: each) comes to the point. The host's own points are host-nmi,
    /// host-serial (0: the byte is lost, else doubled), host-clock-jump (nanoseconds), host-timer (0: it never fires, else nanoseconds
    /// late; with bit 63 also on time), host-irq-lost, and host-irq-spurious (the vector).
    #[arg(long = "fault", value_name = "FAULT")]
    faults: Vec<String>,
}

impl FaultArgs {
    /// The options as they were given.
    pub fn command_line(&self) -> String {
        self.faults.iter().map(|fault| format!(" --fault {fault}")).collect()
    }

    /// The faults, by a backend's table of points.
    pub fn script(&self, points: &[TableRow]) -> Result<Vec<Scripted>> {
        let parse =
            |text: &String| parse(text, points).map_err(|cause| usage(format!("--fault {text}: {cause}")));
        self.faults.iter().map(parse).collect()
    }
}

/// The points that a tape with faults names.
pub fn names(points: &[TableRow]) -> Vec<(u32, String)> {
    points.iter().map(|row| (row.id, row.name.clone())).chain(HostPoint::names()).collect()
}

fn parse(text: &str, points: &[TableRow]) -> Result<Scripted, String> {
    let mut words = text.split(',');
    let name = words.next().unwrap_or_default();
    let found = names(points).into_iter().find(|(_, known)| known == name);
    let (point, _) = found
        .ok_or_else(|| format!("the backend has no fault point `{name}` (see `vmtape backends NAME`)"))?;
    let mut fault = Scripted { point, vcpu: None, occurrence: 1, answer: 1, insn: 0 };
    for word in words {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("`{word}` is not KEY=VALUE"))?;
        let number = number(value).ok_or_else(|| format!("`{value}` is not a number"))?;
        match key {
            "n" if number > 0 => fault.occurrence = number,
            "n" => return Err("occurrences count from 1 on".into()),
            "insn" if point == HostPoint::NMI.0 => fault.insn = number,
            "value" => fault.answer = number,
            "vcpu" => {
                fault.vcpu = Some(number.try_into().map_err(|_| format!("there is no vCPU {number}"))?);
            }
            _ => return Err(format!("`{key}` is none of n, vcpu and value")),
        }
    }
    Ok(fault)
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_on_the_command_line() {
        let points = [TableRow { id: 20, name: "lost-flush".into(), ..Default::default() }];
        let fault = Scripted { point: 20, vcpu: None, occurrence: 1, answer: 1, insn: 0 };
        assert_eq!(parse("lost-flush", &points), Ok(fault));
        let other = Scripted { vcpu: Some(1), occurrence: 3, answer: 16, ..fault };
        let nmi = Scripted { point: HostPoint::NMI.0, insn: 500, ..fault };
        assert_eq!(parse("host-nmi,insn=500", &points), Ok(nmi));
        assert_eq!(parse("lost-flush,n=3,vcpu=1,value=0x10", &points), Ok(other));
        for bad in [
            "",
            "flush",
            "lost-flush,n=0",
            "lost-flush,n",
            "lost-flush,a=1",
            "lost-flush,n=x",
            "lost-flush,insn=1",
        ] {
            assert!(parse(bad, &points).is_err(), "{bad}");
        }
    }
}
