//! The boundary in Rust words: a tape is the recorded conversation through these two traits.

use vmtape_arch::{
    access::{Access, Answer, Verdict},
    cpuid::CpuidEntry,
    exception::Exception,
    exit::{Exit, Resume},
    flag::Flag,
    layout,
    level::Place,
    note::{Note, NoteKind},
    open_enum,
    sensitive::Sensitive,
    state::{MsrEntry, StateKind},
    vcpu::{Intercepts, VcpuState},
};

pub use vmtape_arch::{memory::MemoryStatus, query::Query};

/// A negative errno with the kernel's number, as an ioctl returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    pub const ENOENT: Self = Self(-2);
    pub const EINTR: Self = Self(-4);
    pub const EIO: Self = Self(-5);
    pub const ENXIO: Self = Self(-6);
    pub const E2BIG: Self = Self(-7);
    pub const EFAULT: Self = Self(-14);
    pub const EBUSY: Self = Self(-16);
    pub const EEXIST: Self = Self(-17);
    pub const EINVAL: Self = Self(-22);
    pub const ENOTTY: Self = Self(-25);
}

/// Addresses every vCPU in [`Host::flush_tlb`], and none in particular in [`Host::fault_point`].
pub const ALL_VCPUS: u32 = u32::MAX;

open_enum! {
    /// How much of a host TLB to drop.
    pub struct FlushScope(u32) {
        /// Everything of the vCPU.
        ALL = 0 => "all",
        /// Everything but global entries.
        NON_GLOBAL = 1 => "non-global",
        /// The page that holds a linear address.
        GVA = 2 => "gva",
        /// Every entry that maps the page at a guest physical address.
        GPA = 3 => "gpa",
    }
}

open_enum! {
    /// Who is asked for a device register.
    pub struct BusSpace(u32) {
        /// KVM's in-kernel devices (PIC, PIT, I/O APIC, local APIC).
        KERNEL_PIO = 0 => "kernel pio",
        KERNEL_MMIO = 1 => "kernel mmio",
        /// The VMM: completes at once; unclaimed reads give all ones.
        USER_PIO = 2 => "user pio",
        USER_MMIO = 3 => "user mmio",
        /// MSRs that an in-kernel device owns: APIC_BASE, x2APIC, TSC_DEADLINE. `address` is the MSR.
        MSR = 4 => "msr",
        /// The end of the vCPU's highest interrupt in service, for silicon that ends it without an exit. A read gives its
        /// vector if a device must hear of it (the vector's bit in the EOI-exit bitmap), else 0. A write tells the
        /// device that silicon has ended the interrupt with the vector `data`.
        EOI = 5 => "eoi",
        /// An interrupt that KVM itself sends to the local APIC with the x2APIC identifier `address`: a write of the ICR's lower
        /// half. Claimed: the APIC has accepted it.
        INTERRUPT = 6 => "interrupt",
    }
}

/// One device access. `data` holds the value written, or receives the value read.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BusOp {
    pub space: BusSpace,
    pub write: Flag,
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    pub pad: u16,
    pub address: u64,
    pub data: u64,
}

layout!(BusOp: 24, write: 4, size: 5, address: 8, data: 16);

/// `EmulateRequest::flags`, KVM's EMULTYPE_* with the kernel's meaning.
pub mod emultype {
    /// EMULTYPE_SKIP: decode, advance RIP, do nothing else.
    pub const SKIP: u32 = 1 << 1;
    /// EMULTYPE_TRAP_UD: from a #UD; inject #UD again if it is one.
    pub const TRAP_UD: u32 = 1 << 3;
    /// EMULTYPE_TRAP_UD_FORCED: from a #UD of the prefix that asks for emulation, which RIP is behind; inject #UD if the
    /// instruction is unknown.
    pub const TRAP_UD_FORCED: u32 = 1 << 4;
    /// EMULTYPE_PF: `gpa` is the exit's address. `EmulatorMmu::translate` knows it and does not walk again for an
    /// operand with the same page offset.
    pub const PF: u32 = 1 << 6;
    /// `enable_vmware_backdoor`: the ports and counters of VMware's backdoor are open at every CPL.
    pub const VMWARE_BACKDOOR: u32 = 1 << 30;
    /// `insn` holds the instruction: the silicon delivered its bytes, so nothing is fetched.
    pub const HAS_BYTES: u32 = 1 << 31;
}

/// What KVM's emulator is asked to do (`x86_emulate_instruction`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmulateRequest {
    pub flags: u32,
    pub insn_len: u8,
    pub insn: [u8; 15],
    pub pad: u32,
    /// EMULTYPE_PF: the exit's linear address (shadow paging) and guest physical address.
    pub gva: u64,
    pub gpa: u64,
    /// What [`EmulatorMmu::sensitive`] is asked about: kinds of instructions and control registers.
    pub intercepts: Intercepts,
}

layout!(EmulateRequest: 64, insn_len: 4, insn: 5, gva: 24, gpa: 32, intercepts: 40);

open_enum! {
    /// How an emulation ended.
    pub struct EmulateStatus(u32) {
        /// Executed; registers, RIP and memory are updated.
        DONE = 0 => "done",
        /// The guest is to take `fault`; nothing was changed.
        FAULT = 1 => "fault",
        /// The emulator does not know the instruction or cannot fetch it.
        UNHANDLEABLE = 2 => "unhandleable",
        /// [`EmulatorMmu::sensitive`] keeps the instruction for the backend; nothing was changed.
        SENSITIVE = 3 => "sensitive",
    }
}

/// The result of an emulation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Emulated {
    pub status: EmulateStatus,
    pub insn_len: u8,
    pub insn: [u8; 15],
    /// An access went to userspace (it is complete: the devices answered).
    pub user_mmio: Flag,
    /// Bytes of `insn` that were fetched; of them `insn_len` are the instruction.
    pub fetched: u8,
    pub pad: [u8; 2],
    pub fault: Exception,
}

layout!(Emulated: 40, insn_len: 4, user_mmio: 20, fetched: 21, fault: 24);

/// Where an emulated access goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    pub gpa: u64,
    /// Valid if `ram`.
    pub hpa: u64,
    /// False: the gpa is in no memory slot, the access is MMIO.
    pub ram: Flag,
    pub pad: [u8; 7],
}

layout!(Translation: 24, hpa: 8, ram: 16);

/// The calls of [`EmulatorMmu`].
macro_rules! mmu_calls {
    ($then:ident! $($before:tt)*) => {
        $then! { $($before)*
            /// Translates one linear access with the walk that KVM would use here. `host` is the one to use: the one that
            /// `emulate` was called on is busy until it returns, and answers STATUS_BUSY.
            fn translate(
                &mut self,
                state: &VcpuState,
                access: &Access,
                host: &mut dyn Host,
            ) -> Result<Translation, Exception>;

            /// Guest memory was written (`kvm_page_track_write`); called after the bytes are in memory.
            fn wrote(&mut self, gpa: u64, len: u8, host: &mut dyn Host);

            /// Whether KVM's emulator knows the instruction (bytes from the first prefix on).
            fn knows(&self, insn: &[u8]) -> bool {
                let _ = insn;
                true
            }

            /// An instruction that `EmulateRequest.intercepts` asks for is about to be executed: its operands are read, and what
            /// faults before an intercept has not. True: it is the backend's affair, and the emulation ends with SENSITIVE.
            fn sensitive(&mut self, insn: &Sensitive) -> bool {
                let _ = insn;
                false
            }
        }
    };
}

mmu_calls! { contract_trait! (
    /// The backend's side of an emulation: KVM's software walk, and its reaction to writes of page tables.
    EmulatorMmu
) }

/// The calls of [`Host`].
macro_rules! host_calls {
    ($then:ident! $($before:tt)*) => {
        $then! { $($before)*
            /// Reads host physical memory if all of it is there. Reads are the exit's stimulus, so they go through this call.
            fn try_read(&mut self, hpa: u64, buf: &mut [u8]) -> MemoryStatus;

            /// Writes host physical memory if all of it is there, drops decoded code and marks the page dirty.
            fn try_write(&mut self, hpa: u64, data: &[u8]) -> MemoryStatus;

            /// Compares and exchanges `size` (4 or 8) bytes if they are there.
            fn try_cmpxchg(&mut self, hpa: u64, old: u64, new: u64, size: u8) -> MemoryStatus;

            /// Waits until every page of a range is there, as `get_user_pages` does. It is asked before a page is mapped for
            /// the guest: a mapping leads to memory that is there.
            fn fault_in(&mut self, hpa: u64, size: u64) -> MemoryStatus;

            /// How many bytes from `hpa` on are there without a wait, `size` at most (`get_user_pages_fast_only`).
            fn resident(&self, hpa: u64, size: u64) -> u64;

            /// Drops translations of one vCPU or of [`ALL_VCPUS`].
            fn flush_tlb(&mut self, vcpu: u32, scope: FlushScope, address: u64);

            /// KVM's instruction emulator, with the interpreter doing the work and `mmu` translating every access.
            fn emulate(
                &mut self,
                vcpu: u32,
                state: &mut VcpuState,
                request: &EmulateRequest,
                mmu: &mut dyn EmulatorMmu,
            ) -> Emulated;

            /// Accesses a device. False: nobody claimed it (an unclaimed userspace read still fills `data` with ones).
            fn bus(&mut self, vcpu: u32, op: &mut BusOp) -> bool;

            /// The highest pending interrupt that the vCPU's APIC or PIC would deliver now; `ack` takes it. Zero without `ack`: the
            /// PIC's, whose vector is known only once it is taken.
            fn interrupt(&mut self, vcpu: u32, ack: bool) -> Option<u8>;

            /// Whether an NMI is pending; `ack` takes it.
            fn nmi(&mut self, vcpu: u32, ack: bool) -> bool;

            /// Whether an INIT is pending. The host takes it as soon as `interruptibility` does not hold it back.
            fn init(&mut self, vcpu: u32) -> bool;

            /// Whether an SMI is pending; `ack` takes it. The host drops one that still is when the guest is entered, unless
            /// `interruptibility` holds it back: as a firmware does that has nothing to do.
            fn smi(&mut self, vcpu: u32, ack: bool) -> bool;

            /// Puts a note on the tape, with the level that ran and, for a step of a walk, its dimension.
            fn note_at(&mut self, vcpu: u32, place: Place, note: Note);

            /// Whether notes of this kind are wanted; a backend may skip building those that are not.
            fn wants(&self, kind: NoteKind) -> bool;

            /// Logs a line; 1 error ... 5 trace.
            fn log(&mut self, level: u32, text: &str);

            /// Whether a fault point may answer in this run: a backend need not ask any if not.
            fn wants_faults(&self) -> bool;

            /// A place where a fault plan may answer otherwise. `None`: go on. The row of the point in the backend's table says
            /// what `a` and `b` are, and what an answer means. What is about no vCPU has [`ALL_VCPUS`].
            fn fault_point(&mut self, vcpu: u32, id: u32, a: u64, b: u64) -> Option<u64>;
        }
    };
}

host_calls! { contract_trait! (
    /// Services of the host. Host physical addresses are those of [`MemoryRegion::hpa`]; every one of them that the backend
    /// passes must lie in a registered region, or the call reports failure.
    Host {
        /// Puts a note of L1's own on the tape.
        fn note(&mut self, vcpu: u32, note: Note) {
            self.note_at(vcpu, Place::L1, note);
        }

        /// Reads host physical memory, waiting for what has not arrived (`copy_from_user`). False: -EFAULT.
        fn read(&mut self, hpa: u64, buf: &mut [u8]) -> bool {
            let mut status = self.try_read(hpa, buf);
            if status == MemoryStatus::MISSING && self.fault_in(hpa, buf.len() as u64) == MemoryStatus::READY {
                status = self.try_read(hpa, buf);
            }
            status == MemoryStatus::READY
        }

        /// Writes host physical memory, waiting for what has not arrived (`copy_to_user`). False: -EFAULT.
        fn write(&mut self, hpa: u64, data: &[u8]) -> bool {
            let mut status = self.try_write(hpa, data);
            if status == MemoryStatus::MISSING && self.fault_in(hpa, data.len() as u64) == MemoryStatus::READY {
                status = self.try_write(hpa, data);
            }
            status == MemoryStatus::READY
        }

        /// Compares and exchanges `size` (4 or 8) bytes, waiting for what has not arrived (`try_cmpxchg_user`). `None`:
        /// -EFAULT; `Some(false)`: memory held something else.
        fn cmpxchg(&mut self, hpa: u64, old: u64, new: u64, size: u8) -> Option<bool> {
            let mut status = self.try_cmpxchg(hpa, old, new, size);
            if status == MemoryStatus::MISSING && self.fault_in(hpa, size.into()) == MemoryStatus::READY {
                status = self.try_cmpxchg(hpa, old, new, size);
            }
            match status {
                MemoryStatus::READY => Some(true),
                MemoryStatus::CHANGED => Some(false),
                _ => None,
            }
        }

        /// Whether any page of the host's memory may not be there.
        fn is_sparse(&self) -> bool {
            self.resident(0, u64::MAX) != u64::MAX
        }

        /// 64 bits at a host physical address.
        fn read_u64(&mut self, hpa: u64) -> Option<u64> {
            let mut buf = [0; 8];
            self.read(hpa, &mut buf).then(|| u64::from_le_bytes(buf))
        }

        /// 32 bits at a host physical address.
        fn read_u32(&mut self, hpa: u64) -> Option<u32> {
            let mut buf = [0; 4];
            self.read(hpa, &mut buf).then(|| u32::from_le_bytes(buf))
        }
    }
) }

/// A memory slot (`struct kvm_userspace_memory_region`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryRegion {
    pub slot: u32,
    /// Bit 0: log dirty pages. Bit 1: read-only.
    pub flags: u32,
    pub gpa: u64,
    /// Bytes; zero deletes the slot.
    pub size: u64,
    /// Where the slot's memory lies in the host's physical address space.
    pub hpa: u64,
}

layout!(MemoryRegion: 32, flags: 4, gpa: 8, size: 16, hpa: 24);

/// An entry of a vCPU's dirty ring that userspace has harvested (`struct kvm_dirty_gfn`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirtyGfn {
    /// KVM_DIRTY_GFN_F_*; KVM_DIRTY_GFN_F_RESET once harvested.
    pub flags: u32,
    /// The slot's address space in the upper half, its number in the lower.
    pub slot: u32,
    /// The page, counted from the slot's first.
    pub offset: u64,
}

layout!(DirtyGfn: 16, slot: 4, offset: 8);

/// The calls of [`Backend`], by who answers them; `backend_calls!` are all of them.
#[macro_export]
macro_rules! backend_sections {
    ($then:ident! $($before:tt)*) => {
        $then! { $($before)*
            // In the words of the KVM ioctls, down to `cpus`.
            control {

            /// The options as resolved: profile, every patch and parameter, so that a tape never depends on a default.
            fn resolved(&self) -> Vec<(String, String)>;

            /// KVM_CHECK_EXTENSION.
            fn check_extension(&self, cap: u32) -> i64;

            /// KVM_GET_SUPPORTED_CPUID, given what the silicon's own CPUID says.
            fn supported_cpuid(&self, silicon: &[CpuidEntry]) -> Vec<CpuidEntry>;

            /// KVM_ENABLE_CAP of the VM, with its first argument.
            fn enable_cap(&mut self, cap: u32, flags: u32, arg: u64) -> Result<(), Errno> {
                let _ = (cap, flags, arg);
                Err(Errno::EINVAL)
            }

            }
            memory {

            /// KVM_SET_USER_MEMORY_REGION.
            fn set_memory_region(&mut self, region: &MemoryRegion, host: &mut dyn Host) -> Result<(), Errno>;

            /// KVM_GET_DIRTY_LOG: a bit for each page of the slot, whose address space is in the upper half of `slot`.
            fn get_dirty_log(&mut self, slot: u32, host: &mut dyn Host) -> Result<Vec<u64>, Errno> {
                let _ = (slot, host);
                Err(Errno::ENOTTY)
            }

            /// KVM_CLEAR_DIRTY_LOG; bit 0 of `bits` is the page `first`.
            fn clear_dirty_log(
                &mut self,
                slot: u32,
                first: u64,
                pages: u32,
                bits: &[u64],
                host: &mut dyn Host,
            ) -> Result<(), Errno> {
                let _ = (slot, first, pages, bits, host);
                Err(Errno::ENOTTY)
            }

            /// What userspace does with a vCPU's dirty ring that it has mapped: it takes the entries that it has not seen, and
            /// marks them. -EINVAL: there is no ring.
            fn harvest_dirty_ring(
                &mut self,
                vcpu: u32,
                host: &mut dyn Host,
            ) -> Result<Vec<DirtyGfn>, Errno> {
                let _ = (vcpu, host);
                Err(Errno::EINVAL)
            }

            /// KVM_RESET_DIRTY_RINGS: the number of harvested entries that are free again.
            fn reset_dirty_rings(&mut self, host: &mut dyn Host) -> Result<u32, Errno> {
                let _ = host;
                Err(Errno::EINVAL)
            }

            }
            vcpu {

            /// KVM_CREATE_VCPU.
            fn create_vcpu(&mut self, vcpu: u32) -> Result<(), Errno>;

            /// KVM_SET_CPUID2.
            fn set_cpuid(
                &mut self,
                vcpu: u32,
                state: &mut VcpuState,
                entries: &[CpuidEntry],
                host: &mut dyn Host,
            ) -> Result<(), Errno>;

            /// KVM_GET_CPUID2.
            fn get_cpuid(&self, vcpu: u32) -> Vec<CpuidEntry>;

            /// KVM_GET_MSR_INDEX_LIST, given what the silicon's own CPUID says: what KVM has a VMM save. Fewer registers than a
            /// guest can set (no MTRRs, no machine-check banks): a VMM adds those that it knows of.
            fn msr_index_list(&self, silicon: &[CpuidEntry]) -> Vec<u32> {
                let _ = silicon;
                Vec::new()
            }

            /// KVM_GET_MSR_FEATURE_INDEX_LIST: what defines a vCPU's model beside its CPUID.
            fn msr_feature_index_list(&self) -> Vec<u32> {
                Vec::new()
            }

            }
            state {

            /// KVM_GET_MSRS: reads registers in order, up to the first that is refused; gives how many were read.
            /// -E2BIG: 256 and more.
            fn get_msrs(
                &mut self,
                vcpu: u32,
                state: &mut VcpuState,
                entries: &mut [MsrEntry],
                host: &mut dyn Host,
            ) -> Result<u32, Errno>;

            /// KVM_SET_MSRS: writes registers in order, up to the first that is refused; gives how many were written.
            /// -E2BIG: 256 and more.
            fn set_msrs(
                &mut self,
                vcpu: u32,
                state: &mut VcpuState,
                entries: &[MsrEntry],
                host: &mut dyn Host,
            ) -> Result<u32, Errno>;

            /// KVM_GET_* of one kind of a vCPU's state: the kernel's structure, byte for byte. It shows the vCPU as after an exit.
            /// -ENOTTY: the backend does not keep it.
            fn get_state(
                &mut self,
                vcpu: u32,
                state: &mut VcpuState,
                kind: StateKind,
                host: &mut dyn Host,
            ) -> Result<Vec<u8>, Errno> {
                let _ = (vcpu, state, kind, host);
                Err(Errno::ENOTTY)
            }

            /// KVM_SET_* of one kind of a vCPU's state. What is refused (-EINVAL) changes nothing.
            fn set_state(
                &mut self,
                vcpu: u32,
                state: &mut VcpuState,
                kind: StateKind,
                bytes: &[u8],
                host: &mut dyn Host,
            ) -> Result<(), Errno> {
                let _ = (vcpu, state, kind, bytes, host);
                Err(Errno::ENOTTY)
            }

            }
            checkpoint {

            /// The host changed the state from outside (reset, INIT, SIPI, restored registers).
            fn state_changed(&mut self, vcpu: u32, state: &mut VcpuState, host: &mut dyn Host);

            /// Everything the backend keeps, so that a run goes on from here byte for byte; for the same build only.
            fn save(&self) -> Vec<u8>;

            /// The inverse of `save`, on a VM created with the same configuration, slots and vCPUs.
            fn restore(&mut self, saved: &[u8]) -> Result<(), Errno>;

            }
            cpus {

            /// `hardware_enable` on a physical CPU: VMXON or EFER.SVME. It comes before a vCPU is loaded there; with an error
            /// the CPU stays out of use.
            fn enable_cpu(&mut self, cpu: u32, host: &mut dyn Host) -> Result<(), Errno> {
                let _ = (cpu, host);
                Ok(())
            }

            /// `hardware_disable`; no vCPU is loaded there any more.
            fn disable_cpu(&mut self, cpu: u32, host: &mut dyn Host) -> Result<(), Errno> {
                let _ = (cpu, host);
                Ok(())
            }

            /// `vcpu_load`: the vCPU's thread runs on this CPU from here on. -EIO: the host has crashed, and nothing runs any
            /// more; `crash` of the CPUs follows.
            fn vcpu_load(&mut self, vcpu: u32, cpu: u32, host: &mut dyn Host) -> Result<(), Errno> {
                let _ = (vcpu, cpu, host);
                Ok(())
            }

            /// `vcpu_put`: the thread leaves its CPU.
            fn vcpu_put(&mut self, vcpu: u32, host: &mut dyn Host) -> Result<(), Errno> {
                let _ = (vcpu, host);
                Ok(())
            }

            /// An NMI of the host's while the guest of a loaded vCPU runs: NATIVE or EXIT.
            fn host_nmi(
                &mut self,
                vcpu: u32,
                state: &mut VcpuState,
                host: &mut dyn Host,
                exit: &mut Exit,
            ) -> Verdict {
                let _ = (vcpu, state, host, exit);
                Verdict::NATIVE
            }

            /// The host crashes while it runs on this CPU: the emergency path, which leaves virtualization (`kdump`).
            /// A CPU that has crashed already stays as it is.
            fn crash(&mut self, cpu: u32, host: &mut dyn Host) -> Result<(), Errno> {
                let _ = (cpu, host);
                Err(Errno::ENOTTY)
            }

            }
            silicon {

            /// Translates an access that missed the host's TLB. EXIT fills in `exit`.
            fn access(
                &mut self,
                vcpu: u32,
                state: &mut VcpuState,
                access: &Access,
                host: &mut dyn Host,
                exit: &mut Exit,
            ) -> Answer;

            /// A sensitive instruction or condition whose bit in `state.intercepts` is set.
            /// FAULT: `fault` is filled in. EXIT: `exit` is.
            fn sensitive(
                &mut self,
                vcpu: u32,
                state: &mut VcpuState,
                insn: &Sensitive,
                host: &mut dyn Host,
                exit: &mut Exit,
                fault: &mut Exception,
            ) -> Verdict;

            /// The guest is about to take an exception whose bit in `state.intercepts` is set: NATIVE or EXIT.
            fn exception(
                &mut self,
                vcpu: u32,
                state: &mut VcpuState,
                exception: &Exception,
                host: &mut dyn Host,
                exit: &mut Exit,
            ) -> Verdict;

            }
            kvm {

            /// Before the guest runs: at the first entry, after each exit, and when the host has an interrupt to deliver.
            /// Sets `state.inject` and asks for windows (`vcpu_enter_guest`). Anything but RESUME keeps the vCPU out.
            fn enter(&mut self, vcpu: u32, state: &mut VcpuState, host: &mut dyn Host) -> Resume;

            /// Handles an exit (`vmx_handle_exit`, `svm_handle_exit`).
            fn handle_exit(&mut self, vcpu: u32, state: &mut VcpuState, exit: &Exit, host: &mut dyn Host) -> Resume;

            }
            // What a backend may do without; a new call stands here, at the end.
            appended {

            /// The host takes pages back: no mapping of the range survives (`mmu_notifier_invalidate_range_start`,
            /// `kvm_unmap_gfn_range`). From here on they are there only once [`Host::fault_in`] says so.
            fn invalidate_range(&mut self, hpa: u64, size: u64, host: &mut dyn Host) {
                let _ = (hpa, size, host);
            }

            /// A value that an ioctl, an MSR of the host or debugfs would show. What is not about one vCPU ignores `vcpu`.
            /// -ENOTTY: this backend does not have it.
            fn query(&self, vcpu: u32, what: Query) -> Result<u64, Errno> {
                let _ = (vcpu, what);
                Err(Errno::ENOTTY)
            }

            /// Numbers, in decimal, and names of the fault points in the table of `describe`: a tape of another build, or of
            /// another backend, knows the same points by other numbers. Empty: they are taken by number.
            fn fault_points(&self) -> Vec<(String, String)> {
                Vec::new()
            }

            /// Silicon writes what it holds of active VMCSs back to memory, as it may do at any time, whoever that memory
            /// belongs to by then.
            fn write_back(&mut self, cpu: u32, host: &mut dyn Host) {
                let _ = (cpu, host);
            }

            }
        }
    };
}

/// All calls of [`Backend`].
macro_rules! backend_calls {
    ($($then:tt)*) => { backend_sections! { every_section! ($($then)*) } };
}

backend_calls! { contract_trait! (
    /// A VM under one backend: silicon (`access`, `sensitive`, `exception`) and KVM (everything else).
    ///
    /// `vcpu` is the index that `create_vcpu` was given. Calls never overlap.
    Backend {
        /// KVM_GET_MSRS of one register; -EINVAL where it is refused.
        fn get_msr(
            &mut self,
            vcpu: u32,
            state: &mut VcpuState,
            index: u32,
            host: &mut dyn Host,
        ) -> Result<u64, Errno> {
            let mut entry = [MsrEntry::new(index, 0)];
            match self.get_msrs(vcpu, state, &mut entry, host)? {
                1 => Ok(entry[0].data),
                _ => Err(Errno::EINVAL),
            }
        }

        /// KVM_SET_MSRS of one register; -EINVAL where it is refused.
        fn set_msr(
            &mut self,
            vcpu: u32,
            state: &mut VcpuState,
            index: u32,
            data: u64,
            host: &mut dyn Host,
        ) -> Result<(), Errno> {
            match self.set_msrs(vcpu, state, &[MsrEntry::new(index, data)], host)? {
                1 => Ok(()),
                _ => Err(Errno::EINVAL),
            }
        }
    }
) }
