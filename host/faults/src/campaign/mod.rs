//! Campaigns: thousands of plans from one seed. Job i is a function of the campaign and of i, so that any shard can make it without
//! those before it.

mod canary;
mod generate;
mod results;
mod shard;

use canary::MOVING_CANARY;
pub use canary::{CANARIES, Canary};
pub use results::{Line, Merged, merge};
pub use shard::{Shard, ShardError};

use crate::{
    plan::{Number, Plan},
    points::Point,
};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// A campaign as data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Campaign {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub seed: Number,
    /// How many plans.
    pub plans: u64,
    /// Into how many shards they are divided.
    #[serde(default = "one")]
    pub shards: u32,
    /// The guests, as `vmtape record` takes them.
    pub guests: Vec<String>,
    /// A plan has so many rules at most.
    #[serde(default = "three")]
    pub rules: u64,
    /// The points that plans may name; none: all of the backend and of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<String>,
    /// The share of plans that are run twice, the second time in another shard.
    #[serde(default = "hundredth")]
    pub repeat: f64,
    /// The share of plans whose guest moves, if there are ways to go.
    #[serde(default = "half")]
    pub moving: f64,
    /// What guests run on.
    #[serde(rename = "machine")]
    pub machines: Vec<MachineChoice>,
    /// Where guests move to meanwhile.
    #[serde(default, rename = "move", skip_serializing_if = "Vec::is_empty")]
    pub moves: Vec<MoveChoice>,
}

/// A machine, in the words of the command line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineChoice {
    pub backend: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kvm: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Several hosts, and several releases: a machine for each pair.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kvms: Vec<String>,
}

impl MachineChoice {
    /// The machines that it stands for.
    fn each(&self) -> impl Iterator<Item = Self> {
        let one_or_all = |one: &Option<String>, all: &[String]| match all {
            [] => vec![one.clone()],
            all => all.iter().cloned().map(Some).collect(),
        };
        let kvms = one_or_all(&self.kvm, &self.kvms);
        let bare = Self { hosts: Vec::new(), kvms: Vec::new(), ..self.clone() };
        one_or_all(&self.host, &self.hosts).into_iter().flat_map(move |host| {
            let bare = bare.clone();
            kvms.clone().into_iter().map(move |kvm| Self { host: host.clone(), kvm, ..bare.clone() })
        })
    }

    /// Simpler ones of the same backend, the simplest first: the default host, release and options.
    pub fn simpler(&self) -> Vec<Self> {
        let name = self.backend.split(',').next().unwrap_or_default();
        let plain = Self { backend: name.to_owned(), ..Self::default() };
        let mut found = vec![
            plain.clone(),
            Self { cpu: self.cpu.clone(), ..plain.clone() },
            Self { host: self.host.clone(), cpu: self.cpu.clone(), ..plain.clone() },
            Self { kvm: self.kvm.clone(), cpu: self.cpu.clone(), ..plain },
            Self { backend: name.to_owned(), ..self.clone() },
        ];
        found.dedup();
        found.retain(|choice| choice != self);
        found
    }
}

/// A move, in the words of `vmtape migrate`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveChoice {
    pub to: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
}

fn half() -> f64 {
    0.5
}

fn one() -> u32 {
    1
}

fn three() -> u64 {
    3
}

fn hundredth() -> f64 {
    0.01
}

/// A run of a campaign.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Plans first, then canaries.
    pub index: u64,
    /// The second time that a plan is run.
    pub again: bool,
    pub guest: String,
    /// Of the campaign's machines.
    pub machine: usize,
    /// The guest moves, and the plan is about that.
    pub moving: Option<Moving>,
    pub plan: Plan,
}

/// A guest's move in a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moving {
    /// Of the campaign's ways.
    pub way: usize,
    /// After so many instructions.
    pub insn: u64,
}

/// Whose fault points a job's plan names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Those of one of the campaign's machines, and of the host.
    Machine(usize),
    /// Those of a migration.
    Migration,
}

/// Plans that a campaign may have.
const MOST_PLANS: u64 = 1 << 32;
/// Shards: as many as Slurm's arrays may have tasks, and more.
const MOST_SHARDS: u32 = 1 << 20;

impl Campaign {
    /// Says what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        let wrong = [
            (self.plans == 0 || self.plans > MOST_PLANS, "`plans` goes from 1 to 2^32"),
            (self.shards == 0 || self.shards > MOST_SHARDS, "`shards` goes from 1 to 2^20"),
            (self.guests.is_empty(), "`guests` names none"),
            (self.machines.is_empty(), "there is no [[machine]]"),
            (self.rules == 0 || self.rules > 100, "`rules` goes from 1 to 100"),
            (!(0.0..=1.0).contains(&self.repeat), "`repeat` goes from 0 to 1"),
            (!(0.0..=1.0).contains(&self.moving), "`moving` goes from 0 to 1"),
        ];
        wrong.iter().find(|(wrong, _)| *wrong).map_or(Ok(()), |(_, what)| Err((*what).to_owned()))
    }

    /// With a machine for each pair of a host and a release.
    pub fn expanded(self) -> Self {
        Self { machines: self.machines.iter().flat_map(MachineChoice::each).collect(), ..self }
    }

    /// A number that campaigns with the same jobs share, into however many shards they are divided.
    pub fn hash(&self) -> u64 {
        let bare = Self { name: String::new(), shards: 1, ..self.clone() };
        xxh3_64(toml::to_string(&bare).unwrap_or_default().as_bytes())
    }

    /// Jobs but for those that are run again.
    pub fn jobs(&self) -> u64 {
        self.plans + self.canaries().count() as u64
    }

    /// Canaries, the machine of each, and the way it moves: all of them on every machine, and one from there on every way.
    fn canaries(&self) -> impl Iterator<Item = (usize, Option<usize>, &'static Canary)> {
        let ways = self.moves.len();
        (0..self.machines.len()).flat_map(move |machine| {
            let moving = (0..ways).map(move |way| (machine, Some(way), &MOVING_CANARY));
            CANARIES.iter().map(move |canary| (machine, None, canary)).chain(moving)
        })
    }

    /// The canary that a job is.
    pub fn canary(&self, index: u64) -> Option<&'static Canary> {
        self.canaries().nth(index.checked_sub(self.plans)? as usize).map(|(.., canary)| canary)
    }

    /// A job. `points`: those that its plan may name, to which its machine comes. `None`: the campaign has no such job, or its machine has
    /// no use for a canary.
    pub fn job<'p>(&self, index: u64, again: bool, points: impl Fn(Whose) -> &'p [Point]) -> Option<Job> {
        if let Some(at) = index.checked_sub(self.plans) {
            let (machine, way, canary) = self.canaries().nth(at as usize)?;
            let guest = canary.guest.to_owned();
            let whose = way.map_or(Whose::Machine(machine), |_| Whose::Migration);
            let plan = canary.plan(points(whose))?;
            let moving = way.map(|way| Moving { way, insn: 1 });
            return Some(Job { index, again, guest, machine, moving, plan });
        }
        Some(generate::job(self, index, again, points))
    }

    /// The jobs of a shard, and whether each is run again. What is run twice is so in two shards, if there are two.
    pub fn of_shard(&self, shard: Shard) -> impl Iterator<Item = (u64, bool)> + '_ {
        let of = u64::from(shard.of);
        let mine = move |index: u64| index % of == u64::from(shard.index);
        let again = move |index: u64| (index + 1) % of == u64::from(shard.index) && self.is_repeated(index);
        let first = (0..self.jobs()).filter(move |index| mine(*index)).map(|index| (index, false));
        first.chain((0..self.plans).filter(move |index| again(*index)).map(|index| (index, true)))
    }

    /// Whether a plan is run twice.
    pub fn is_repeated(&self, index: u64) -> bool {
        index < self.plans && generate::is_repeated(self, index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    pub(super) fn campaign() -> Campaign {
        let text = "seed = 3\nplans = 500\nshards = 4\nrepeat = 0.1\nguests = [\"builtin:hello\", \"builtin:touch\"]\n\
            [[machine]]\nbackend = \"one\"\n[[machine]]\nbackend = \"two\"\nhost = \"a\"";
        toml::from_str(text).unwrap()
    }

    pub(super) fn points() -> Vec<Point> {
        let mut points = Point::of_host();
        points.push(Point {
            number: 1,
            name: "flip".into(),
            text: String::new(),
            words: "a: the address; b: the entry; answer: the bits that are inverted".into(),
            ..Point::default()
        });
        points
    }

    #[test]
    fn every_job_is_in_one_shard_whatever_their_number() {
        let campaign = campaign();
        for of in [1, 2, 4, 7] {
            let (mut first, mut again) = (Vec::new(), BTreeSet::new());
            for index in 0..of {
                for (job, repeated) in campaign.of_shard(Shard { index, of }) {
                    if repeated { assert!(again.insert(job)) } else { first.push(job) }
                }
            }
            first.sort_unstable();
            assert_eq!(first, Vec::from_iter(0..campaign.jobs()), "{of}");
            assert!((20..90).contains(&again.len()), "{of}: {}", again.len());
            assert!(again.iter().all(|job| campaign.is_repeated(*job)));
        }
    }

    #[test]
    fn a_job_is_a_function_of_its_number() {
        let (campaign, points) = (campaign(), points());
        let job = |index| campaign.job(index, false, |_| &points).unwrap();
        let forwards: Vec<_> = (0..campaign.plans).map(job).collect();
        assert!((0..campaign.plans).rev().all(|index| job(index) == forwards[index as usize]));
        let plans: BTreeSet<u64> = forwards.iter().map(|job| job.plan.hash()).collect();
        assert!(plans.len() > 400, "{}", plans.len());
        for job in &forwards {
            crate::Engine::new(&job.plan.clone().into(), &points).unwrap();
        }
        let other = Campaign { seed: Number(4), ..campaign.clone() };
        assert_ne!(other.job(7, false, |_| &points).unwrap(), forwards[7]);
        assert_eq!(Campaign { shards: 9, ..campaign.clone() }.hash(), campaign.hash());
        assert_ne!(other.hash(), campaign.hash());
    }

    #[test]
    fn what_is_wrong_is_told() {
        assert_eq!(campaign().check(), Ok(()));
        assert!(Campaign { plans: 0, ..campaign() }.check().is_err());
        assert!(Campaign { repeat: f64::NAN, ..campaign() }.check().is_err());
        assert!(Campaign { machines: Vec::new(), ..campaign() }.check().is_err());
        assert!(Campaign { moving: 1.5, ..campaign() }.check().is_err());
    }

    #[test]
    fn machines_come_in_pairs_of_host_and_release() {
        let text = "plans = 1\nguests = [\"g\"]\n[[machine]]\nbackend = \"b,x=1\"\nhosts = [\"h\", \"i\"]\nkvms = [\"v1\", \"v2\"]\n\
            [[machine]]\nbackend = \"c\"\nkvm = \"v3\"";
        let campaign = toml::from_str::<Campaign>(text).unwrap().expanded();
        let words = |choice: &MachineChoice| {
            [
                choice.backend.clone(),
                choice.host.clone().unwrap_or_default(),
                choice.kvm.clone().unwrap_or_default(),
            ]
            .join(" ")
        };
        let machines: Vec<_> = campaign.machines.iter().map(words).collect();
        assert_eq!(machines, ["b,x=1 h v1", "b,x=1 h v2", "b,x=1 i v1", "b,x=1 i v2", "c  v3"]);
        assert_eq!(campaign.clone().expanded(), campaign);
        let simpler: Vec<_> = campaign.machines[3].simpler().iter().map(words).collect();
        assert_eq!(simpler, ["b  ", "b i ", "b  v2", "b i v2"]);
        assert!(MachineChoice { backend: "b".into(), ..Default::default() }.simpler().is_empty());
    }

    #[test]
    fn guests_move_where_there_are_ways() {
        let ways = vec![MoveChoice { to: "there".into(), ..Default::default() }; 2];
        let campaign = Campaign { moves: ways, ..campaign() };
        let (own, points) =
            (points(), vec![Point { number: 9, name: "move-send-cut".into(), ..Point::default() }]);
        let table = |whose| if whose == Whose::Migration { &points[..] } else { &own[..] };
        let jobs: Vec<_> =
            (0..campaign.jobs()).filter_map(|index| campaign.job(index, false, table)).collect();
        let moving = |job: &&Job| job.moving.is_some();
        let plans = jobs.iter().filter(|job| job.index < campaign.plans).filter(moving).count();
        assert!((200..300).contains(&plans), "{plans}");
        assert_eq!(jobs.iter().filter(|job| job.index >= campaign.plans).filter(moving).count(), 2 * 2);
        for job in &jobs {
            let whose = job.moving.map_or(Whose::Machine(0), |_| Whose::Migration);
            crate::Engine::new(&job.plan.clone().into(), table(whose)).unwrap();
        }
    }
}
