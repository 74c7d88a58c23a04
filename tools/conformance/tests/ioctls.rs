//! KVM's ioctls, asked across the boundary: every backend, every profile, without a guest.

use anyhow::{Context, Result, anyhow, ensure};
use vmtape_abi::{
    Backend, BusOp, EmulateRequest, Emulated, EmulatorMmu, Errno, FlushScope, Host, MemoryRegion,
    MemoryStatus, Query, VmConfig,
};
use vmtape_arch::{
    cpuid::CpuidEntry,
    exit::Resume,
    level::Place,
    msr::{Msr, PAT_POWER_ON},
    note::{Note, NoteKind},
    regs::Cr4,
    state::MsrEntry,
    vcpu::VcpuState,
};
use vmtape_backends::Search;
use vmtape_conformance::program;
use vmtape_machine::{
    hosts,
    model::{CpuOption, silicon_cpuid},
};

/// A host without memory and devices that keeps the warnings.
#[derive(Default)]
struct Nobody {
    warnings: usize,
}

impl Host for Nobody {
    fn try_read(&mut self, _: u64, _: &mut [u8]) -> MemoryStatus {
        MemoryStatus::REFUSED
    }
    fn try_write(&mut self, _: u64, _: &[u8]) -> MemoryStatus {
        MemoryStatus::REFUSED
    }
    fn try_cmpxchg(&mut self, _: u64, _: u64, _: u64, _: u8) -> MemoryStatus {
        MemoryStatus::REFUSED
    }
    fn fault_in(&mut self, _: u64, _: u64) -> MemoryStatus {
        MemoryStatus::REFUSED
    }
    fn resident(&self, _: u64, size: u64) -> u64 {
        size
    }
    fn flush_tlb(&mut self, _: u32, _: FlushScope, _: u64) {}
    fn emulate(
        &mut self,
        _: u32,
        _: &mut VcpuState,
        _: &EmulateRequest,
        _: &mut dyn EmulatorMmu,
    ) -> Emulated {
        Emulated::default()
    }
    fn bus(&mut self, _: u32, _: &mut BusOp) -> bool {
        false
    }
    fn interrupt(&mut self, _: u32, _: bool) -> Option<u8> {
        None
    }
    fn nmi(&mut self, _: u32, _: bool) -> bool {
        false
    }
    fn init(&mut self, _: u32) -> bool {
        false
    }
    fn smi(&mut self, _: u32, _: bool) -> bool {
        false
    }
    fn note_at(&mut self, _: u32, _: Place, note: Note) {
        self.warnings += usize::from(matches!(note, Note::Warning { .. }));
    }
    fn wants(&self, _: NoteKind) -> bool {
        true
    }
    fn log(&mut self, _: u32, _: &str) {}
    fn wants_faults(&self) -> bool {
        false
    }
    fn fault_point(&mut self, _: u32, _: u32, _: u64, _: u64) -> Option<u64> {
        None
    }
}

/// A VM of `BACKEND[,OPTION=VALUE...]` under a profile.
fn vm(backend: &str, host: &str, kvm: &str) -> Result<Box<dyn Backend>> {
    let folder = program()?.parent().context("the program lies in a folder")?.to_owned();
    let mut words = backend.split(',');
    let plugin = Search::new(&[folder]).load(words.next().unwrap_or_default())?;
    let option = |word: &str| {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        (name.to_owned(), value.to_owned())
    };
    let options = words.map(option).chain([("kvm".to_owned(), kvm.to_owned())]).collect();
    plugin.create(&VmConfig { silicon: hosts::find(host)?, options }).map_err(|reason| anyhow!(reason))
}

/// The CPUID of a guest with this width.
fn cpuid(vm: &dyn Backend, host: &str, phys_bits: u8) -> Result<Vec<CpuidEntry>> {
    let silicon = hosts::find(host)?;
    let supported = vm.supported_cpuid(&silicon_cpuid(&silicon));
    let option = CpuOption::parse(&format!("max,phys-bits={phys_bits}")).map_err(|e| anyhow!("{e}"))?;
    Ok(option.cpuid(&silicon, &supported))
}

const BACKENDS: [(&str, &str); 4] =
    [("vmx", "intel-46"), ("vmx,ept=off", "intel-46"), ("svm", "amd-48"), ("svm-npt", "amd-48")];

/// See: KVM vmx/vmx.c vmx_hardware_setup(), svm/svm.c svm_hardware_setup(); commits 3edd68399dc1 and b96e6506c2ea
#[test]
fn capability_185_by_release_backend_and_parameter() -> Result<()> {
    const ON: &str = "vmx,allow_smaller_maxphyaddr=on";
    const OFF: &str = "vmx,allow_smaller_maxphyaddr=off";
    const EPT_OFF: &str = "vmx,ept=off";
    const EPT_OFF_AND_OFF: &str = "vmx,ept=off,allow_smaller_maxphyaddr=off";
    let backends = ["vmx", ON, OFF, EPT_OFF, EPT_OFF_AND_OFF, "svm", "svm-npt"];
    let before = [0; 7];
    let constant = [1, 1, 1, 1, 1, 1, 0];
    let parameter = [0, 1, 0, 1, 1, 1, 0];
    for (kvm, expected) in [
        ("v5.6", before),
        ("v5.8", before),
        ("v1-series", before),
        ("v5.9-rc1", constant),
        ("v5.9-rc7", parameter),
        ("v5.9", parameter),
        ("v5.10", parameter),
        ("v5.17", parameter),
        ("v6.1", parameter),
        ("v6.12", parameter),
        ("latest", parameter),
    ] {
        for (backend, expected) in backends.into_iter().zip(expected) {
            let host = if backend.starts_with("svm") { "amd-48" } else { "intel-46" };
            let said = vm(backend, host, kvm)?.check_extension(185);
            ensure!(said == expected, "{backend} under {kvm} says {said}");
        }
    }
    Ok(())
}

/// KVM_CAP_MEMORY_FAULT_INFO. See: KVM commit 16f95f3b95ca
#[test]
fn capability_232_by_release() -> Result<()> {
    for (backend, host) in BACKENDS {
        for (kvm, expected) in [("v5.9", 0), ("v6.7", 0), ("v6.8", 1), ("v6.12", 1)] {
            let said = vm(backend, host, kvm)?.check_extension(232);
            ensure!(said == expected, "{backend} under {kvm} says {said}");
        }
    }
    ensure!(vm("vmx,+early-memory-fault-exit", "intel-52", "v6.1")?.check_extension(232) == 1);
    Ok(())
}

/// How a call ended: its result, and how many warnings came with it.
type Ended = (Result<(), Errno>, usize);

const DONE: Ended = (Ok(()), 0);
const WARNED: Ended = (Ok(()), 2);
const REFUSED: Ended = (Err(Errno::EINVAL), 0);

/// One vCPU whose guest has 46 bits, and what it is asked next.
struct Asked {
    vm: Box<dyn Backend>,
    state: VcpuState,
    first: Vec<CpuidEntry>,
}

impl Asked {
    fn new(backend: &str, host: &str, kvm: &str, runs: bool) -> Result<Self> {
        let mut vm = vm(backend, host, kvm)?;
        let (mut state, first) = (VcpuState::reset(), cpuid(&*vm, host, 46)?);
        let mut host = Nobody::default();
        vm.create_vcpu(0).map_err(|e| anyhow!("{e:?}"))?;
        ensure!(vm.set_cpuid(0, &mut state, &first, &mut host) == Ok(()), "the first KVM_SET_CPUID2");
        if runs {
            ensure!(vm.enter(0, &mut state, &mut host) == Resume::GUEST, "KVM_RUN");
        }
        Ok(Self { vm, state, first })
    }

    fn set(&mut self, entries: &[CpuidEntry]) -> Ended {
        let mut host = Nobody::default();
        let result = self.vm.set_cpuid(0, &mut self.state, entries, &mut host);
        (result, host.warnings)
    }

    /// The table with another value in 0x80000008 EAX.
    fn widths(&self, change: impl Fn(u32) -> u32) -> Vec<CpuidEntry> {
        let changed = |e: &CpuidEntry| match e.function {
            0x8000_0008 => CpuidEntry { eax: change(e.eax), ..*e },
            _ => *e,
        };
        self.first.iter().map(changed).collect()
    }
}

/// By release: the same table again, any other one, one that is too long, and `last_vmentry_cpu` before the first run.
/// See: KVM commits 63f5a1909f9e, feb627e8d6f6, c6617c61e8fe; tools/testing/selftests/kvm/x86/cpuid_test.c
const AFTER_RUN: [(&str, Ended, Ended, Errno, i64); 12] = [
    ("v5.6", DONE, DONE, Errno::E2BIG, 0),
    ("v5.9", DONE, DONE, Errno::E2BIG, 0),
    ("v5.10", DONE, DONE, Errno::E2BIG, 0),
    ("v5.13", DONE, DONE, Errno::E2BIG, 0),
    ("v5.14", WARNED, WARNED, Errno::E2BIG, -1),
    ("v5.15", WARNED, WARNED, Errno::E2BIG, -1),
    ("v5.16", REFUSED, REFUSED, Errno::EINVAL, -1),
    ("v5.17", DONE, REFUSED, Errno::E2BIG, -1),
    ("v6.1", DONE, REFUSED, Errno::E2BIG, -1),
    ("v6.12", DONE, REFUSED, Errno::E2BIG, -1),
    ("v7.2", DONE, REFUSED, Errno::E2BIG, -1),
    ("latest", DONE, REFUSED, Errno::E2BIG, -1),
];

#[test]
fn set_cpuid_after_run_by_release() -> Result<()> {
    for (backend, host) in BACKENDS {
        for (kvm, same, other, too_long, never) in AFTER_RUN {
            let asked = || Asked::new(backend, host, kvm, true);
            let what = format!("{backend} under {kvm}");
            let fresh = Asked::new(backend, host, kvm, false)?;
            ensure!(fresh.vm.query(0, Query::LAST_VMENTRY_CPU) == Ok(never as u64), "{what}");
            ensure!(asked()?.vm.query(0, Query::LAST_VMENTRY_CPU) == Ok(0), "{what}");

            let mut again = asked()?;
            let first = again.first.clone();
            ensure!(again.set(&first) == same, "{what}: the same table");

            let mut narrower = asked()?;
            let table = narrower.widths(|eax| eax & !0xff | 36);
            ensure!(narrower.set(&table) == other, "{what}: MAXPHYADDR 46 to 36");
            let kept = narrower.vm.get_cpuid(0);
            let width = vmtape_arch::cpuid::maxphyaddr(&kept);
            ensure!(width == if other.0.is_ok() { 36 } else { 46 }, "{what}: the table after that");

            let mut turned = asked()?;
            let reversed: Vec<_> = turned.first.iter().rev().copied().collect();
            ensure!(turned.set(&reversed) == other, "{what}: another order");

            let mut long = asked()?;
            ensure!(long.set(&[CpuidEntry::default(); 257]) == (Err(too_long), 0), "{what}: 257 entries");
        }
    }
    Ok(())
}

/// Bits that follow the guest's state are patched into the new table before it is compared.
#[test]
fn runtime_bits_do_not_count_as_a_change() -> Result<()> {
    for (backend, host) in BACKENDS {
        for (kvm, same, ..) in AFTER_RUN {
            let mut asked = Asked::new(backend, host, kvm, true)?;
            asked.state.cr4 = Cr4::new().with_osxsave(true).into_bits();
            asked.vm.state_changed(0, &mut asked.state, &mut Nobody::default());
            let first = asked.first.clone();
            ensure!(asked.set(&first) == same, "{backend} under {kvm}");
        }
    }
    Ok(())
}

/// 80 entries until v5.9, 256 since v5.10. See: KVM commit 3f4e3eb417b1
#[test]
fn entries_that_a_table_may_have() -> Result<()> {
    for (backend, host) in BACKENDS {
        for (kvm, most) in [("v5.6", 80), ("v5.9", 80), ("v5.10", 256), ("v6.12", 256)] {
            let mut asked = Asked::new(backend, host, kvm, false)?;
            let entries = |count| vec![CpuidEntry::default(); count];
            ensure!(asked.set(&entries(most + 1)) == (Err(Errno::E2BIG), 0), "{backend} {kvm}");
            ensure!(asked.set(&entries(most)) == DONE, "{backend} {kvm}");
        }
    }
    Ok(())
}

/// Since v6.4 a vCPU's model is frozen by KVM_RUN in its feature MSRs too.
/// See: KVM x86.c do_set_msr(), commit 0094f62c7eaa; tools/testing/selftests/kvm/x86/vmx_pmu_caps_test.c
#[test]
fn feature_msrs_after_run() -> Result<()> {
    const ARCH_CAPABILITIES: u32 = 0x10a;
    const UCODE_REV: u32 = 0x8b;
    for (backend, host) in BACKENDS {
        for (kvm, runs, other) in [
            ("v6.3", true, Ok(())),
            ("v6.4", false, Ok(())),
            ("v6.4", true, Err(Errno::EINVAL)),
            ("latest", true, Err(Errno::EINVAL)),
        ] {
            let mut asked = Asked::new(backend, host, kvm, runs)?;
            let what = format!("{backend} under {kvm}");
            let (vm, state, nobody) = (&mut asked.vm, &mut asked.state, &mut Nobody::default());
            let now = vm.get_msr(0, state, ARCH_CAPABILITIES, nobody).map_err(|e| anyhow!("{e:?}"))?;
            ensure!(vm.set_msr(0, state, ARCH_CAPABILITIES, now, nobody) == Ok(()), "{what}: the same");
            ensure!(vm.set_msr(0, state, ARCH_CAPABILITIES, now ^ 1, nobody) == other, "{what}: another");
            ensure!(vm.set_msr(0, state, UCODE_REV, 1 << 32, nobody) == Ok(()), "{what}: microcode");
        }
    }
    Ok(())
}

/// Each register that KVM lists is one that a VMM can save and restore, all at once.
/// See: KVM x86.c kvm_init_msr_lists(); tools/testing/selftests/kvm/lib/x86/processor.c vcpu_save_state()
#[test]
fn what_kvm_lists_can_be_saved_and_restored() -> Result<()> {
    for (backend, host) in BACKENDS {
        for kvm in ["v5.6", "v5.10", "v6.1", "v6.12", "latest"] {
            let mut asked = Asked::new(backend, host, kvm, false)?;
            let what = format!("{backend} under {kvm}");
            let list = asked.vm.msr_index_list(&silicon_cpuid(&hosts::find(host)?));
            let mut entries: Vec<_> = list.iter().map(|index| MsrEntry::new(*index, 1)).collect();
            // The devices are the host's, which has none here.
            entries.retain(|entry| Msr(entry.index) != Msr::IA32_TSC_DEADLINE);
            let all = Ok(entries.len() as u32);
            let (state, nobody) = (&mut asked.state, &mut Nobody::default());
            ensure!(asked.vm.get_msrs(0, state, &mut entries, nobody) == all, "{what}: reading");
            let values = entries.clone();
            ensure!(asked.vm.set_msrs(0, state, &entries, nobody) == all, "{what}: writing");
            ensure!(asked.vm.get_msrs(0, state, &mut entries, nobody) == all, "{what}: reading again");
            ensure!(entries == values, "{what}: other values");
        }
    }
    Ok(())
}

/// See: x86.c msrs_to_save_base[], emulated_msrs_all[], msr_based_features_all[] of Linux 5.10, 6.1 and 6.12.
#[test]
fn lists_of_msrs_by_vendor_and_release() -> Result<()> {
    const EVERYWHERE: [u32; 6] = [0x10, 0x174, 0x277, 0xc000_0081, 0x3b, 0x6e0];
    const BESIDE: [u32; 6] = [0x2ff, 0x200, 0x250, 0x400, 0xc000_0080, 0x1b];
    const CONSTANTS: [u32; 2] = [0xc001_1021, 0xc001_1023];
    // MSR, then where it is listed: intel v5.10, v6.1, v6.12, amd v5.10, v6.1, v6.12.
    const DIFFERENT: [(u32, [bool; 6]); 6] = [
        (0x3a, [true, true, true, false, false, false]),
        (0x4d0, [true, true, true, false, false, false]),
        (0xc001_0117, [false, false, false, true, true, true]),
        (0xc000_0104, [false, false, false, false, true, true]),
        (0xc001_0004, [false, false, false, true, true, false]),
        (0x1d9, [false, false, true, false, false, true]),
    ];
    let machines = [("vmx", "intel-46"), ("svm-npt", "amd-48")];
    let places = machines.into_iter().flat_map(|m| ["v5.10", "v6.1", "v6.12"].map(|kvm| (m, kvm)));
    for (n, ((backend, host), kvm)) in places.enumerate() {
        let vm = vm(backend, host, kvm)?;
        let list = vm.msr_index_list(&silicon_cpuid(&hosts::find(host)?));
        let what = format!("{backend} under {kvm}: {list:x?}");
        ensure!(EVERYWHERE.iter().all(|index| list.contains(index)), "{what}");
        ensure!(!BESIDE.iter().chain(&CONSTANTS).any(|index| list.contains(index)), "{what}");
        for (index, expected) in DIFFERENT {
            ensure!(list.contains(&index) == expected[n], "{what}: {index:#x}");
        }
        let features = vm.msr_feature_index_list();
        let de_cfg: &[u32] = if backend == "vmx" { &[] } else { &[0xc001_1029] };
        ensure!(features == [de_cfg, &[0x8b, 0x10a, 0x345]].concat(), "{what}: {features:x?}");
    }
    Ok(())
}

/// See: KVM x86.c __msr_io(), msr_io()
#[test]
fn several_msrs_stop_at_the_first_that_is_refused() -> Result<()> {
    for (backend, host) in BACKENDS {
        let mut asked = Asked::new(backend, host, "v6.12", false)?;
        let (vm, state, nobody) = (&mut asked.vm, &mut asked.state, &mut Nobody::default());
        let mut entries = [0x174, 0xc000_0081, 0x1234, 0x277].map(|index| MsrEntry::new(index, 6));
        ensure!(vm.set_msrs(0, state, &entries, nobody) == Ok(2), "{backend}");
        ensure!((state.sysenter_cs, state.star, state.pat) == (6, 6, PAT_POWER_ON), "{backend}");
        entries.iter_mut().for_each(|entry| entry.data = 9);
        ensure!(vm.get_msrs(0, state, &mut entries, nobody) == Ok(2), "{backend}");
        ensure!(entries.map(|entry| entry.data) == [6, 6, 9, 9], "{backend}");
        let many = [MsrEntry::new(0x174, 0); 256];
        ensure!(vm.set_msrs(0, state, &many, nobody) == Err(Errno::E2BIG), "{backend}");
        ensure!(vm.set_msrs(0, state, &many[1..], nobody) == Ok(255), "{backend}");
    }
    Ok(())
}

/// What is refused whether or not the vCPU has run, and what a failed call leaves behind.
#[test]
fn set_cpuid_before_run() -> Result<()> {
    for (backend, host) in BACKENDS {
        for (kvm, ..) in AFTER_RUN {
            let mut asked = Asked::new(backend, host, kvm, false)?;
            let old = asked.vm.get_cpuid(0);
            ensure!(asked.set(&[CpuidEntry::default(); 257]) == (Err(Errno::E2BIG), 0), "{backend} {kvm}");
            let linear_52 = asked.widths(|eax| eax & !0xff00 | 52 << 8);
            ensure!(asked.set(&linear_52) == REFUSED, "{backend} {kvm}: 52 bits of linear addresses");
            // The failing call of old had copied the table into place; v5.9 emptied it again.
            // See: KVM cpuid.c kvm_vcpu_ioctl_set_cpuid2(), commit 255cbecfe0c9
            let left = asked.vm.get_cpuid(0);
            let kept = match kvm {
                "v5.6" => left == linear_52,
                "v5.9" => left.is_empty(),
                _ => left == old,
            };
            ensure!(kept, "{backend} {kvm}: the table after that");
            // Before KVM_RUN any other table is fine, unless the release cannot tell and warns of nothing.
            let narrower = asked.widths(|eax| eax & !0xff | 36);
            ensure!(asked.set(&narrower) == DONE, "{backend} {kvm}: 36 bits");
        }
    }
    Ok(())
}

/// 0x80000008 EAX: physical bits, and what the level below can map since v6.10.
/// See: KVM commits b628cb523c65 and 6f5c9600621b
#[test]
fn supported_widths() -> Result<()> {
    for (backend, host, kvm, widths) in [
        ("vmx", "intel-52-4level", "v6.12", (52, 48)),
        ("vmx", "intel-52-4level", "v6.1", (52, 0)),
        ("vmx", "intel-52", "v6.12", (52, 52)),
        ("vmx", "intel-46", "v6.12", (46, 46)),
        ("vmx,ept=off", "intel-52", "v6.12", (52, 0)),
        ("svm", "amd-52-4level", "v6.12", (52, 0)),
        ("svm-npt", "amd-52-4level", "v6.12", (52, 48)),
        ("svm-npt", "amd-52", "v6.12", (52, 52)),
        ("svm-npt", "amd-52", "v6.9", (52, 0)),
        ("vmx,+cap-advertised-gpa", "intel-52-4level", "v6.6", (48, 0)),
    ] {
        let supported = vm(backend, host, kvm)?.supported_cpuid(&silicon_cpuid(&hosts::find(host)?));
        let eax = supported.iter().find(|e| e.function == 0x8000_0008).context("the leaf")?.eax;
        let said = (eax & 0xff, eax >> 16 & 0xff);
        ensure!(said == widths, "{backend} on {host} under {kvm}: {said:?}");
    }
    Ok(())
}

/// The root's levels follow host and guest: PWL5 is 0x20, PWL4 0x18, with accessed and dirty bits 0x40 and write-back 6.
/// See: KVM mmu/mmu.c kvm_mmu_get_tdp_level(), vmx/vmx.c construct_eptp()
#[test]
fn ept_pointer() -> Result<()> {
    for (backend, host, phys_bits, bits) in [
        ("vmx", "intel-52", 52, 0x66),
        ("vmx", "intel-52", 49, 0x66),
        ("vmx", "intel-52", 48, 0x5e),
        ("vmx", "intel-52-4level", 52, 0x5e),
        ("vmx", "intel-46", 46, 0x5e),
        ("vmx,eptad=off", "intel-46", 46, 0x1e),
    ] {
        let mut vm = vm(backend, host, "v6.12")?;
        let (mut state, mut nobody) = (VcpuState::reset(), Nobody::default());
        ensure!(vm.query(0, Query::EPTP) == Err(Errno::ENOENT));
        vm.create_vcpu(0).map_err(|e| anyhow!("{e:?}"))?;
        let table = cpuid(&*vm, host, phys_bits)?;
        ensure!(vm.set_cpuid(0, &mut state, &table, &mut nobody) == Ok(()));
        ensure!(vm.query(0, Query::EPTP) == Err(Errno::ENOENT), "no root before the first entry");
        vm.enter(0, &mut state, &mut nobody);
        let eptp = vm.query(0, Query::EPTP).map_err(|e| anyhow!("{e:?}"))?;
        ensure!(eptp & 0xfff == bits && eptp >> 12 != 0, "{backend} on {host}, {phys_bits} bits: {eptp:#x}");
    }
    Ok(())
}

/// Memory beyond the host's width is refused; beyond what four levels map it is not.
/// See: KVM x86.c kvm_arch_prepare_memory_region(), mmu.h kvm_mmu_max_gfn()
#[test]
fn memory_slots_end_at_the_host_s_width() -> Result<()> {
    for (backend, host, gpa, expected) in [
        ("vmx", "intel-46", 1 << 46, Err(Errno::EINVAL)),
        ("vmx", "intel-46", 1 << 45, Ok(())),
        ("svm-npt", "amd-48", 1 << 48, Err(Errno::EINVAL)),
        ("vmx", "intel-52-4level", 1 << 48, Ok(())),
        ("svm-npt", "amd-52-4level", 1 << 48, Ok(())),
        ("svm", "amd-48", 1 << 50, Ok(())),
    ] {
        let region = MemoryRegion { slot: 7, gpa, size: 1 << 21, ..Default::default() };
        let said = vm(backend, host, "v6.12")?.set_memory_region(&region, &mut Nobody::default());
        ensure!(said == expected, "{backend} on {host} at {gpa:#x}: {said:?}");
    }
    Ok(())
}

/// Before commit 86931ff7207b nobody looked at the width; bisecting releases finds it.
#[test]
fn slots_beyond_the_host_s_width_by_release() -> Result<()> {
    for (backend, host, release, expected) in [
        ("vmx", "intel-46", "v5.6", Ok(())),
        ("vmx", "intel-39", "v5.17", Ok(())),
        ("vmx", "intel-46", "v5.18", Err(Errno::EINVAL)),
        ("svm-npt", "amd-40", "v5.17", Ok(())),
        ("svm-npt", "amd-40", "v5.18", Err(Errno::EINVAL)),
        ("vmx,-gfn-within-host", "intel-46", "v6.12", Ok(())),
        ("vmx,+gfn-within-host", "intel-46", "v5.15", Err(Errno::EINVAL)),
    ] {
        let region = MemoryRegion { slot: 3, gpa: 1 << 46, size: 4096, ..Default::default() };
        let said = vm(backend, host, release)?.set_memory_region(&region, &mut Nobody::default());
        ensure!(said == expected, "{backend} on {host}, {release}: {said:?}");
    }
    Ok(())
}

/// The ioctl that was proposed and never merged: there with its patch only.
#[test]
fn the_largest_usable_address() -> Result<()> {
    for (backend, host, value) in [
        ("vmx", "intel-52", Err(Errno::ENOTTY)),
        ("vmx,+max-usable-gpa-ioctl", "intel-52", Ok((1 << 52) - 1)),
        ("vmx,+max-usable-gpa-ioctl", "intel-52-4level", Ok((1 << 48) - 1)),
        ("vmx,ept=off,+max-usable-gpa-ioctl", "intel-52-4level", Ok((1 << 52) - 1)),
        ("svm-npt,+max-usable-gpa-ioctl", "amd-52-4level", Ok((1 << 48) - 1)),
        ("svm-npt,+max-usable-gpa-ioctl", "amd-40", Ok((1 << 40) - 1)),
    ] {
        let said = vm(backend, host, "v6.12")?.query(0, Query::MAX_USABLE_GPA);
        ensure!(said == value, "{backend} on {host}: {said:?}");
    }
    Ok(())
}
