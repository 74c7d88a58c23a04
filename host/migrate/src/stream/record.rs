//! What sections hold.

use super::{
    Section, SectionKind, StreamError,
    bytes::{Bytes, put_text, put_u32, put_u64},
};
use vmtape_abi::MemoryRegion;
use vmtape_arch::{PAGE_SIZE, cpuid::CpuidEntry, state::StateKind};
use vmtape_machine::{Block, Capability, Machine};

const PAGE: usize = PAGE_SIZE as usize;
/// In the count of a run: its pages are zero, and have no bytes.
const ZERO: u32 = 1 << 31;

/// Which guest it is, and the machine that it needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Of this attempt. What belongs to another one is out of date.
    pub epoch: u64,
    /// The guest's name and a digest over what it was started as.
    pub guest: String,
    pub identity: u64,
    pub vcpus: u32,
    /// What it comes from: CPU vendor, host, backend, in words.
    pub vendor: u32,
    pub host_bits: u32,
    pub from: String,
    /// Its CPU model, as the user gave it.
    pub cpu: String,
    /// Whether a nested guest or what it needs is among the state.
    pub nested: bool,
    pub blocks: Vec<Block>,
    pub capabilities: Vec<Capability>,
}

/// Pages of a block, one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub slot: u32,
    pub first: u64,
    pub pages: Pages,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pages {
    /// So many pages of zeros.
    Zero(u32),
    Bytes(Vec<[u8; PAGE]>),
}

impl Run {
    pub fn count(&self) -> u64 {
        match &self.pages {
            Pages::Zero(count) => (*count).into(),
            Pages::Bytes(pages) => pages.len() as u64,
        }
    }
}

/// A section in its meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Offer(Offer),
    Cpuid {
        vcpu: u32,
        entries: Vec<CpuidEntry>,
    },
    Pages(Vec<Run>),
    /// The slots that the guest has where it stands still.
    Slots(Vec<MemoryRegion>),
    State {
        vcpu: u32,
        kind: StateKind,
        bytes: Vec<u8>,
    },
    Devices {
        version: u32,
        bytes: Vec<u8>,
    },
    Books {
        version: u32,
        bytes: Vec<u8>,
    },
    /// So many pages were sent, each time that it was.
    End {
        pages: u64,
    },
    Accept {
        epoch: u64,
    },
    Ready {
        epoch: u64,
    },
    Go {
        epoch: u64,
    },
    Done {
        epoch: u64,
    },
    Refused {
        epoch: u64,
        why: String,
    },
    /// Pages of a slot: first and count of each run.
    Discard {
        slot: u32,
        runs: Vec<(u64, u64)>,
    },
    Request {
        slot: u32,
        page: u64,
    },
    Received {
        slot: u32,
        runs: Vec<(u64, u64)>,
    },
    Note(String),
    /// Optional, and unknown here: it is dropped.
    Dropped {
        kind: SectionKind,
        number: u32,
    },
}

impl Record {
    pub fn is_mandatory(&self) -> bool {
        !matches!(self, Self::Note(_) | Self::Dropped { .. })
    }

    pub fn kind(&self) -> SectionKind {
        match self {
            Self::Offer(_) => SectionKind::OFFER,
            Self::Cpuid { .. } => SectionKind::CPUID,
            Self::Pages(_) => SectionKind::PAGES,
            Self::Slots(_) => SectionKind::SLOTS,
            Self::State { .. } => SectionKind::STATE,
            Self::Devices { .. } => SectionKind::DEVICES,
            Self::Books { .. } => SectionKind::BOOKS,
            Self::End { .. } => SectionKind::END,
            Self::Accept { .. } => SectionKind::ACCEPT,
            Self::Ready { .. } => SectionKind::READY,
            Self::Go { .. } => SectionKind::GO,
            Self::Done { .. } => SectionKind::DONE,
            Self::Refused { .. } => SectionKind::REFUSED,
            Self::Discard { .. } => SectionKind::DISCARD,
            Self::Request { .. } => SectionKind::REQUEST,
            Self::Received { .. } => SectionKind::RECEIVED,
            Self::Note(_) => SectionKind::NOTE,
            Self::Dropped { kind, .. } => *kind,
        }
    }

    pub(super) fn encode(&self) -> (SectionKind, Vec<u8>) {
        let mut out = Vec::new();
        match self {
            Self::Offer(offer) => offer.encode(&mut out),
            Self::Cpuid { vcpu, entries } => {
                put_u32(&mut out, [*vcpu, entries.len() as u32]);
                put_u32(
                    &mut out,
                    entries
                        .iter()
                        .flat_map(|e| [e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx, e.pad]),
                );
            }
            Self::Pages(runs) => runs.iter().for_each(|run| run.encode(&mut out)),
            Self::Slots(slots) => {
                put_u32(&mut out, [slots.len() as u32]);
                for slot in slots {
                    put_u32(&mut out, [slot.slot, slot.flags]);
                    put_u64(&mut out, [slot.gpa, slot.size]);
                }
            }
            Self::State { vcpu, kind, bytes } => {
                put_u32(&mut out, [*vcpu, kind.0]);
                out.extend(bytes);
            }
            Self::Devices { version, bytes } | Self::Books { version, bytes } => {
                put_u32(&mut out, [*version]);
                out.extend(bytes);
            }
            Self::End { pages } => put_u64(&mut out, [*pages]),
            Self::Accept { epoch } | Self::Ready { epoch } | Self::Go { epoch } | Self::Done { epoch } => {
                put_u64(&mut out, [*epoch]);
            }
            Self::Refused { epoch, why } => {
                put_u64(&mut out, [*epoch]);
                put_text(&mut out, why);
            }
            Self::Discard { slot, runs } | Self::Received { slot, runs } => {
                put_u32(&mut out, [*slot, runs.len() as u32]);
                put_u64(&mut out, runs.iter().flat_map(|(first, count)| [*first, *count]));
            }
            Self::Request { slot, page } => {
                put_u32(&mut out, [*slot]);
                put_u64(&mut out, [*page]);
            }
            Self::Note(text) => put_text(&mut out, text),
            Self::Dropped { .. } => {}
        }
        (self.kind(), out)
    }

    /// What a section means. One that is unknown is an error where it is mandatory.
    pub fn decode(section: &Section) -> Result<Self, StreamError> {
        let Section { kind, number, .. } = *section;
        let mut bytes = Bytes(&section.payload);
        let known = SectionKind::NAMED.iter().any(|(known, _)| *known == kind);
        let unknown_state = kind == SectionKind::STATE
            && section
                .payload
                .get(4..8)
                .is_some_and(|word| StateKind(Bytes(word).u32().unwrap_or_default()).row().is_none());
        if !known || unknown_state {
            return match section.mandatory {
                true => Err(StreamError::Unknown { kind, number }),
                false => Ok(Self::Dropped { kind, number }),
            };
        }
        let wrong = |what| StreamError::Payload { kind, what };
        let record =
            Self::known(kind, &mut bytes).ok_or(wrong("it ends too soon, or counts what is not there"))?;
        if !bytes.0.is_empty() {
            return Err(wrong("it has more bytes than it should"));
        }
        Ok(record)
    }

    fn known(kind: SectionKind, bytes: &mut Bytes<'_>) -> Option<Self> {
        let rest = |bytes: &mut Bytes<'_>| std::mem::take(&mut bytes.0).to_vec();
        Some(match kind {
            SectionKind::OFFER => Self::Offer(Offer::decode(bytes)?),
            SectionKind::CPUID => {
                let (vcpu, count) = (bytes.u32()?, bytes.count(size_of::<CpuidEntry>())?);
                Self::Cpuid { vcpu, entries: (0..count).map(|_| entry(bytes)).collect::<Option<_>>()? }
            }
            SectionKind::PAGES => {
                let mut runs = Vec::new();
                while !bytes.0.is_empty() {
                    runs.push(Run::decode(bytes)?);
                }
                Self::Pages(runs)
            }
            SectionKind::SLOTS => {
                let count = bytes.count(24)?;
                Self::Slots((0..count).map(|_| region(bytes)).collect::<Option<_>>()?)
            }
            SectionKind::STATE => {
                Self::State { vcpu: bytes.u32()?, kind: StateKind(bytes.u32()?), bytes: rest(bytes) }
            }
            SectionKind::DEVICES => Self::Devices { version: bytes.u32()?, bytes: rest(bytes) },
            SectionKind::BOOKS => Self::Books { version: bytes.u32()?, bytes: rest(bytes) },
            SectionKind::END => Self::End { pages: bytes.u64()? },
            SectionKind::ACCEPT => Self::Accept { epoch: bytes.u64()? },
            SectionKind::READY => Self::Ready { epoch: bytes.u64()? },
            SectionKind::GO => Self::Go { epoch: bytes.u64()? },
            SectionKind::DONE => Self::Done { epoch: bytes.u64()? },
            SectionKind::REFUSED => Self::Refused { epoch: bytes.u64()?, why: bytes.text()? },
            SectionKind::DISCARD => {
                let (slot, runs) = runs(bytes)?;
                Self::Discard { slot, runs }
            }
            SectionKind::RECEIVED => {
                let (slot, runs) = runs(bytes)?;
                Self::Received { slot, runs }
            }
            SectionKind::REQUEST => Self::Request { slot: bytes.u32()?, page: bytes.u64()? },
            SectionKind::NOTE => Self::Note(bytes.text()?),
            _ => return None,
        })
    }
}

fn entry(bytes: &mut Bytes<'_>) -> Option<CpuidEntry> {
    Some(CpuidEntry {
        function: bytes.u32()?,
        index: bytes.u32()?,
        flags: bytes.u32()?,
        eax: bytes.u32()?,
        ebx: bytes.u32()?,
        ecx: bytes.u32()?,
        edx: bytes.u32()?,
        pad: bytes.u32()?,
    })
}

fn region(bytes: &mut Bytes<'_>) -> Option<MemoryRegion> {
    let (slot, flags) = (bytes.u32()?, bytes.u32()?);
    Some(MemoryRegion { slot, flags, gpa: bytes.u64()?, size: bytes.u64()?, hpa: 0 })
}

fn runs(bytes: &mut Bytes<'_>) -> Option<(u32, Vec<(u64, u64)>)> {
    let (slot, count) = (bytes.u32()?, bytes.count(16)?);
    Some((slot, (0..count).map(|_| Some((bytes.u64()?, bytes.u64()?))).collect::<Option<_>>()?))
}

impl Run {
    fn encode(&self, out: &mut Vec<u8>) {
        let count = match &self.pages {
            Pages::Zero(count) => *count | ZERO,
            Pages::Bytes(pages) => pages.len() as u32,
        };
        put_u32(out, [self.slot, count]);
        put_u64(out, [self.first]);
        if let Pages::Bytes(pages) = &self.pages {
            pages.iter().for_each(|page| out.extend(page));
        }
    }

    fn decode(bytes: &mut Bytes<'_>) -> Option<Self> {
        let (slot, count, first) = (bytes.u32()?, bytes.u32()?, bytes.u64()?);
        let number = count & !ZERO;
        let pages = match count & ZERO {
            0 => {
                Pages::Bytes(bytes.take((number as usize).checked_mul(PAGE)?)?.as_chunks::<PAGE>().0.to_vec())
            }
            _ => Pages::Zero(number),
        };
        first.checked_add(number.into())?;
        Some(Self { slot, first, pages })
    }
}

impl Offer {
    /// What a machine has to offer.
    pub fn of(machine: &mut Machine, epoch: u64) -> Result<Self, vmtape_machine::Error> {
        let spec = machine.spec().clone();
        let mut nested = false;
        for vcpu in 0..spec.vcpus {
            nested |= machine.states(vcpu)?.iter().any(|(kind, _)| *kind == StateKind::NESTED_STATE);
        }
        Ok(Self {
            epoch,
            identity: spec.identity()?,
            guest: spec.image.name,
            vcpus: spec.vcpus,
            vendor: spec.silicon.vendor.0.into(),
            host_bits: spec.silicon.phys_bits.into(),
            from: format!("{} on {}", spec.backend, spec.host),
            cpu: spec.cpu,
            nested,
            blocks: machine.blocks(),
            capabilities: machine.capabilities(),
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, [self.epoch, self.identity]);
        put_u32(out, [self.vcpus, self.vendor, self.host_bits, self.nested.into()]);
        put_text(out, &self.guest);
        put_text(out, &self.from);
        put_text(out, &self.cpu);
        put_u32(out, [self.blocks.len() as u32]);
        for block in &self.blocks {
            put_u32(out, [block.slot]);
            put_u64(out, [block.pages]);
        }
        put_u32(out, [self.capabilities.len() as u32]);
        for Capability { cap, flags, arg } in &self.capabilities {
            put_u32(out, [*cap, *flags]);
            put_u64(out, [*arg]);
        }
    }

    fn decode(bytes: &mut Bytes<'_>) -> Option<Self> {
        let mut offer = Self {
            epoch: bytes.u64()?,
            identity: bytes.u64()?,
            vcpus: bytes.u32()?,
            vendor: bytes.u32()?,
            host_bits: bytes.u32()?,
            nested: match bytes.u32()? {
                0 => false,
                1 => true,
                _ => return None,
            },
            guest: bytes.text()?,
            from: bytes.text()?,
            cpu: bytes.text()?,
            ..Self::default()
        };
        for _ in 0..bytes.count(12)? {
            offer.blocks.push(Block { slot: bytes.u32()?, pages: bytes.u64()? });
        }
        for _ in 0..bytes.count(16)? {
            offer.capabilities.push(Capability { cap: bytes.u32()?, flags: bytes.u32()?, arg: bytes.u64()? });
        }
        Some(offer)
    }
}
