//! A backend behind the C form answers as it would if it were called directly, and its panics stay on its side.

use std::{cell::RefCell, ffi::c_void};
use vmtape_abi::{
    Backend, BusOp, Description, DirtyGfn, EmulateRequest, EmulateStatus, Emulated, EmulatorMmu, Errno,
    FlushScope, Host, MemoryRegion, MemoryStatus, Plugin, Query, TableRow, Translation, VmConfig,
    import::Backends,
    table::{BackendTable, HostTable, RawConfig, STATUS_REFUSED, Sink},
};
use vmtape_arch::{
    access::{Access, Answer, Mapping, Verdict},
    cpuid::CpuidEntry,
    exception::{Exception, PageFaultError},
    exit::{Exit, Isa, Resume, ResumeKind},
    flag::Flag,
    host::{Silicon, Vendor},
    level::Place,
    note::{Note, NoteKind},
    sensitive::{Sensitive, SensitiveKind},
    state::{MsrEntry, StateKind},
    vcpu::VcpuState,
};

/// A backend whose answers depend on every argument, and that can be told to panic.
struct Probe {
    options: Vec<(String, String)>,
    regions: Vec<MemoryRegion>,
    cpuid: Vec<CpuidEntry>,
}

struct ProbePlugin;

impl Plugin for ProbePlugin {
    type Vm = Probe;

    fn describe() -> Description {
        let row = |id, name: &str| TableRow {
            id,
            name: name.into(),
            text: format!("text of {name}"),
            source: "source".into(),
            value: "value".into(),
            commit: "3edd68399dc1".into(),
            subject: "subject".into(),
            since: "v5.9-rc1".into(),
            until: "v5.15".into(),
            undone_by: "e7177339d7b5".into(),
            role: "role".into(),
        };
        Description {
            name: "probe".into(),
            summary: "answers what it is asked".into(),
            isa: Isa::VMX,
            vendor: Vendor::INTEL,
            rules: vec![row(1, "one"), row(2, "two")],
            capabilities: vec![row(185, "KVM_CAP_SMALLER_MAXPHYADDR")],
            ..Default::default()
        }
    }

    fn create(config: &VmConfig) -> Result<Probe, String> {
        match config.silicon.vendor {
            Vendor::INTEL => {
                Ok(Probe { options: config.options.clone(), regions: Vec::new(), cpuid: Vec::new() })
            }
            other => Err(format!("no {other} here")),
        }
    }
}

/// KVM's half of an emulation: a fault at 0xbad000, MMIO at 0xfee00000, a panic at 0xdead000.
struct ProbeMmu(Vec<(u64, u8)>);

impl EmulatorMmu for ProbeMmu {
    fn translate(
        &mut self,
        _: &VcpuState,
        access: &Access,
        host: &mut dyn Host,
    ) -> Result<Translation, Exception> {
        host.note(0, Note::PagetableWalk { address: access.gva, pferr: 0 });
        match access.gva {
            0xbad000 => Err(Exception::pf(access.gva, PageFaultError::new().with_p(true))),
            0xdead000 => panic!("translate panics"),
            gva => Ok(Translation { gpa: gva, hpa: gva, ram: (gva < 0x1000).into(), pad: [0; 7] }),
        }
    }

    fn wrote(&mut self, gpa: u64, len: u8, _: &mut dyn Host) {
        self.0.push((gpa, len));
    }

    fn knows(&self, insn: &[u8]) -> bool {
        insn != [0xd9]
    }

    fn sensitive(&mut self, insn: &Sensitive) -> bool {
        insn.kind == SensitiveKind::CPUID
    }
}

impl Backend for Probe {
    fn resolved(&self) -> Vec<(String, String)> {
        self.options.clone()
    }

    fn check_extension(&self, cap: u32) -> i64 {
        i64::from(cap) - 200
    }

    fn query(&self, vcpu: u32, what: Query) -> Result<u64, Errno> {
        match what {
            Query::LAST_VMENTRY_CPU => Ok(u64::MAX - u64::from(vcpu)),
            Query::EPTP => Err(Errno::ENOENT),
            _ => Err(Errno::ENOTTY),
        }
    }

    fn supported_cpuid(&self, silicon: &[CpuidEntry]) -> Vec<CpuidEntry> {
        silicon.iter().map(|e| CpuidEntry { eax: e.eax + 1, ..*e }).collect()
    }

    fn set_memory_region(&mut self, region: &MemoryRegion, host: &mut dyn Host) -> Result<(), Errno> {
        if region.size == 7 {
            return Err(Errno::EINVAL);
        }
        host.flush_tlb(3, FlushScope::GPA, region.gpa);
        self.regions.push(*region);
        Ok(())
    }

    fn create_vcpu(&mut self, vcpu: u32) -> Result<(), Errno> {
        if vcpu == 0 { Ok(()) } else { Err(Errno::EBUSY) }
    }

    fn set_cpuid(
        &mut self,
        _: u32,
        _: &mut VcpuState,
        entries: &[CpuidEntry],
        _: &mut dyn Host,
    ) -> Result<(), Errno> {
        self.cpuid = entries.to_vec();
        Ok(())
    }

    fn enable_cap(&mut self, cap: u32, flags: u32, arg: u64) -> Result<(), Errno> {
        if (cap, flags, arg) == (168, 1, 2) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn get_dirty_log(&mut self, slot: u32, _: &mut dyn Host) -> Result<Vec<u64>, Errno> {
        if slot == 3 { Ok(vec![1 << 63, 7]) } else { Err(Errno::ENOENT) }
    }

    fn clear_dirty_log(
        &mut self,
        slot: u32,
        first: u64,
        pages: u32,
        bits: &[u64],
        _: &mut dyn Host,
    ) -> Result<(), Errno> {
        if (slot, first, pages, bits) == (3, 64, 65, &[5, 1]) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn harvest_dirty_ring(&mut self, vcpu: u32, _host: &mut dyn Host) -> Result<Vec<DirtyGfn>, Errno> {
        Ok(vec![DirtyGfn { flags: 2, slot: vcpu, offset: 1 << 40 }])
    }

    fn reset_dirty_rings(&mut self, _: &mut dyn Host) -> Result<u32, Errno> {
        Ok(u32::MAX)
    }

    fn get_cpuid(&self, _: u32) -> Vec<CpuidEntry> {
        self.cpuid.clone()
    }

    fn msr_index_list(&self, silicon: &[CpuidEntry]) -> Vec<u32> {
        silicon.iter().map(|entry| entry.eax).collect()
    }

    fn msr_feature_index_list(&self) -> Vec<u32> {
        vec![0x8b]
    }

    fn get_msrs(
        &mut self,
        _: u32,
        state: &mut VcpuState,
        entries: &mut [MsrEntry],
        _: &mut dyn Host,
    ) -> Result<u32, Errno> {
        let known = entries.iter_mut().take_while(|entry| entry.index == 0x1b);
        Ok(known.map(|entry| entry.data = state.rip).count() as u32)
    }

    fn set_msrs(
        &mut self,
        _: u32,
        state: &mut VcpuState,
        entries: &[MsrEntry],
        _: &mut dyn Host,
    ) -> Result<u32, Errno> {
        if entries.len() > 2 {
            return Err(Errno::E2BIG);
        }
        state.gpr[1] = entries.iter().map(|entry| entry.data + u64::from(entry.index)).sum();
        Ok(entries.len() as u32)
    }

    fn get_state(
        &mut self,
        _: u32,
        state: &mut VcpuState,
        kind: StateKind,
        _: &mut dyn Host,
    ) -> Result<Vec<u8>, Errno> {
        if kind == StateKind::LAPIC { Err(Errno::ENOTTY) } else { Ok(state.rip.to_le_bytes().to_vec()) }
    }

    fn set_state(
        &mut self,
        _: u32,
        state: &mut VcpuState,
        _: StateKind,
        bytes: &[u8],
        _: &mut dyn Host,
    ) -> Result<(), Errno> {
        let bytes = bytes.try_into().map_err(|_| Errno::EINVAL)?;
        state.gpr[3] = u64::from_le_bytes(bytes);
        Ok(())
    }

    fn state_changed(&mut self, vcpu: u32, state: &mut VcpuState, _: &mut dyn Host) {
        state.gpr[2] = u64::from(vcpu);
    }

    fn save(&self) -> Vec<u8> {
        vec![1, 2, 3]
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), Errno> {
        if saved == [1, 2, 3] { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn access(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        access: &Access,
        host: &mut dyn Host,
        exit: &mut Exit,
    ) -> Answer {
        if access.gva == 0xdead000 {
            panic!("access panics on vcpu {vcpu}");
        }
        let mut entry = [0; 8];
        if !host.read(access.gva, &mut entry) {
            exit.gpa = access.gva;
            return Answer { verdict: Verdict::EXIT, ..Default::default() };
        }
        assert_eq!(host.cmpxchg(access.gva, u64::from_le_bytes(entry), 7, 8), Some(true));
        state.cr2 = u64::from_le_bytes(entry);
        Answer {
            mapping: Mapping { gpa: access.gva, write: access.user, ..Default::default() },
            ..Default::default()
        }
    }

    fn sensitive(
        &mut self,
        _: u32,
        _: &mut VcpuState,
        insn: &Sensitive,
        _: &mut dyn Host,
        _: &mut Exit,
        fault: &mut Exception,
    ) -> Verdict {
        *fault = Exception::gp(insn.number);
        Verdict::FAULT
    }

    fn exception(
        &mut self,
        _: u32,
        _: &mut VcpuState,
        exception: &Exception,
        _: &mut dyn Host,
        exit: &mut Exit,
    ) -> Verdict {
        exit.exception = *exception;
        Verdict::EXIT
    }

    fn enter(&mut self, vcpu: u32, _: &mut VcpuState, host: &mut dyn Host) -> Resume {
        let mut resume = Resume::GUEST;
        resume.data[0] = host.interrupt(vcpu, true).map_or(999, u64::from);
        resume.data[1] = host.fault_point(vcpu, 5, 0x1234, 6).unwrap_or(0) + u64::from(host.wants_faults());
        resume.data[2] = host.nmi(vcpu, false).into();
        resume.data[3] = host.wants(NoteKind::MSR).into();
        resume
    }

    fn handle_exit(&mut self, vcpu: u32, state: &mut VcpuState, exit: &Exit, host: &mut dyn Host) -> Resume {
        let mut mmu = ProbeMmu(Vec::new());
        let request = EmulateRequest { gva: exit.gva, ..Default::default() };
        let done = host.emulate(vcpu, state, &request, &mut mmu);
        let mut op = BusOp { address: 0x3f8, ..Default::default() };
        let claimed = host.bus(vcpu, &mut op);
        let mut resume = Resume::GUEST;
        resume.data = [
            done.status.0.into(),
            done.fault.payload,
            mmu.0.len() as u64,
            op.data,
            claimed.into(),
            mmu.0.first().map_or(0, |w| w.0),
        ];
        resume
    }
}

/// A host with one page of RAM that keeps what it is told.
#[derive(Default)]
struct FakeHost {
    ram: Vec<u8>,
    told: RefCell<Vec<String>>,
    panics: bool,
}

impl Host for FakeHost {
    fn try_read(&mut self, hpa: u64, buf: &mut [u8]) -> MemoryStatus {
        assert!(!self.panics, "the host panics");
        let Some(from) = self.ram.get(hpa as usize..hpa as usize + buf.len()) else {
            return MemoryStatus::REFUSED;
        };
        buf.copy_from_slice(from);
        MemoryStatus::READY
    }

    fn try_write(&mut self, _: u64, _: &[u8]) -> MemoryStatus {
        MemoryStatus::REFUSED
    }

    fn try_cmpxchg(&mut self, hpa: u64, _: u64, new: u64, size: u8) -> MemoryStatus {
        self.ram[hpa as usize..][..size as usize].copy_from_slice(&new.to_le_bytes());
        MemoryStatus::READY
    }

    fn fault_in(&mut self, hpa: u64, size: u64) -> MemoryStatus {
        self.told.borrow_mut().push(format!("fault in {hpa:#x} {size:#x}"));
        MemoryStatus::MISSING
    }

    fn resident(&self, _: u64, size: u64) -> u64 {
        size / 2
    }

    fn flush_tlb(&mut self, vcpu: u32, scope: FlushScope, address: u64) {
        self.told.borrow_mut().push(format!("flush {vcpu} {scope} {address:#x}"));
    }

    fn emulate(
        &mut self,
        _: u32,
        state: &mut VcpuState,
        request: &EmulateRequest,
        mmu: &mut dyn EmulatorMmu,
    ) -> Emulated {
        assert!(mmu.knows(&[0x90]) && !mmu.knows(&[0xd9]));
        let insn = |kind| Sensitive { kind, ..Default::default() };
        assert!(mmu.sensitive(&insn(SensitiveKind::CPUID)) && !mmu.sensitive(&insn(SensitiveKind::HLT)));
        match mmu.translate(state, &Access { gva: request.gva, ..Default::default() }, self) {
            Ok(found) => {
                mmu.wrote(found.gpa, 4, self);
                Emulated::default()
            }
            Err(fault) => Emulated { status: EmulateStatus::FAULT, fault, ..Default::default() },
        }
    }

    fn bus(&mut self, _: u32, op: &mut BusOp) -> bool {
        op.data = op.address * 2;
        true
    }

    fn interrupt(&mut self, _: u32, ack: bool) -> Option<u8> {
        ack.then_some(0x20)
    }

    fn nmi(&mut self, _: u32, ack: bool) -> bool {
        !ack
    }

    fn init(&mut self, vcpu: u32) -> bool {
        vcpu == 0
    }

    fn smi(&mut self, vcpu: u32, ack: bool) -> bool {
        vcpu == 1 && ack
    }

    fn note_at(&mut self, vcpu: u32, place: Place, note: Note) {
        let place =
            if place == Place::L1 { String::new() } else { format!("{} {} ", place.level, place.dimension) };
        self.told.borrow_mut().push(format!("{vcpu} {place}{note:?}"));
    }

    fn wants(&self, kind: NoteKind) -> bool {
        kind == NoteKind::MSR
    }

    fn log(&mut self, level: u32, text: &str) {
        self.told.borrow_mut().push(format!("log {level} {text}"));
    }

    fn wants_faults(&self) -> bool {
        true
    }

    fn fault_point(&mut self, _: u32, id: u32, a: u64, b: u64) -> Option<u64> {
        ((id, a, b) == (5, 0x1234, 6)).then_some(54)
    }
}

fn backends() -> Backends {
    static TABLE: BackendTable = vmtape_abi::export::table::<ProbePlugin>("probe 1");
    extern "C" fn entry() -> *const BackendTable {
        &TABLE
    }
    // SAFETY: the entry gives the table that the export module made.
    // UNSAFETY: the test calls a table as a host does.
    #[expect(unsafe_code)]
    unsafe { Backends::handshake(entry) }.unwrap()
}

fn silicon(vendor: Vendor) -> Silicon {
    Silicon {
        vendor,
        phys_bits: 46,
        host_levels: 4,
        ept_levels: 4,
        gbpages: true.into(),
        ept_ad: true.into(),
        ept_advanced: false.into(),
        apicv: false.into(),
        nrips: false.into(),
        decode_assists: false.into(),
        backing_shift: 12,
        rmw_reads_first: false.into(),
        encryption_bits: 0,
        vgif: false.into(),
        vls: false.into(),
        vnmi: false.into(),
    }
}

fn vm() -> Box<dyn Backend> {
    let options = vec![("kvm".to_owned(), "v6.12".to_owned()), ("+patch".to_owned(), String::new())];
    backends().create(&VmConfig { silicon: silicon(Vendor::INTEL), options }).unwrap()
}

#[test]
fn description_and_refusal_cross() {
    let backends = backends();
    assert_eq!(backends.describe(), Ok(ProbePlugin::describe()));
    assert_eq!(backends.build(), "probe 1");
    let refused = backends.create(&VmConfig { silicon: silicon(Vendor::AMD), options: Vec::new() });
    assert_eq!(refused.err().as_deref(), Some("no amd here"));
}

/// What the plugin's `create` says to a host with this table.
// UNSAFETY: the test calls a table as a host does.
#[expect(unsafe_code)]
fn refusal_of(host: *const HostTable) -> String {
    unsafe extern "C" fn keep(ctx: *mut c_void, items: *const u8, count: usize) {
        // SAFETY: the context is the vector below, the items are as many bytes.
        unsafe { (*ctx.cast::<Vec<u8>>()).extend(std::slice::from_raw_parts(items, count)) }
    }
    let (mut vm, mut said) = (std::ptr::null_mut(), Vec::<u8>::new());
    let silicon = silicon(Vendor::INTEL);
    let config = RawConfig { host, silicon: &silicon, options: std::ptr::null(), options_len: 0 };
    let table = vmtape_abi::export::table::<ProbePlugin>("probe 1");
    // SAFETY: everything that is passed lives until the call returns.
    let status = unsafe { (table.create)(&config, &mut vm, Sink { ctx: (&raw mut said).cast(), put: keep }) };
    assert_eq!((status, vm.is_null()), (STATUS_REFUSED, true));
    String::from_utf8(said).unwrap()
}

#[test]
fn a_host_without_what_the_backend_needs_is_refused() {
    let table = |version, size| [version, size, 0, 0, 0, 0, 0, 0];
    let other = table(3, 0);
    assert!(refusal_of(other.as_ptr().cast()).contains("version 3"));
    for size in [0, 8, 24] {
        let small = table(2, size);
        let said = refusal_of(small.as_ptr().cast());
        assert!(said.contains(&format!("its table of {size} bytes ends before `try_read`")), "{said}");
    }
    assert!(refusal_of(table(2, 32).as_ptr().cast()).contains("`try_read` of its table is null"));
    assert!(refusal_of(std::ptr::null()).contains("the host does not fit this backend"));
}

#[test]
fn control_calls_cross() {
    let (mut vm, mut host, mut state) = (vm(), FakeHost::default(), VcpuState::reset());
    assert_eq!(vm.resolved()[1], ("+patch".into(), String::new()));
    assert_eq!(vm.check_extension(185), -15);
    assert_eq!(vm.query(3, Query::LAST_VMENTRY_CPU), Ok(u64::MAX - 3));
    assert_eq!(vm.query(0, Query::EPTP), Err(Errno::ENOENT));
    assert_eq!(vm.query(0, Query(77)), Err(Errno::ENOTTY));
    let entries = [CpuidEntry { function: 1, eax: 9, ..Default::default() }];
    assert_eq!(vm.supported_cpuid(&entries)[0].eax, 10);
    assert_eq!(vm.set_cpuid(0, &mut state, &entries, &mut host), Ok(()));
    assert_eq!(vm.get_cpuid(0), entries);
    let region = MemoryRegion { gpa: 0x1000, size: 7, ..Default::default() };
    assert_eq!(vm.set_memory_region(&region, &mut host), Err(Errno::EINVAL));
    assert_eq!(vm.set_memory_region(&MemoryRegion { size: 8, ..region }, &mut host), Ok(()));
    assert_eq!(host.told.take(), ["flush 3 gpa 0x1000"]);
    assert_eq!((vm.enable_cap(168, 1, 2), vm.enable_cap(168, 0, 2)), (Ok(()), Err(Errno::EINVAL)));
    assert_eq!(vm.get_dirty_log(3, &mut host), Ok(vec![1 << 63, 7]));
    assert_eq!(vm.get_dirty_log(4, &mut host), Err(Errno::ENOENT));
    assert_eq!(vm.clear_dirty_log(3, 64, 65, &[5, 1], &mut host), Ok(()));
    let harvested = DirtyGfn { flags: 2, slot: 1, offset: 1 << 40 };
    assert_eq!(vm.harvest_dirty_ring(1, &mut host), Ok(vec![harvested]));
    assert_eq!(vm.reset_dirty_rings(&mut host), Ok(u32::MAX));
    assert_eq!(vm.create_vcpu(1), Err(Errno::EBUSY));
    assert_eq!(vm.get_msr(0, &mut state, 0x1b, &mut host), Ok(0xfff0));
    assert_eq!(vm.get_msr(0, &mut state, 0x1c, &mut host), Err(Errno::EINVAL));
    assert_eq!(vm.set_msr(0, &mut state, 2, 40, &mut host), Ok(()));
    let mut some = [0x1b, 0x1b, 0x1c, 0x1b].map(|index| MsrEntry::new(index, 7));
    assert_eq!(vm.get_msrs(0, &mut state, &mut some, &mut host), Ok(2), "up to the first that is refused");
    assert_eq!(some.map(|entry| entry.data), [0xfff0, 0xfff0, 7, 7]);
    assert_eq!(vm.set_msrs(0, &mut state, &some, &mut host), Err(Errno::E2BIG));
    let regs = vm.get_state(0, &mut state, StateKind::REGS, &mut host).unwrap();
    assert_eq!(vm.set_state(0, &mut state, StateKind::REGS, &regs, &mut host), Ok(()));
    assert_eq!(state.gpr[3], 0xfff0);
    assert_eq!(vm.set_state(0, &mut state, StateKind::REGS, &regs[1..], &mut host), Err(Errno::EINVAL));
    assert_eq!(vm.get_state(0, &mut state, StateKind::LAPIC, &mut host), Err(Errno::ENOTTY));
    assert_eq!(vm.msr_index_list(&entries), [9]);
    assert_eq!(vm.msr_feature_index_list(), [0x8b]);
    vm.state_changed(9, &mut state, &mut host);
    assert_eq!((state.gpr[1], state.gpr[2]), (42, 9));
    assert_eq!(vm.restore(&vm.save()), Ok(()));
    assert_eq!(vm.restore(&[]), Err(Errno::EINVAL));
}

#[test]
fn silicon_and_kvm_calls_cross() {
    let (mut vm, mut state) = (vm(), VcpuState::reset());
    let mut host = FakeHost { ram: vec![3; 0x1000], ..Default::default() };
    let (mut exit, mut fault) = (Exit::default(), Exception::default());
    let access = Access { gva: 0x10, user: true.into(), ..Default::default() };
    let answer = vm.access(0, &mut state, &access, &mut host, &mut exit);
    assert_eq!(
        (answer.verdict, answer.mapping.gpa, answer.mapping.write),
        (Verdict::NATIVE, 0x10, Flag::YES)
    );
    assert_eq!((state.cr2, host.ram[0x10]), (0x0303_0303_0303_0303, 7));
    let outside = Access { gva: 0x5000, ..Default::default() };
    assert_eq!(vm.access(0, &mut state, &outside, &mut host, &mut exit).verdict, Verdict::EXIT);
    assert_eq!(exit.gpa, 0x5000);
    let insn = Sensitive { number: 8, ..Default::default() };
    assert_eq!(vm.sensitive(0, &mut state, &insn, &mut host, &mut exit, &mut fault), Verdict::FAULT);
    assert_eq!(fault, Exception::gp(8));
    assert_eq!(vm.exception(0, &mut state, &fault, &mut host, &mut exit), Verdict::EXIT);
    assert_eq!(exit.exception, fault);
    assert_eq!(vm.enter(0, &mut state, &mut host).data, [0x20, 55, 1, 1, 0, 0]);
}

#[test]
fn an_emulation_calls_back() {
    let (mut vm, mut host, mut state) = (vm(), FakeHost::default(), VcpuState::reset());
    let exit = Exit { gva: 0x40, ..Default::default() };
    let done = vm.handle_exit(0, &mut state, &exit, &mut host);
    assert_eq!(done.data, [0, 0, 1, 0x7f0, 1, 0x40]);
    assert_eq!(host.told.take(), ["0 PagetableWalk { address: 64, pferr: 0 }"]);
    let fault = vm.handle_exit(0, &mut state, &Exit { gva: 0xbad000, ..exit }, &mut host);
    assert_eq!(fault.data[..2], [EmulateStatus::FAULT.0.into(), 0xbad000]);
}

#[test]
fn a_panic_poisons_the_vm_and_is_told_once() {
    let (mut vm, mut host, mut state) = (vm(), FakeHost::default(), VcpuState::reset());
    let access = Access { gva: 0xdead000, ..Default::default() };
    let answer = vm.access(4, &mut state, &access, &mut host, &mut Exit::default());
    assert_eq!(answer.verdict, Verdict::EXIT);
    let resume = vm.handle_exit(4, &mut state, &Exit::default(), &mut host);
    assert_eq!(resume.kind, ResumeKind::BACKEND_FAILED);
    assert_eq!(vm.create_vcpu(0), Err(Errno::EIO));
    assert_eq!(host.told.take(), ["log 1 the backend failed: it panicked: access panics on vcpu 4"]);
}

#[test]
fn a_panic_below_an_emulation_reaches_the_outer_call() {
    let (mut vm, mut host, mut state) = (vm(), FakeHost::default(), VcpuState::reset());
    let exit = Exit { gva: 0xdead000, ..Default::default() };
    assert_eq!(vm.handle_exit(0, &mut state, &exit, &mut host).kind, ResumeKind::BACKEND_FAILED);
    assert!(host.told.borrow().last().unwrap().ends_with("it panicked: translate panics"));
}

#[test]
fn a_panic_of_the_host_passes_through() {
    let (mut vm, mut state) = (vm(), VcpuState::reset());
    let mut host = FakeHost { panics: true, ..Default::default() };
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        vm.access(0, &mut state, &Access::default(), &mut host, &mut Exit::default())
    }));
    assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"the host panics"));
    assert_eq!(vm.create_vcpu(0), Ok(()), "the backend is not to blame");
}
