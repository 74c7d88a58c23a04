//! Axis `width`: the smallest host width, or guest width, at which the verdict flips.

use super::{
    Bench, Finding, Pair, cpuid,
    search::{Mark, turn},
    trial::Criterion,
};
use crate::{Error, cpuid::Change, spec};
use vmtape_arch::cpuid::maxphyaddr;
use vmtape_machine::MachineSpec;

const AXIS: &str = "width";

/// Whose width is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The tried machine's host.
    Host,
    /// Both machines' hosts: the guest is taped again on each.
    Hosts,
    Guest,
}

/// What to search.
pub struct Request {
    pub side: Side,
    /// The machine that is tried; its width is replaced.
    pub machine: MachineSpec,
    /// The widths between which to search: by default the tape's, and the widest that there is or else the narrowest.
    pub good: Option<u8>,
    pub bad: Option<u8>,
    /// Try guests that are wider than their host.
    pub force: bool,
}

/// Widths that silicon can have.
const NARROWEST: u8 = 32;
const WIDEST: u8 = 52;

pub fn bisect(bench: &mut Bench, request: &Request) -> Result<Finding, Error> {
    request.check()?;
    let Some((good, bad)) = request.ends(bench)? else {
        return Ok(bench.nothing(AXIS, format!("no {} width flips the verdict", request.side.name())));
    };
    let place = |n: u64| if good < bad { good + n as u8 } else { good - n as u8 };
    let found = turn(0, good.abs_diff(bad).into(), |n| request.test(bench, place(n)))?;
    let (last_good, first_bad) = (place(found.last_good), place(found.first_bad));
    let mut tried = request.machine.clone();
    with_width(&mut tried, first_bad);
    let options = format!("--host {}", tried.host);
    let mut finding = bench.found(AXIS, format!("first bad: {}", request.text(first_bad)), &options)?;
    let model = bench.machine.cpu.clone();
    match request.side {
        Side::Host => {}
        Side::Hosts => {
            with_width(&mut bench.machine, first_bad);
            finding.reproduce = cpuid::reproduce(bench, &model, &[], true)?;
        }
        Side::Guest => {
            let both = matches!(bench.criterion, Criterion::Divergence(_));
            finding.reproduce = cpuid::reproduce(bench, &model, &[&Change::width(first_bad)], both)?;
        }
    }
    let both = if request.side == Side::Hosts { ", both machines having it" } else { "" };
    finding.notes.push(format!("{} is the last good one{both}", request.text(last_good)));
    if last_good.abs_diff(first_bad) > 1 {
        finding.notes.push("the widths in between could not be judged".into());
    }
    Ok(finding)
}

impl Side {
    pub fn name(self) -> &'static str {
        match self {
            Self::Host | Self::Hosts => "host",
            Self::Guest => "guest",
        }
    }
}

impl Request {
    fn check(&self) -> Result<(), Error> {
        let widths = [self.good, self.bad];
        if let Some(width) = widths.into_iter().flatten().find(|width| !(NARROWEST..=WIDEST).contains(width))
        {
            return Err(Error::Misuse(format!("width {width} is not within {NARROWEST} to {WIDEST}")));
        }
        match widths {
            [Some(good), Some(bad)] if good == bad => {
                Err(Error::Misuse(format!("there is no width between {good} and {bad}")))
            }
            _ => Ok(()),
        }
    }

    /// A good and a bad width; `None`: all that were tried are good.
    fn ends(&self, bench: &mut Bench) -> Result<Option<(u8, u8)>, Error> {
        let guest = maxphyaddr(&bench.machine.cpuid);
        let (taped, narrowest) = match self.side {
            Side::Host | Side::Hosts if self.force => (bench.machine.silicon.phys_bits, NARROWEST),
            Side::Host | Side::Hosts => (bench.machine.silicon.phys_bits, guest.max(NARROWEST)),
            Side::Guest => (guest, NARROWEST),
        };
        let widest = match self.side {
            Side::Guest if !self.force => bench.machine.silicon.phys_bits.min(self.machine.silicon.phys_bits),
            _ => WIDEST,
        };
        let candidates = match (self.good, self.bad) {
            (Some(good), Some(bad)) => vec![bad, good],
            (Some(good), None) => vec![good, taped, widest, narrowest],
            (None, Some(bad)) => vec![bad, taped, narrowest, widest],
            (None, None) => vec![taped, narrowest, widest],
        };
        let (mut good, mut bad) = (None, None);
        for (n, width) in candidates.iter().enumerate() {
            if candidates[..n].contains(width) {
                continue;
            }
            match self.test(bench, *width)? {
                Mark::Good if good.is_none() => good = Some(*width),
                Mark::Bad if bad.is_none() => bad = Some(*width),
                _ => {}
            }
            if let (Some(good), Some(bad)) = (good, bad) {
                return Ok(Some((good, bad)));
            }
        }
        match (good, bad) {
            (_, None) => Ok(None),
            _ => Err(Error::Other(format!(
                "every {} width that was tried is bad: {} is not what decides (--good names a good end)",
                self.side.name(),
                self.side.name(),
            ))),
        }
    }

    fn text(&self, width: u8) -> String {
        format!("{} width {width}", self.side.name())
    }

    fn test(&self, bench: &mut Bench, width: u8) -> Result<Mark, Error> {
        let what = self.text(width);
        let (mut expected, mut actual) = (bench.machine.clone(), self.machine.clone());
        match self.side {
            Side::Host => with_width(&mut actual, width),
            Side::Hosts => {
                [&mut expected, &mut actual].into_iter().for_each(|machine| with_width(machine, width))
            }
            Side::Guest => {
                for machine in [&mut expected, &mut actual] {
                    Change::width(width).apply(&mut machine.cpuid);
                }
            }
        }
        let (guest, host) = (maxphyaddr(&actual.cpuid), actual.silicon.phys_bits);
        if guest > host && !self.force {
            return Ok(bench.skip(&what, format!("the guest has {guest} bits, the host only {host}")));
        }
        // A guest that is told another width than the taped one sees that, and one on another host than the taped one may:
        // it is compared with itself elsewhere. Only its own verdict can be held against the tape's.
        let again = match self.side {
            Side::Host => false,
            Side::Hosts => !matches!(bench.criterion, Criterion::Prints(_)),
            Side::Guest => matches!(bench.criterion, Criterion::Divergence(_)),
        };
        let mut tape = None;
        if again {
            match spec::record(&expected, bench.tape, &spec::generous_budget(bench.tape), bench.create) {
                Ok(recorded) => tape = Some(recorded),
                Err(error) => return bench.unable(&what, error),
            }
        }
        bench.test_pair(&what, Pair { tape, expected, actual }, bench.create)
    }
}

/// Gives a machine's host another width.
fn with_width(machine: &mut MachineSpec, width: u8) {
    if machine.silicon.phys_bits != width {
        machine.silicon.phys_bits = width;
        machine.host = format!("{},phys-bits={width}", machine.host);
    }
}
