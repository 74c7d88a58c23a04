//! Devices, one file each, all on virtual time: what KVM models in the kernel, and what a VMM models beside it.

mod cmos;
mod disturb;
pub(crate) mod hpet;
mod ioapic;
mod kernel;
pub mod lapic;
mod message;
mod pic;
mod pit;
pub(crate) mod pm;
mod seen;
mod testdev;
mod uart;
mod user;
pub(crate) mod vmport;

pub use disturb::TimerId;
use hpet::{Hpet, Signal};
use ioapic::IoApic;
use lapic::{ApicBase, LocalApic};
use message::{DeliveryMode, Message, Shorthand};
use pic::PicPair;
use pit::Pit;
pub use seen::Seen;
use serde::{Deserialize, Serialize};
use vmport::VmPort;
use vmtape_arch::{note::Note, state::LapicState, vcpu::VcpuState};
use vmtape_traces::event::End;

/// Local APIC identifiers must fit xAPIC mode's eight bits, without the broadcast.
pub const MAX_VCPUS: u32 = 254;

/// What a guest's devices are built for.
#[derive(Clone, Copy, Debug)]
pub struct DeviceConfig {
    pub vcpus: u32,
    pub ram: u64,
    pub has_x2apic: bool,
    pub has_tsc_deadline: bool,
    /// The highest guest physical address.
    pub max_gpa: u64,
    pub hpet: bool,
    pub vmport: bool,
    pub acpi: bool,
}

/// All devices of a machine.
#[derive(Serialize, Deserialize)]
pub struct Devices {
    pub lapics: Vec<LocalApic>,
    ioapic: IoApic,
    pic: PicPair,
    pit: Pit,
    /// Machines of old tapes have none.
    hpet: Option<Hpet>,
    /// Nor this.
    pm: Option<pm::Pm>,
    /// The guest sleeps: what wakes it, if anything does.
    #[serde(skip)]
    sleep: Option<Option<Woken>>,
    /// Nor this; it has no state of its own.
    #[serde(skip)]
    pub(crate) vmport: Option<VmPort>,
    uart: uart::Uart,
    cmos: cmos::Cmos,
    fw_cfg: testdev::FwCfg,
    test: testdev::TestDevice,
    /// The last byte written to 0xcf9, and the progress in the word "Shutdown" at 0x8900.
    reset_control: u8,
    bochs_shutdown: usize,
    /// Per vCPU, from its CPUID.
    max_gpa: Vec<u64>,
    seen: Seen,
    /// Set when something happened that running vCPUs must look at.
    kicked: bool,
    #[serde(skip)]
    ended: Option<End>,
    /// Work that `service` has to do, kept to save allocations.
    #[serde(skip)]
    messages: Vec<Message>,
    /// While an access to a local APIC is handled, the tracepoints of the interrupts that it sends.
    #[serde(skip)]
    traced: Option<Vec<Note>>,
}

/// A guest's way back from S3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Woken {
    /// When, in nanoseconds.
    pub at: u64,
    /// `Firmware_Waking_Vector`.
    pub vector: u32,
}

impl Devices {
    pub fn new(config: &DeviceConfig) -> Self {
        let lapic = |vcpu| LocalApic::new(vcpu, config.has_x2apic, config.has_tsc_deadline);
        Self {
            lapics: (0..config.vcpus).map(lapic).collect(),
            ioapic: IoApic::default(),
            pic: PicPair::default(),
            pit: Pit::new(),
            hpet: config.hpet.then(Hpet::default),
            pm: config.acpi.then(pm::Pm::default),
            sleep: None,
            vmport: config.vmport.then(|| VmPort::new(config.ram)),
            uart: uart::Uart::default(),
            cmos: cmos::Cmos::new(config.ram),
            fw_cfg: testdev::FwCfg::new(config.vcpus, config.ram),
            test: testdev::TestDevice::default(),
            reset_control: 0,
            bochs_shutdown: 0,
            max_gpa: vec![config.max_gpa; config.vcpus as usize],
            seen: Seen::default(),
            kicked: false,
            ended: None,
            messages: Vec::new(),
            traced: None,
        }
    }

    /// Whether they are those of a machine with so many vCPUs.
    pub fn fit(&self, vcpus: usize) -> bool {
        self.lapics.len() == vcpus && self.max_gpa.len() == vcpus
    }

    /// Goes on with what was saved of the same devices.
    pub fn resume(&mut self, saved: Self) {
        let vmport = self.vmport.take();
        *self = Self { vmport, ..saved };
    }

    /// The guest goes to sleep. Devices are reset, as after power-on, and the clock's alarm may wake it.
    fn suspend(&mut self, now: u64) {
        let alarm =
            self.cmos.next_alarm(now).filter(|_| self.pm.as_ref().is_some_and(pm::Pm::wakes_by_clock));
        self.sleep = Some(alarm.map(|at| Woken { at, vector: 0 }));
        self.lapics.iter_mut().for_each(LocalApic::reset);
        (self.ioapic, self.pic, self.pit) = (IoApic::default(), PicPair::default(), Pit::new());
        self.hpet = self.hpet.take().map(|_| Hpet::default());
        self.pm = Some(pm::Pm::woken());
        self.kicked = true;
    }

    /// Where the guest wants to go on, while it is asked for to sleep.
    pub fn waking_vector(&mut self) -> Option<&mut u32> {
        self.sleep.as_mut()?.as_mut().map(|woken| &mut woken.vector)
    }

    /// Whether the guest sleeps since the last call, and what wakes it.
    pub fn take_sleep(&mut self) -> Option<Option<Woken>> {
        self.sleep.take()
    }

    /// A vCPU's CPUID has changed.
    pub fn set_max_gpa(&mut self, vcpu: u32, max_gpa: u64) {
        self.max_gpa[vcpu as usize] = max_gpa;
    }

    /// Whether something happened since the last call that running vCPUs must look at.
    pub fn take_kick(&mut self) -> bool {
        std::mem::take(&mut self.kicked)
    }

    pub fn is_kicked(&self) -> bool {
        self.kicked || self.ended.is_some()
    }

    /// How the guest ended itself, if it did.
    pub fn take_end(&mut self) -> Option<End> {
        self.ended.take()
    }

    /// What the serial port sent since the last call.
    pub fn take_output(&mut self) -> Vec<u8> {
        self.uart.take_output()
    }

    /// Receives a byte on the serial port if there is room.
    pub fn receive(&mut self, byte: u8) -> bool {
        let room = self.uart.has_room();
        if room {
            self.uart.receive(&[byte]);
            self.service_uart();
        }
        room
    }

    fn service_uart(&mut self) {
        if self.uart.take_interrupt() {
            self.pulse_irq(uart::IRQ);
        }
    }

    /// When each timer is due.
    fn deadlines(&self) -> impl Iterator<Item = u64> {
        let lapics = self.lapics.iter().filter_map(|apic| apic.timer.next_deadline());
        lapics.chain(self.pit.next_deadline()).chain(self.hpet.as_ref().and_then(Hpet::next_deadline))
    }

    /// When a timer is due next.
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadlines().min()
    }

    /// When the last of the timers is due.
    pub fn last_deadline(&self) -> Option<u64> {
        self.deadlines().max()
    }

    /// Fires what is due.
    pub fn advance(&mut self, now: u64) {
        for apic in &mut self.lapics {
            self.kicked |= apic.take_due_timer(now);
        }
        if self.pit.take_due(now) && !self.hpet.as_ref().is_some_and(Hpet::replaces_pit) {
            self.pulse_irq(pit::IRQ);
        }
        let signals = self.hpet.as_mut().map(|hpet| hpet.take_due(now)).unwrap_or_default();
        self.signal(signals);
    }

    fn signal(&mut self, signals: Vec<Signal>) {
        for signal in signals {
            match signal {
                Signal::Pulse(line) => self.pulse_irq(line),
                Signal::Set(line, level) => self.set_irq(line, level),
            }
        }
    }

    fn pulse_irq(&mut self, line: u8) {
        self.set_irq(line, true);
        self.set_irq(line, false);
    }

    /// An ISA line goes to the PIC and to the I/O APIC; the timer's is pin 2 there.
    // See: KVM arch/x86/kvm/irq.c default_routing[]
    fn set_irq(&mut self, line: u8, level: bool) {
        if line < 16 {
            self.pic.set_irq(line, level);
            self.kicked |= self.pic.output();
        }
        let pin = if line == pit::IRQ { ioapic::PIT_PIN } else { line.into() };
        let mut messages = std::mem::take(&mut self.messages);
        self.ioapic.set_irq(pin, level, &mut messages);
        self.deliver_all(messages);
    }

    fn deliver_all(&mut self, mut messages: Vec<Message>) {
        for message in messages.drain(..) {
            self.deliver(&message);
        }
        self.messages = messages;
    }

    /// Brings a message to the local APICs that it names.
    fn deliver(&mut self, message: &Message) {
        if message.mode == DeliveryMode::EXTINT {
            return;
        }
        if message.mode == DeliveryMode::LOWEST_PRIORITY && message.shorthand == Shorthand::NONE {
            return self.deliver_lowest(message);
        }
        for apic in self.lapics.iter_mut().filter(|apic| apic.base().enabled() && apic.matches(message)) {
            self.kicked |= apic.accept(message);
            self.traced.iter_mut().for_each(|notes| notes.push(apic.accepted(message)));
        }
    }

    /// The tracepoints that follow the access to a local APIC's register.
    pub fn take_traced(&mut self) -> impl Iterator<Item = Note> + use<> {
        self.traced.take().into_iter().flatten()
    }

    /// KVM's vector hashing: the vector selects one of the matching processors.
    // See: KVM arch/x86/kvm/irq.c, kvm_vector_to_index()
    fn deliver_lowest(&mut self, message: &Message) {
        let matching = |apic: &&mut LocalApic| apic.base().enabled() && apic.matches(message);
        let count = self.lapics.iter_mut().filter(|apic| matching(apic)).count();
        if count != 0 {
            let index = usize::from(message.vector) % count;
            if let Some(apic) = self.lapics.iter_mut().filter(|apic| matching(apic)).nth(index) {
                self.kicked |= apic.accept(message);
                self.traced.iter_mut().for_each(|notes| notes.push(apic.accepted(message)));
            }
        }
    }

    /// The interrupt that the vCPU would take now; `ack` takes it.
    // See: KVM arch/x86/kvm/irq.c kvm_cpu_get_interrupt()
    pub fn interrupt(&mut self, vcpu: u32, ack: bool) -> Option<u8> {
        let apic = self.lapics.get_mut(vcpu as usize)?;
        if vcpu == 0 && apic.accepts_pic() && self.pic.output() {
            return Some(if ack { self.pic.ack() } else { 0 });
        }
        let vector = apic.pending()?;
        if ack {
            apic.ack(vector);
        }
        Some(vector)
    }

    /// As [`Devices::interrupt`] for silicon that delivers the local APIC's interrupts by itself.
    pub fn virtual_interrupt(&mut self, vcpu: u32) -> Option<u8> {
        let apic = self.lapics.get_mut(vcpu as usize)?;
        let vector = apic.pending()?;
        apic.ack(vector);
        Some(vector)
    }

    /// Whether the PIC interrupts this vCPU, which no silicon delivers by itself.
    pub fn wants_extint(&self, vcpu: u32) -> bool {
        vcpu == 0 && self.lapics[0].accepts_pic() && self.pic.output()
    }

    pub fn nmi(&mut self, vcpu: u32, ack: bool) -> bool {
        let Some(apic) = self.lapics.get_mut(vcpu as usize) else { return false };
        let pending = apic.nmi_pending;
        apic.nmi_pending &= !ack;
        pending
    }

    /// Whether a halted vCPU has something to wake up for, given whether it takes interrupts.
    pub fn can_wake(&mut self, vcpu: u32, takes_interrupts: bool) -> bool {
        let signals = |a: &LocalApic| a.nmi_pending || a.init_pending || a.unhalted;
        let signals = self.lapics.get(vcpu as usize).is_some_and(signals);
        signals || takes_interrupts && self.interrupt(vcpu, false).is_some()
    }

    /// The task priority as the local APIC holds it.
    pub fn tpr(&self, vcpu: u32) -> u8 {
        self.lapics.get(vcpu as usize).map_or(0, LocalApic::tpr)
    }

    pub fn set_tpr(&mut self, vcpu: u32, tpr: u8) {
        if let Some(apic) = self.lapics.get_mut(vcpu as usize) {
            // A lower priority may uncover an interrupt.
            self.kicked |= tpr < apic.tpr();
            apic.set_tpr(tpr);
        }
    }

    /// The task priority after a MOV CR8, where CR8 is the local APIC's.
    pub fn tpr_from_cr8(&mut self, vcpu: u32, state: &VcpuState) {
        if !state.interruptibility.virtual_tpr() {
            self.set_tpr(vcpu, (state.cr8 << 4) as u8);
        }
    }

    /// CR8 after the task priority may have changed, where CR8 is the local APIC's.
    pub fn tpr_to_cr8(&self, vcpu: u32, state: &mut VcpuState) {
        if !state.interruptibility.virtual_tpr() {
            state.cr8 = self.cr8(vcpu);
        }
    }

    /// The task priority as CR8 shows it.
    pub fn cr8(&self, vcpu: u32) -> u64 {
        u64::from(self.tpr(vcpu)) >> 4
    }

    /// The task priority's upper half, if it is another one. See: KVM lapic.c kvm_lapic_set_tpr()
    pub fn set_cr8(&mut self, vcpu: u32, cr8: u8) {
        if self.tpr(vcpu) >> 4 != cr8 {
            self.set_tpr(vcpu, cr8 << 4);
        }
    }

    /// KVM_SET_LAPIC.
    pub fn set_lapic(&mut self, vcpu: u32, page: &LapicState, now: u64) {
        self.lapics[vcpu as usize].set_state(page, now);
        self.kicked = true;
    }

    pub fn apic_base(&self, vcpu: u32) -> ApicBase {
        self.lapics.get(vcpu as usize).map_or(ApicBase::new(), LocalApic::base)
    }
}
