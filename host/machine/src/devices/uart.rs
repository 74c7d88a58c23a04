//! The first serial port: a 16550 at 0x3f8, interrupt line 4.

use serde::{Deserialize, Serialize};
use std::{cell::Cell, convert::Infallible};
use vm_superio::{
    Serial, Trigger,
    serial::{NoEvents, SerialState},
};

pub const BASE: u16 = 0x3f8;
pub const PORTS: u16 = 8;
pub const IRQ: u8 = 4;

/// Remembers that the UART wants its interrupt line pulsed.
#[derive(Default)]
pub struct Pulse(Cell<bool>);

impl Trigger for Pulse {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

/// The UART and what it has sent since [`Uart::take_output`].
pub struct Uart(Serial<Pulse, NoEvents, Vec<u8>>);

impl Default for Uart {
    fn default() -> Self {
        Self(Serial::new(Pulse::default(), Vec::new()))
    }
}

impl Uart {
    pub fn read(&mut self, port: u16) -> u8 {
        self.0.read((port - BASE) as u8)
    }

    pub fn write(&mut self, port: u16, value: u8) {
        // The trigger and the output buffer cannot fail; a full loopback FIFO loses the byte, as hardware does.
        let _ = self.0.write((port - BASE) as u8, value);
    }

    /// Whether the interrupt line is to be pulsed.
    pub fn take_interrupt(&mut self) -> bool {
        self.0.interrupt_evt().0.take()
    }

    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(self.0.writer_mut())
    }

    /// Receives bytes, as many as the FIFO holds.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let room = self.0.fifo_capacity().min(bytes.len());
        self.0.enqueue_raw_bytes(&bytes[..room]).unwrap_or(0)
    }

    pub fn has_room(&self) -> bool {
        self.0.fifo_capacity() > 0
    }
}

/// The registers, for checkpoints.
#[derive(Serialize, Deserialize)]
#[serde(remote = "SerialState")]
struct SavedState {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

impl Serialize for Uart {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        SavedState::serialize(&self.0.state(), serializer)
    }
}

impl<'de> Deserialize<'de> for Uart {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let state = SavedState::deserialize(deserializer)?;
        let serial = Serial::from_state(&state, Pulse::default(), NoEvents, Vec::new())
            .map_err(|_| serde::de::Error::custom("more bytes in the serial FIFO than it holds"))?;
        // Restoring an enabled interrupt pulses the line; that pulse has been given before.
        serial.interrupt_evt().0.set(false);
        Ok(Self(serial))
    }
}
