//! What the reader of a tape knows: one model, which the recorder asks what it still has to tell, and a fed machine what it
//! may use.
//!
//! Registers are remembered from exit to exit: one that an exit's handling uses is told unless the tape told that value last.
//! Memory is not, because the guest writes it without an exit: each exit tells the bytes that its handling and the entry after
//! it read, once, as they were before the handling wrote them. So a reader that handles the exit otherwise than the tape's
//! machine knows as much as that machine's own kind, and where the tape begins does not matter.

use super::{fpu, registers as bit};
use vmtape_arch::{PAGE_SHIFT, PAGE_SIZE, exit::Exit, regs::Rflags, vcpu::VcpuState};
use vmtape_traces::event::Registers;

/// The reader's knowledge of a machine.
#[derive(Debug, Default)]
pub(crate) struct Knowledge {
    /// Per vCPU.
    registers: Vec<Told>,
    pub(crate) memory: Bytes,
}

/// The registers of a vCPU that were told, and their last values.
#[derive(Clone, Debug, Default)]
struct Told {
    mask: u32,
    values: bit::Values,
    /// Kept where everything else is told anew: which exits tell RFLAGS must not depend on where that is.
    rflags: u64,
}

/// Every handler that skips an instruction looks at TF, and every entry at IF; they change rarely.
const DECISIVE: u64 = Rflags::new().with_tf(true).with_intr(true).into_bits();

impl Knowledge {
    pub(crate) fn new(vcpus: u32) -> Self {
        Self { registers: vec![Told::default(); vcpus as usize], memory: Bytes::default() }
    }

    /// A reader may start here: it has been told nothing.
    pub(crate) fn forget(&mut self) {
        self.registers.iter_mut().for_each(|told| told.mask = 0);
        self.memory.forget();
    }

    /// RFLAGS of each vCPU as they were told last, which stay known where everything else is told anew.
    pub(crate) fn rflags(&self) -> impl Iterator<Item = u64> {
        self.registers.iter().map(|told| told.rflags)
    }

    pub(crate) fn set_rflags(&mut self, rflags: &[u64]) {
        self.registers.iter_mut().zip(rflags).for_each(|(told, rflags)| told.rflags = *rflags);
    }

    /// What a reader must be told of the registers that the handling of an exit uses.
    pub(crate) fn untold_of_exit(&mut self, vcpu: u32, state: &VcpuState, exit: &Exit) -> Registers {
        self.untold(vcpu, state, bit::ALWAYS | bit::used(exit))
    }

    /// Those registers of the mask that the reader does not have, which has them from here on.
    pub(crate) fn untold(&mut self, vcpu: u32, state: &VcpuState, wanted: u32) -> Registers {
        let told = &mut self.registers[vcpu as usize];
        let now = bit::values(state);
        let decisive = (told.rflags ^ state.rflags) & DECISIVE != 0;
        let mut wanted = if decisive { wanted | bit::RFLAGS } else { wanted };
        let mut event = Registers { vcpu, mask: 0, values: Vec::new() };
        if wanted & bit::RFLAGS != 0 {
            told.rflags = state.rflags;
        }
        while wanted != 0 {
            let n = wanted.trailing_zeros();
            wanted &= wanted - 1;
            let more = bit::more_places(n);
            let is_told = |place: usize| told.values[place] == now[place];
            if told.mask >> n & 1 != 0 && is_told(n as usize) && more.clone().all(is_told) {
                continue;
            }
            event.mask |= 1 << n;
            told.mask |= 1 << n;
            for place in (n as usize..n as usize + 1).chain(more) {
                event.values.push(now[place]);
                told.values[place] = now[place];
            }
        }
        event
    }

    /// Takes what the tape tells. The FPU's registers and others with a number, which are told at each use, go into the state at once.
    pub(crate) fn learn(&mut self, registers: &Registers, state: &mut VcpuState) {
        let Some(told) = self.registers.get_mut(registers.vcpu as usize) else { return };
        let mut values = registers.values.iter().copied();
        let mut mask = registers.mask;
        while mask != 0 {
            let n = mask.trailing_zeros();
            mask &= mask - 1;
            if 1 << n == bit::FPU {
                let [number, low, high] = [(); 3].map(|()| values.next().unwrap_or_default());
                match number {
                    bit::LAST_BRANCH => state.last_branch = [low, high],
                    bit::LAST_EXCEPTION => state.last_exception = [low, high],
                    bit::CHAIN => {}
                    bit::SEGMENT.. => bit::set_segment(state, number, [low, high]),
                    bit::DEBUG.. => bit::debug(state, number).into_iter().for_each(|dr| *dr = low),
                    _ => {
                        let number = usize::try_from(number).unwrap_or(usize::MAX);
                        fpu::set(&mut state.fpu, number, [low, high]);
                    }
                }
                continue;
            }
            told.mask |= 1 << n;
            told.values[n as usize] = values.next().unwrap_or_default();
            for place in bit::more_places(n) {
                told.values[place] = values.next().unwrap_or_default();
            }
        }
    }

    /// Sets those registers of the mask that the reader knows.
    pub(crate) fn apply(&self, vcpu: u32, state: &mut VcpuState, mask: u32) {
        if let Some(told) = self.registers.get(vcpu as usize) {
            bit::set(state, told.mask & mask, &told.values);
        }
    }
}

const QUADWORDS: usize = (PAGE_SIZE / 64) as usize;

/// A set of bytes of host physical memory.
#[derive(Debug, Default)]
pub(crate) struct Bytes {
    /// Per page a bit per byte, once one of them is known.
    pages: Vec<Option<Box<[u64; QUADWORDS]>>>,
    /// The words of those bits that may not be zero.
    touched: Vec<(u32, u8)>,
    /// All of memory.
    all: bool,
}

impl Bytes {
    /// Every byte is in the set, or only those that were learned.
    pub(crate) fn know_all(&mut self, all: bool) {
        self.all = all;
    }

    pub(crate) fn is_all(&self) -> bool {
        self.all
    }

    pub(crate) fn forget(&mut self) {
        for (page, at) in self.touched.drain(..) {
            if let Some(bits) = &mut self.pages[page as usize] {
                bits[usize::from(at)] = 0;
            }
        }
    }

    pub(crate) fn learn(&mut self, hpa: u64, len: u64) {
        for (page, at, mask) in places(hpa, len) {
            if page as usize >= self.pages.len() {
                self.pages.resize(page as usize + 1, None);
            }
            let bits = self.pages[page as usize].get_or_insert_with(|| Box::new([0; QUADWORDS]));
            let word = &mut bits[usize::from(at)];
            if *word == 0 {
                self.touched.push((page, at));
            }
            *word |= mask;
        }
    }

    pub(crate) fn holds(&self, hpa: u64, len: u64) -> bool {
        self.all || places(hpa, len).all(|(page, at, mask)| self.word(page, at) & mask == mask)
    }

    /// Whether one of these bytes is in the set.
    pub(crate) fn holds_some(&self, hpa: u64, len: u64) -> bool {
        self.all || places(hpa, len).any(|(page, at, mask)| self.word(page, at) & mask != 0)
    }

    fn word(&self, page: u32, at: u8) -> u64 {
        let bits = self.pages.get(page as usize).and_then(Option::as_ref);
        bits.map_or(0, |bits| bits[usize::from(at)])
    }
}

/// Where the bits of a range are: page, word, and the bits in it.
fn places(hpa: u64, len: u64) -> impl Iterator<Item = (u32, u8, u64)> {
    let end = hpa + len;
    let mut at = hpa;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (first, len) = (at % 64, (end - at).min(64 - at % 64));
        let mask = (u64::MAX >> (64 - len)) << first;
        let place = ((at >> PAGE_SHIFT) as u32, (at % PAGE_SIZE / 64) as u8, mask);
        at += len;
        Some(place)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_known_one_by_one() {
        let mut bytes = Bytes::default();
        bytes.learn(0x1ffc, 4);
        assert!(bytes.holds(0x1ffc, 4));
        assert!(!bytes.holds(0x1ff8, 8) && !bytes.holds(0x1ffc, 8));
        bytes.learn(0x2000, 0x1001);
        assert!(bytes.holds(0x1ffc, 0x1005) && !bytes.holds(0x1ffc, 0x1006));
        bytes.forget();
        assert!(!bytes.holds(0x1ffc, 1) && !bytes.holds(0x2800, 1));
    }

    #[test]
    fn what_an_exit_tells_does_not_depend_on_where_the_tape_begins() {
        let exit = Exit::default();
        let mut state = VcpuState::reset();
        let (mut all, mut anew) = (Knowledge::new(1), Knowledge::new(1));
        let mut readers = [VcpuState::reset(), VcpuState::reset()];
        let mut learned = [Knowledge::new(1), Knowledge::new(1)];
        for n in 0..200_u64 {
            state.gpr[(n % 16) as usize] = n / 3;
            state.rflags ^= [0, 1 << 9, 1, 1 << 8][(n / 5 % 4) as usize];
            anew.forget();
            let told = if n % 2 == 0 {
                [&mut all, &mut anew].map(|tape| tape.untold_of_exit(0, &state, &exit))
            } else {
                [&mut all, &mut anew].map(|tape| tape.untold(0, &state, 0b1011))
            };
            for (n, told) in told.iter().enumerate() {
                learned[n].learn(told, &mut readers[n]);
                learned[n].apply(0, &mut readers[n], u32::MAX);
            }
            assert_eq!(readers[0], readers[1], "{n}");
        }
    }
}
