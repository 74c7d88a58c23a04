//! A guest's way from the tape's machine over one host or more.

use super::way::{Journey, Travelled};
use crate::{Error, player::Player, sides::Sides, spec};
use vmtape_machine::MachineSpec;
use vmtape_migrate::handover::State;

impl Sides<'_> {
    /// Makes the journey, which ends on `last`.
    pub(crate) fn travel(
        &self,
        journey: &Journey,
        last: &MachineSpec,
        listen: bool,
    ) -> Result<Travelled, Error> {
        let points = (journey.points)();
        journey.asked.replace(points.clone());
        let (mut player, mut outcomes, mut printed) =
            (self.traveller(&self.expected, listen)?, Vec::new(), Vec::new());
        let mut tried = 0;
        for (n, hop) in journey.hops.iter().enumerate() {
            if !player.come_to_rest(hop.at)? {
                return Err(Error::NobodyMoves { tape: self.tape.name().to_owned(), at: hop.at });
            }
            let to = if n + 1 == journey.hops.len() { last } else { &hop.to };
            for attempt in 1.. {
                let mut next = self.traveller(to, listen)?;
                let outcome = journey.hop(&mut player, &mut next, points.clone(), tried, attempt)?;
                tried += 1;
                printed.extend(player.take_serial());
                let (source, destination) = (outcome.source, outcome.destination);
                outcomes.push(outcome);
                match (source, destination) {
                    (_, State::Running) => {
                        player = next;
                        break;
                    }
                    (State::Running, _) if attempt < journey.plan.attempts => {}
                    (State::Running, _) => return Ok(Travelled { player: Some(player), outcomes, printed }),
                    _ => return Ok(Travelled { player: None, outcomes, printed }),
                }
            }
        }
        Ok(Travelled { player: Some(player), outcomes, printed })
    }

    /// A machine on a guest's way. Exits are counted otherwise on each host: what the VMM does after so many of them it does at the
    /// tape's instruction, and no limit of exits holds.
    pub(crate) fn traveller(&self, machine: &MachineSpec, listen: bool) -> Result<Player, Error> {
        let inputs = Box::new(spec::inputs(self.tape)?);
        let script = spec::pinned_script(self.tape, &machine.script)?;
        let budget = spec::Budget { exits: u64::MAX, ..spec::budget(self.tape) };
        let machine = MachineSpec { script, ..machine.clone() };
        let mut player = Player::observed(machine, inputs, budget, self.create, listen)?;
        player.machine.keep_digest();
        Ok(player)
    }
}
