//! What the parts of a machine are built for, which follows from its specification.

use crate::{devices::DeviceConfig, model::silicon_cpuid, spec::MachineSpec};
use vmtape_arch::cpuid::{CpuidEntry, find, maxphyaddr};
use vmtape_cpu::{CpuConfig, Features, Model, revision};

/// The instruction set that the guest's CPUID promises, on the host's silicon.
pub(super) fn cpu_config(spec: &MachineSpec) -> CpuConfig {
    CpuConfig {
        features: Features::from_cpuid(&spec.cpuid),
        model: Model {
            rules: revision::silicon(spec.cpu_revision, spec.silicon.vendor),
            rmw_reads_first: spec.silicon.rmw_reads_first.is_set(),
            ..Model::from_cpuid(&silicon_cpuid(&spec.silicon))
        },
        tlb: revision::tlb(spec.cpu_revision),
        engine: spec.engine,
    }
}

/// KVM's emulator goes by what the guest was told, its vendor too: that is how SYSCALL from compatibility mode works for
/// an AMD guest on an Intel host.
/// See: KVM arch/x86/kvm/emulate.c em_syscall(), emulator_get_cpuid()
pub(super) fn emulator_config(spec: &MachineSpec) -> CpuConfig {
    let told = Model::from_cpuid(&spec.cpuid);
    let model = Model { rules: revision::emulator(spec.cpu_revision, told.vendor), ..told };
    CpuConfig {
        features: Features::from_cpuid(&spec.cpuid),
        model,
        tlb: revision::tlb(spec.cpu_revision),
        ..CpuConfig::default()
    }
}

pub(super) fn device_config(spec: &MachineSpec) -> DeviceConfig {
    const X2APIC: u32 = 1 << 21;
    const TSC_DEADLINE: u32 = 1 << 24;
    let features = find(&spec.cpuid, 1, 0).map_or(0, |entry| entry.ecx);
    DeviceConfig {
        vcpus: spec.vcpus,
        ram: spec.memory,
        has_x2apic: features & X2APIC != 0,
        has_tsc_deadline: features & TSC_DEADLINE != 0,
        max_gpa: max_gpa(&spec.cpuid),
        hpet: spec.platform.hpet(),
        vmport: spec.platform.vmport(),
        acpi: spec.platform.acpi(),
    }
}

/// The highest guest physical address of a vCPU with this CPUID.
pub(super) fn max_gpa(cpuid: &[CpuidEntry]) -> u64 {
    (1 << maxphyaddr(cpuid).clamp(32, 52)) - 1
}
