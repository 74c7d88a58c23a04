//! kvm-unit-tests' test device, as QEMU's `pc-testdev`, and the firmware configuration entries that those tests read.

use serde::{Deserialize, Serialize};

pub const LATCH: std::ops::RangeInclusive<u16> = 0xe0..=0xe3;
/// OUTL of a gpa: the page behind it is to be dropped.
pub const FLUSH: u16 = 0xe4;
pub const BYTE_LATCH: std::ops::RangeInclusive<u16> = 0xe8..=0xeb;
pub const IRQ_LINES: std::ops::Range<u16> = 0x2000..0x2018;
pub const IOMEM: std::ops::Range<u64> = 0xff00_0000..0xff01_0000;

pub const FW_CFG_SELECTOR: u16 = 0x510;
pub const FW_CFG_DATA: u16 = 0x511;
const FW_CFG_SIGNATURE: u16 = 0;
const FW_CFG_ID: u16 = 1;
const FW_CFG_RAM_SIZE: u16 = 3;
const FW_CFG_NB_CPUS: u16 = 5;
const FW_CFG_MAX_CPUS: u16 = 0xf;

/// Latches and the memory behind `IOMEM`.
#[derive(Default, Serialize, Deserialize)]
pub struct TestDevice {
    latch: u32,
    bytes: [u8; 4],
    /// Empty until somebody comes: few guests do, and it goes into each checkpoint.
    iomem: Vec<u8>,
}

impl TestDevice {
    pub fn read_latch(&self) -> u32 {
        self.latch
    }

    pub fn write_latch(&mut self, value: u32) {
        self.latch = value;
    }

    pub fn byte(&mut self, port: u16) -> &mut u8 {
        &mut self.bytes[usize::from(port - *BYTE_LATCH.start()) % 4]
    }

    /// The bytes behind an access to `IOMEM`, which must lie in it.
    pub fn iomem(&mut self, gpa: u64, size: u8) -> Option<&mut [u8]> {
        let len = (IOMEM.end - IOMEM.start) as usize;
        let start = usize::try_from(gpa.checked_sub(IOMEM.start)?).ok()?;
        let end = start.checked_add(size.into()).filter(|end| *end <= len)?;
        if self.iomem.is_empty() {
            self.iomem = vec![0; len];
        }
        self.iomem.get_mut(start..end)
    }
}

/// The firmware configuration interface, byte-wise.
#[derive(Default, Serialize, Deserialize)]
pub struct FwCfg {
    vcpus: u16,
    ram: u64,
    selector: u16,
    offset: usize,
}

impl FwCfg {
    pub fn new(vcpus: u32, ram: u64) -> Self {
        Self { vcpus: vcpus as u16, ram, selector: 0, offset: 0 }
    }

    pub fn select(&mut self, selector: u16) {
        self.selector = selector;
        self.offset = 0;
    }

    /// The next byte of the selected item; zero past its end and for items that are not there.
    pub fn read(&mut self) -> u8 {
        let item: &[u8] = match self.selector {
            FW_CFG_SIGNATURE => b"QEMU",
            FW_CFG_ID => &1u32.to_le_bytes(),
            FW_CFG_RAM_SIZE => &self.ram.to_le_bytes(),
            FW_CFG_NB_CPUS | FW_CFG_MAX_CPUS => &self.vcpus.to_le_bytes(),
            _ => &[],
        };
        let byte = item.get(self.offset).copied().unwrap_or(0);
        self.offset += 1;
        byte
    }
}
