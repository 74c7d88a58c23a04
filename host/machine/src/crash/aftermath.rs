//! What a crash leaves to the kernel that comes next.

use super::bare_host::BareHost;
use schemars::JsonSchema;
use serde::Serialize;
use std::fmt;
use vmtape_abi::Backend;
use vmtape_arch::query::Query;
use vmtape_traces::hex;

/// A VMCS that is still active on a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ActiveVmcs {
    pub vcpu: u32,
    /// The vCPU's shadow VMCS.
    pub shadow: bool,
    pub cpu: u64,
}

/// A page of the next kernel's into which silicon wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Overwritten {
    /// The page's host physical address.
    #[serde(serialize_with = "hex::word")]
    #[schemars(with = "String")]
    pub hpa: u64,
    /// Bytes in words that are not the kernel's any more.
    pub bytes: usize,
}

/// What the next kernel finds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Aftermath {
    pub active: Vec<ActiveVmcs>,
    pub overwritten: Vec<Overwritten>,
    /// CPUs on which virtualization is still on.
    pub virtualizing: Vec<u32>,
    /// CPUs that hear no INIT, and so cannot be started anew.
    pub deaf: Vec<u32>,
}

/// A VMCS and its shadow: where it lies, and where it is active.
const VMCSS: [(bool, Query, Query); 2] = [
    (false, Query::VMCS_REGION, Query::VMCS_ACTIVE_ON),
    (true, Query::SHADOW_VMCS_REGION, Query::SHADOW_VMCS_ACTIVE_ON),
];

impl Aftermath {
    /// The next kernel takes the memory in which VMCSs lie for its own, silicon writes back what it holds, and the kernel looks at
    /// its memory. All CPUs have crashed.
    pub fn of(backend: &mut dyn Backend, vcpus: u32, cpus: &[u32]) -> Self {
        let (mut kernel, mut claimed, mut active) = (BareHost::default(), Vec::new(), Vec::new());
        for vcpu in 0..vcpus {
            for (shadow, region, active_on) in VMCSS {
                if let Ok(hpa) = backend.query(vcpu, region) {
                    kernel.claim(hpa);
                    claimed.push(hpa);
                }
                let on = backend.query(vcpu, active_on).ok();
                active.extend(on.map(|cpu| ActiveVmcs { vcpu, shadow, cpu }));
            }
        }
        cpus.iter().for_each(|cpu| backend.write_back(*cpu, &mut kernel));
        let looked = claimed.into_iter().map(|hpa| Overwritten { hpa, bytes: kernel.changed(hpa) });
        let overwritten = looked.filter(|page| page.bytes > 0).collect();
        let where_set = |what| -> Vec<u32> {
            cpus.iter().copied().filter(|cpu| backend.query(*cpu, what) == Ok(1)).collect()
        };
        let virtualizing = where_set(Query::CPU_VIRTUALIZES);
        Self { active, overwritten, virtualizing, deaf: where_set(Query::CPU_BLOCKS_INIT) }
    }

    /// The next kernel has its memory and its CPUs to itself.
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }

    pub fn bytes(&self) -> usize {
        self.overwritten.iter().map(|page| page.bytes).sum()
    }
}

impl fmt::Display for Aftermath {
    /// Clauses that begin with a semicolon; nothing if there is nothing to tell.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ActiveVmcs { vcpu, shadow, cpu } in &self.active {
            let shadow = if *shadow { "shadow " } else { "" };
            write!(f, "; the {shadow}VMCS of vCPU {vcpu} is still active on CPU {cpu}")?;
        }
        for Overwritten { hpa, bytes } in &self.overwritten {
            write!(f, "; {bytes} bytes of the next kernel's page at {hpa:#x} are overwritten")?;
        }
        for cpu in &self.virtualizing {
            write!(f, "; virtualization is still on on CPU {cpu}")?;
        }
        self.deaf.iter().try_for_each(|cpu| write!(f, "; CPU {cpu} hears no INIT"))
    }
}
