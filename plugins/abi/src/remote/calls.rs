//! The contract's calls over a link: whoever calls, and whoever serves.

// UNSAFETY: what came with a message is lent for the call that it came for.
#![allow(unsafe_code)]

use super::{
    link::{Callee, Frame, Kind, Link},
    message::{Reader, Torn, Writer},
    sent::{Answered, Sent, Services},
};
use crate::{
    contract::*,
    cross::Returned,
    observer::HostObserver,
    plugin::*,
    table::{STATUS_POISONED, Sizes},
};
use std::{cell::Cell, rc::Rc};
use vmtape_arch::{
    access::{Access, Answer, Verdict},
    cpuid::CpuidEntry,
    exception::Exception,
    exit::{Exit, Resume},
    level::Place,
    note::{Note, NoteKind},
    sensitive::Sensitive,
    state::{MsrEntry, StateKind},
    vcpu::VcpuState,
};

/// Waits for an answer, and serves the calls that come meanwhile. `None`: the link is broken.
fn wait(link: &Rc<Link>, mut services: Services) -> Option<Vec<u8>> {
    loop {
        let frame = link.next()?;
        match (frame.kind, frame.callee, &mut services) {
            (Kind::Answer, ..) => return Some(frame.payload),
            (_, Callee::Host, Services::Host(host)) => reply(link, &frame, serve_host(*host, &frame, link)),
            (_, Callee::Mmu, Services::Mmu(mmu)) => reply(link, &frame, serve_mmu(*mmu, &frame, link)),
            _ => link.break_for("its process made a call that nobody serves"),
        }
    }
}

/// Sends what a service answers, with the next message.
fn reply(link: &Link, frame: &Frame, served: Result<Writer, Torn>) {
    match served {
        Ok(answer) if frame.kind == Kind::Call => link.post(Kind::Answer, frame.callee, frame.call, &answer),
        Ok(_) => {}
        Err(Torn) => link.break_for("its process sent arguments that are none"),
    }
}

/// Makes the numbers of a list of calls.
macro_rules! numbers {
    (
        ($name:ident)
        $({ $docs:tt $call:ident $me:ident $accessor:ident $receiver:tt $args:tt $result:tt $out:tt $default:tt })*
    ) => {
        #[allow(non_camel_case_types)]
        enum $name { $($call,)* }
    };
}

backend_calls! { each_call! numbers (BackendCall) [] }
host_calls! { each_call! numbers (HostCall) [] }
mmu_calls! { each_call! numbers (MmuCall) [] }

/// Makes the function that serves one call of a trait.
macro_rules! serve_calls {
    (
        ($serve:ident: $trait:ident, $numbers:ident)
        $({ [$($doc:literal)*] $call:ident $me:ident $accessor:ident $receiver:tt ($($arg:ident: $type:ty,)*)
            [$($result:tt)*] [$($out:ty)?] [$($default:tt)?] })*
    ) => {
        fn $serve(target: &mut dyn $trait, frame: &Frame, link: &Rc<Link>) -> Result<Writer, Torn> {
            let mut from = Reader(&frame.payload);
            let mut to = Writer::default();
            match frame.call {
                $(number if number == $numbers::$call as u32 => {
                    $(let mut $arg = <$type as Sent>::come(&mut from, link)?;)*
                    from.end()?;
                    // SAFETY: what came outlives the call.
                    let result = target.$call($(unsafe { <$type as Sent>::lend(&raw mut $arg) }),*);
                    $(<$type as Sent>::give_back(&$arg, &mut to);)*
                    result.answer(&mut to);
                })*
                _ => return Err(Torn),
            }
            Ok(to)
        }
    };
}

backend_calls! { each_call! serve_calls (serve_backend: Backend, BackendCall) [] }
host_calls! { each_call! serve_calls (serve_host: Host, HostCall) [] }
mmu_calls! { each_call! serve_calls (serve_mmu: EmulatorMmu, MmuCall) [] }

/// Implements a trait of the contract over a link, call by call.
macro_rules! remote_calls {
    (
        ($trait:ident for $remote:ident, $callee:ident, $numbers:ident)
        $({ [$($doc:literal)*] $call:ident $me:ident $accessor:ident [$($receiver:tt)*] ($($arg:ident: $type:ty,)*)
            [$($result:tt)*] [$($out:ty)?] [$($default:tt)?] })*
    ) => {
        #[allow(unused_mut, unused_assignments, clippy::let_unit_value, clippy::unused_unit)]
        impl $trait for $remote {
            $(fn $call($($receiver)*, $($arg: $type),*) -> $($result)* {
                const IS_POSTED: bool =
                    <$($result)* as Answered>::IS_NOTHING $(&& !<$type as Sent>::IS_LENT)*;
                let mut to = Writer::default();
                $(let mut $arg = <$type as Sent>::send($arg, &mut to);)*
                let number = $numbers::$call as u32;
                let mut services = Services::Nobody;
                $(if let Some(own) = <$type as Sent>::services(&mut $arg) {
                    services = own;
                })*
                let answer = if IS_POSTED {
                    $me.link.post(Kind::Post, Callee::$callee, number, &to);
                    Some(Vec::new())
                } else {
                    $me.begin();
                    $me.link.post(Kind::Call, Callee::$callee, number, &to);
                    wait(&$me.link, services)
                };
                let read = |answer: Vec<u8>| {
                    let mut from = Reader(&answer);
                    $(<$type as Sent>::take_back(&mut $arg, &mut from)?;)*
                    let result = <$($result)* as Answered>::read(&mut from)?;
                    from.end().map(|()| result)
                };
                match answer.map(read) {
                    Some(Ok(result)) => return result,
                    Some(Err(Torn)) => $me.link.break_for("its process answered with what is no answer"),
                    None => {}
                }
                $(if let Some(Services::Host(host)) = <$type as Sent>::services(&mut $arg) {
                    $me.report(host);
                })*
                let mut slot = ();
                let _ = slot;
                $(let mut slot = <$out as Returned>::slot(Sizes::OWN);)?
                <$($result)* as Returned>::finish(STATUS_POISONED, slot)
            })*
        }
    };
}

backend_calls! { each_call! remote_calls (Backend for RemoteBackend, Backend, BackendCall) [] }
host_calls! { each_call! remote_calls (Host for FarHost, Host, HostCall) [] }
mmu_calls! { each_call! remote_calls (EmulatorMmu for RemoteMmu, Mmu, MmuCall) [] }

/// A VM in the backend's process, as the host has it. Once its process has failed, all calls answer that the backend did.
pub struct RemoteBackend {
    link: Rc<Link>,
    told: Cell<bool>,
}

impl RemoteBackend {
    fn begin(&self) {
        self.link.begin();
    }

    /// Says on the host's log why the backend failed, once.
    fn report(&self, host: &mut dyn Host) {
        if let (Some(reason), false) = (self.link.broken(), self.told.replace(true)) {
            host.log(1, &format!("the backend failed: {reason}"));
        }
    }
}

/// The MMU of a backend in its process, as the host has it for one emulation.
pub struct RemoteMmu {
    link: Rc<Link>,
}

impl RemoteMmu {
    pub fn new(link: &Rc<Link>) -> Self {
        Self { link: link.clone() }
    }

    fn begin(&self) {}

    /// The call that the emulation is a part of says it.
    fn report(&self, _: &mut dyn Host) {}
}

/// The host, as a backend's process has it for one call.
struct FarHost {
    link: Rc<Link>,
}

impl FarHost {
    fn begin(&self) {}
    fn report(&self, _: &mut dyn Host) {}
}

/// The host, as a backend's process has it for one call. What does not change meanwhile came with the call.
pub struct RemoteHost {
    far: FarHost,
    wants: u128,
    wants_faults: bool,
    is_sparse: bool,
}

impl RemoteHost {
    /// What goes with a call.
    pub fn tell(host: &dyn Host, to: &mut Writer) {
        let wants = (0..u128::BITS).filter(|kind| host.wants(NoteKind(*kind)));
        let wants = wants.fold(0_u128, |set, kind| set | 1 << kind);
        to.plain(&(wants as u64));
        to.plain(&((wants >> 64) as u64));
        host.wants_faults().answer(to);
        host.is_sparse().answer(to);
    }

    pub fn come(from: &mut Reader, link: &Rc<Link>) -> Result<Self, Torn> {
        let [low, high] = [from.plain::<u64>()?, from.plain::<u64>()?];
        Ok(Self {
            far: FarHost { link: link.clone() },
            wants: u128::from(high) << 64 | u128::from(low),
            wants_faults: bool::read(from)?,
            is_sparse: bool::read(from)?,
        })
    }
}

impl HostObserver for RemoteHost {
    fn inner(&self) -> &dyn Host {
        &self.far
    }

    fn inner_mut(&mut self) -> &mut dyn Host {
        &mut self.far
    }

    fn wants(&self, kind: NoteKind) -> bool {
        match kind.0 {
            known @ 0..u128::BITS => self.wants >> known & 1 != 0,
            _ => self.far.wants(kind),
        }
    }

    fn wants_faults(&self) -> bool {
        self.wants_faults
    }

    fn resident(&self, hpa: u64, size: u64) -> u64 {
        if self.is_sparse { self.far.resident(hpa, size) } else { size }
    }
}

/// A plugin in its process, before it has a VM.
#[derive(Debug)]
pub struct RemotePlugin {
    link: Rc<Link>,
    pub build: String,
    pub description: Description,
}

impl RemotePlugin {
    /// Waits for what a plugin says of itself.
    pub fn meet(link: Link) -> Result<Self, String> {
        let link = Rc::new(link);
        link.begin();
        let told = ask::<Result<(String, Description), String>>(&link)?;
        told.map(|(build, description)| Self { link, build, description })
    }

    /// Creates the one VM of the process; the error is the backend's own sentence.
    pub fn create(self, config: &VmConfig) -> Result<RemoteBackend, String> {
        let mut to = Writer::default();
        config.answer(&mut to);
        self.link.begin();
        self.link.post(Kind::Call, Callee::Plugin, 0, &to);
        ask::<Result<(), String>>(&self.link)??;
        Ok(RemoteBackend { link: self.link, told: Cell::new(false) })
    }
}

/// The next answer.
fn ask<T: Answered>(link: &Rc<Link>) -> Result<T, String> {
    let answer = wait(link, Services::Nobody);
    let read = |answer: Vec<u8>| T::read(&mut Reader(&answer)).ok();
    answer.and_then(read).ok_or_else(|| {
        link.break_for("its process said nothing that makes sense");
        format!("the backend failed: {}", link.broken().unwrap_or_default())
    })
}

/// A backend's process: says what the plugin is, creates a VM, and serves it until the host's process is gone.
pub fn serve(link: Link, load: impl FnOnce() -> Result<(String, Description, CreateFn), String>) {
    let link = Rc::new(link);
    let loaded = load();
    let mut told = Writer::default();
    let said = loaded.as_ref().map(|(build, description, _)| (build.clone(), description.clone()));
    said.map_err(String::clone).answer(&mut told);
    link.post(Kind::Answer, Callee::Plugin, 0, &told);
    let Ok((_, _, create)) = loaded else {
        link.flush();
        return;
    };
    let mut vm = None;
    while let Some(frame) = link.next() {
        let served = match (frame.callee, &mut vm) {
            (Callee::Plugin, None) => VmConfig::read(&mut Reader(&frame.payload)).map(|config| {
                let created = create(&config).map(|created| vm = Some(created));
                let mut to = Writer::default();
                created.answer(&mut to);
                to
            }),
            (Callee::Backend, Some(vm)) => serve_backend(&mut **vm, &frame, &link),
            _ => Err(Torn),
        };
        reply(&link, &frame, served);
    }
}

/// Creates a VM in the backend's process.
pub type CreateFn = Box<dyn Fn(&VmConfig) -> Result<Box<dyn Backend>, String>>;
