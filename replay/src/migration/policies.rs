//! What each policy says of a guest and some machines, without a move.

use super::Hop;
use crate::{Error, sides::Sides};
use schemars::JsonSchema;
use serde::Serialize;
use vmtape_machine::vmm::When;
use vmtape_migrate::{
    policy::{Finding, Ground, Policy},
    stream::Offer,
};

/// A policy's word on a machine.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Judged {
    pub to: String,
    pub policy: &'static str,
    pub refuses: bool,
    pub findings: Vec<Finding>,
}

impl Sides<'_> {
    /// Asks every policy about every machine, at a moment of the guest.
    pub fn judge(&self, at: When, hops: &[Hop]) -> Result<Vec<Judged>, Error> {
        let mut source = self.traveller(&self.expected, false)?;
        if !source.come_to_rest(at)? {
            return Err(Error::NobodyMoves { tape: self.tape.name().to_owned(), at });
        }
        let offer = Offer::of(&mut source.machine, 0)?;
        let cpuid = source.machine.cpuid(0).to_vec();
        let mut judged = Vec::new();
        for hop in hops {
            let ground = Ground::of(&self.traveller(&hop.to, false)?.machine);
            for policy in Policy::ALL {
                let findings = policy.judge(&offer, &cpuid, &ground);
                judged.push(Judged {
                    to: format!("{} on {}", hop.to.backend, hop.to.host),
                    policy: policy.name(),
                    refuses: findings.iter().any(|finding| finding.refuses),
                    findings,
                });
            }
        }
        Ok(judged)
    }
}
