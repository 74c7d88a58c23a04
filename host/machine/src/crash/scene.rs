//! A host at work on its VMCSs, and a crash at one of the moments of that work.

use super::{
    aftermath::Aftermath,
    bare_host::{BareHost, Moment},
};
use schemars::JsonSchema;
use serde::Serialize;
use std::fmt;
use vmtape_abi::{Backend, Errno};
use vmtape_arch::{exit::Resume, vcpu::VcpuState};

/// The CPU at work, and another one.
const CPUS: [u32; 2] = [0, 1];
/// More moments than any work has.
const MOST_MOMENTS: u64 = 1000;

/// What KVM does on CPU 0 when the host crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// No VM was ever run; the module is there.
    Unused,
    Nothing,
    /// The CPU is enabled.
    Enable,
    /// A vCPU comes.
    Add,
    /// A vCPU of the list goes to CPU 1.
    Move(u32),
    /// A vCPU of the list enters its guest.
    Enter(u32),
    /// The CPU is disabled.
    Disable,
}

/// Work on a list of so many VMCSs; the newest is that of the last vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Scene {
    pub list: u32,
    pub work: Work,
}

/// A crash in a scene.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Crash {
    #[serde(flatten)]
    pub scene: Scene,
    /// Which moment of the work, from one on; zero: the work was done, or there was none.
    pub moment: u64,
    /// What the dying kernel said.
    pub log: Vec<String>,
    /// The emergency path came to its end, so that there is a next kernel.
    pub next_kernel: bool,
    #[serde(flatten)]
    pub aftermath: Aftermath,
}

impl Crash {
    /// The next kernel runs, and has its memory and its CPUs to itself.
    pub fn is_clean(&self) -> bool {
        self.next_kernel && self.aftermath.is_clean()
    }
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list: Vec<_> = (0..self.list).rev().map(|vcpu| vcpu.to_string()).collect();
        let list = format!("[{}]", list.join(" "));
        match self.work {
            Work::Unused => write!(f, "no VM was ever run"),
            Work::Nothing => write!(f, "nothing, list {list}"),
            Work::Enable => write!(f, "enabling the CPU"),
            Work::Add => write!(f, "adding {} to {list}", self.list),
            Work::Move(vcpu) => write!(f, "moving {vcpu} from {list}"),
            Work::Enter(vcpu) => write!(f, "entering {vcpu} of {list}"),
            Work::Disable => write!(f, "disabling the CPU, list {list}"),
        }
    }
}

impl Scene {
    /// All scenes with lists of at most so many.
    pub fn all(most: u32) -> Vec<Self> {
        let works = |list: u32| {
            let first = if list == 0 { vec![Work::Unused, Work::Enable] } else { Vec::new() };
            let add = (list < most).then_some(Work::Add);
            let each = (0..list).flat_map(|vcpu| [Work::Move(vcpu), Work::Enter(vcpu)]);
            let works = first.into_iter().chain([Work::Nothing]).chain(add).chain(each);
            works.chain([Work::Disable]).map(move |work| Self { list, work })
        };
        (0..=most).flat_map(works).collect()
    }

    /// The host as it is before the work.
    fn prepare(self, backend: &mut dyn Backend, host: &mut BareHost<'_>) -> Result<(), Errno> {
        let enabled: &[u32] = match self.work {
            Work::Unused => &[],
            Work::Enable => &CPUS[1..],
            _ => &CPUS,
        };
        enabled.iter().try_for_each(|cpu| backend.enable_cpu(*cpu, host))?;
        (0..=self.list).try_for_each(|vcpu| backend.create_vcpu(vcpu))?;
        for vcpu in 0..self.list {
            backend.vcpu_load(vcpu, CPUS[0], host)?;
            entered(backend.enter(vcpu, &mut VcpuState::reset(), host))?;
        }
        Ok(())
    }

    fn do_work(self, backend: &mut dyn Backend, host: &mut BareHost<'_>) -> Result<(), Errno> {
        match self.work {
            Work::Unused | Work::Nothing => Ok(()),
            Work::Enable => backend.enable_cpu(CPUS[0], host),
            Work::Add => backend.vcpu_load(self.list, CPUS[0], host),
            Work::Move(vcpu) => backend.vcpu_load(vcpu, CPUS[1], host),
            Work::Enter(vcpu) => {
                backend.vcpu_load(vcpu, CPUS[0], host)?;
                entered(backend.enter(vcpu, &mut VcpuState::reset(), host))
            }
            Work::Disable => backend.disable_cpu(CPUS[0], host),
        }
    }

    /// The crash at a moment of the work, of which the backend asks `points`. `None`: the work has no such moment.
    pub fn crash(
        self,
        backend: &mut dyn Backend,
        points: &[u32],
        moment: u64,
    ) -> Result<Option<Crash>, Errno> {
        let mut host = BareHost::default();
        self.prepare(backend, &mut host)?;
        host.log.clear();
        host.moment = (moment > 0).then_some(Moment { points, left: moment });
        let worked = self.do_work(backend, &mut host);
        if host.moment.take().is_some_and(|moment| moment.left > 0) {
            return worked.map(|()| None);
        }
        if moment == 0 {
            worked?;
        }
        let mut next_kernel = worked != Err(Errno::EFAULT);
        for cpu in CPUS {
            next_kernel &= backend.crash(cpu, &mut host).is_ok();
        }
        let aftermath = Aftermath::of(backend, self.list + 1, &CPUS);
        Ok(Some(Crash { scene: self, moment, log: host.log, next_kernel, aftermath }))
    }
}

fn entered(resume: Resume) -> Result<(), Errno> {
    if resume == Resume::GUEST { Ok(()) } else { Err(Errno::EIO) }
}

/// Crashes a new host at every moment of every scene, of which the last of each is that after the work.
pub fn crash_everywhere<E: From<Errno>>(
    create: impl Fn() -> Result<Box<dyn Backend>, E>,
    points: &[u32],
    most: u32,
) -> Result<Vec<Crash>, E> {
    let mut crashes = Vec::new();
    for scene in Scene::all(most) {
        for moment in (1..=MOST_MOMENTS).chain([0]) {
            match scene.crash(&mut *create()?, points, moment)? {
                Some(crash) => crashes.push(crash),
                None => {
                    crashes.extend(scene.crash(&mut *create()?, points, 0)?);
                    break;
                }
            }
        }
    }
    Ok(crashes)
}
