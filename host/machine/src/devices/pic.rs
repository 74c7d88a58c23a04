//! The pair of 8259A interrupt controllers.
//!
//! See: Intel 8259A data sheet (231468-003); KVM arch/x86/kvm/i8259.c

use serde::{Deserialize, Serialize};

pub const MASTER: u16 = 0x20;
pub const SLAVE: u16 = 0xa0;
/// Edge or level registers of the master and the slave.
pub const ELCR: std::ops::RangeInclusive<u16> = 0x4d0..=0x4d1;
/// Lines that cannot be made level triggered: timer, keyboard, cascade; real-time clock, FPU.
const ELCR_MASK: [u8; 2] = [0xf8, 0xde];
const CASCADE: u8 = 2;
const SPURIOUS: u8 = 7;

/// One controller.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Pic {
    /// Levels seen last, for edge detection.
    last: u8,
    irr: u8,
    imr: u8,
    isr: u8,
    /// Highest priority line.
    priority: u8,
    base: u8,
    read_isr: bool,
    poll: bool,
    special_mask: bool,
    /// 0: ready; 1-3: the next initialization word expected.
    init_state: u8,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    init4: bool,
    elcr: u8,
}

/// Both controllers.
#[derive(Default, Serialize, Deserialize)]
pub struct PicPair {
    pics: [Pic; 2],
}

impl Pic {
    fn set_irq(&mut self, line: u8, level: bool) {
        let mask = 1 << line;
        if self.elcr & mask != 0 {
            if level {
                self.irr |= mask;
                self.last |= mask;
            } else {
                self.irr &= !mask;
                self.last &= !mask;
            }
        } else if level {
            if self.last & mask == 0 {
                self.irr |= mask;
            }
            self.last |= mask;
        } else {
            self.last &= !mask;
        }
    }

    /// Distance of the highest line in `mask` from the highest priority; 8 if there is none.
    fn distance(&self, mask: u8) -> u8 {
        (0..8).find(|d| mask & 1 << ((d + self.priority) & 7) != 0).unwrap_or(8)
    }

    /// The line to deliver now.
    fn pending(&self, master: bool) -> Option<u8> {
        let wanted = self.distance(self.irr & !self.imr);
        if wanted == 8 {
            return None;
        }
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        // In special fully nested mode the slave may interrupt its own service.
        if self.special_fully_nested && master {
            in_service &= !(1 << CASCADE);
        }
        (wanted < self.distance(in_service)).then_some((wanted + self.priority) & 7)
    }

    fn ack(&mut self, line: u8) {
        self.isr |= 1 << line;
        if self.elcr & 1 << line == 0 {
            self.irr &= !(1 << line);
        }
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.priority = (line + 1) & 7;
            }
            self.isr &= !(1 << line);
        }
    }

    fn command(&mut self, value: u8) {
        const ICW1: u8 = 0x10;
        const OCW3: u8 = 0x08;
        if value & ICW1 != 0 {
            *self = Self {
                elcr: self.elcr,
                last: self.last & self.elcr,
                init_state: 1,
                init4: value & 1 != 0,
                ..Self::default()
            };
        } else if value & OCW3 != 0 {
            self.poll = value & 4 != 0;
            if value & 2 != 0 {
                self.read_isr = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.end_of_interrupt(value);
        }
    }

    /// OCW2. See: data sheet, Operation Command Words, OCW2
    fn end_of_interrupt(&mut self, value: u8) {
        let named = value & 7;
        match value >> 5 {
            0 | 4 => self.rotate_on_auto_eoi = value >> 7 != 0,
            command @ (1 | 5) => {
                let distance = self.distance(self.isr);
                if distance != 8 {
                    let line = (distance + self.priority) & 7;
                    self.isr &= !(1 << line);
                    if command == 5 {
                        self.priority = (line + 1) & 7;
                    }
                }
            }
            3 => self.isr &= !(1 << named),
            6 => self.priority = (named + 1) & 7,
            7 => {
                self.isr &= !(1 << named);
                self.priority = (named + 1) & 7;
            }
            _ => {}
        }
    }

    fn data(&mut self, value: u8) {
        match self.init_state {
            0 => self.imr = value,
            1 => {
                self.base = value & 0xf8;
                self.init_state = 2;
            }
            2 => self.init_state = if self.init4 { 3 } else { 0 },
            _ => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 2 != 0;
                self.init_state = 0;
            }
        }
    }
}

impl PicPair {
    /// Sets the level of one of the 16 lines.
    pub fn set_irq(&mut self, line: u8, level: bool) {
        self.pics[usize::from(line >> 3)].set_irq(line & 7, level);
        self.update();
    }

    /// The slave's output pulses the master's line 2.
    /// See: KVM arch/x86/kvm/i8259.c pic_update_irq()
    fn update(&mut self) {
        if self.pics[1].pending(false).is_some() {
            self.pics[0].set_irq(CASCADE, true);
            self.pics[0].set_irq(CASCADE, false);
        }
    }

    /// Whether the output to the processor is raised.
    pub fn output(&self) -> bool {
        self.pics[0].pending(true).is_some()
    }

    /// Acknowledges: gives the vector, spurious if the request went away.
    pub fn ack(&mut self) -> u8 {
        let Some(line) = self.pics[0].pending(true) else {
            return self.pics[0].base + SPURIOUS;
        };
        self.pics[0].ack(line);
        let vector = if line == CASCADE {
            let line = self.pics[1].pending(false);
            if let Some(line) = line {
                self.pics[1].ack(line);
            }
            self.pics[1].base + line.unwrap_or(SPURIOUS)
        } else {
            self.pics[0].base + line
        };
        self.update();
        vector
    }

    /// Ends what is in service, in both.
    pub fn end_of_any_interrupt(&mut self) {
        /// OCW2, non-specific end of interrupt.
        const EOI: u8 = 0x20;
        self.write(0xa0, EOI);
        self.write(0x20, EOI);
    }

    pub fn write(&mut self, port: u16, value: u8) {
        let pic = &mut self.pics[usize::from(port & !1 == SLAVE)];
        if port & 1 == 0 {
            pic.command(value)
        } else {
            pic.data(value)
        }
        self.update();
    }

    pub fn read(&mut self, port: u16) -> u8 {
        let slave = port & !1 == SLAVE;
        let pic = &mut self.pics[usize::from(slave)];
        if pic.poll {
            pic.poll = false;
            let line = pic.pending(!slave);
            if let Some(line) = line {
                pic.ack(line);
            }
            self.update();
            return line.map_or(SPURIOUS, |line| line | 0x80);
        }
        match (port & 1, pic.read_isr) {
            (1, _) => pic.imr,
            (_, true) => pic.isr,
            (_, false) => pic.irr,
        }
    }

    pub fn elcr(&self, port: u16) -> u8 {
        self.pics[usize::from(port & 1)].elcr
    }

    pub fn set_elcr(&mut self, port: u16, value: u8) {
        let n = usize::from(port & 1);
        self.pics[n].elcr = value & ELCR_MASK[n];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn initialized() -> PicPair {
        let mut pics = PicPair::default();
        for (port, base, cascade) in [(MASTER, 0x20, 4), (SLAVE, 0x28, 2)] {
            pics.write(port, 0x11);
            pics.write(port + 1, base);
            pics.write(port + 1, cascade);
            pics.write(port + 1, 1);
        }
        pics
    }

    #[test]
    fn vectors_follow_priorities_and_end_of_interrupt() {
        let mut pics = initialized();
        pics.set_irq(4, true);
        pics.set_irq(1, true);
        assert_eq!(pics.ack(), 0x21);
        assert!(!pics.output(), "a lower line waits for the end of the higher one");
        pics.write(MASTER, 0x20);
        assert_eq!(pics.ack(), 0x24);
    }

    #[test]
    fn the_slave_interrupts_through_the_cascade() {
        let mut pics = initialized();
        pics.set_irq(8, true);
        assert!(pics.output());
        assert_eq!(pics.ack(), 0x28);
        pics.write(SLAVE, 0x20);
        pics.write(MASTER, 0x20);
        assert!(!pics.output());
    }

    #[test]
    fn a_withdrawn_level_is_spurious() {
        let mut pics = initialized();
        pics.set_elcr(0x4d0, 0x20);
        pics.set_irq(5, true);
        pics.set_irq(5, false);
        assert_eq!(pics.ack(), 0x27);
    }
}
