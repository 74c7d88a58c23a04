//! ACPI tables as QEMU gives the firmware of its machine `pc`: RSDP, RSDT, FADT with FACS and a DSDT that declares nothing, MADT, HPET.
//! They lie where that firmware has the RSDP, in memory that no map gives to the guest.
//!
//! See: ACPI 6.5, 5.2 ACPI System Description Tables; QEMU 10 hw/i386/acpi-build.c, acpi-common.c, hw/acpi/aml-build.c

use super::place;
use crate::{
    devices::{hpet, pm},
    error::LoadError,
    memory::Memory,
    spec::MachineSpec,
};
use acpi_tables::sdt::Sdt;

const RSDP: u64 = 0xf_0000;
/// On 64 bytes.
const FACS: u64 = RSDP + 0x40;
const TABLES: u64 = RSDP + 0x100;
/// `Firmware_Waking_Vector` of the FACS: where the guest wants to go on after S3.
pub const WAKING_VECTOR: u64 = FACS + 12;

const FACS_SIZE: usize = 64;
const HEADER: u32 = 36;
const OEM: [u8; 6] = *b"VMTAPE";
const OEM_TABLE: [u8; 8] = *b"VMTAPE  ";

/// ACPI_PORT_SMI_CMD and its values. Nobody listens: there is no SMM to turn ACPI on or off in.
const SMI_COMMAND: u32 = 0xb2;
const ENABLE: u8 = 0xf1;
const DISABLE: u8 = 0xf0;
const SCI: u16 = 9;
const CENTURY: u8 = 0x32;
/// WBINVD, PROC_C1, SLP_BUTTON, RTC_S4, USE_PLATFORM_CLOCK.
const FADT_FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 5 | 1 << 7 | 1 << 15;
/// No C2, no C3.
const NO_STATE: u16 = 0xfff;

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// Interrupts of PCI: active high, level.
const LEVEL: u16 = 0xd;

/// Writes the tables. A guest without memory there has none.
pub fn write(spec: &MachineSpec, memory: &Memory) -> Result<(), LoadError> {
    if !spec.platform.acpi() || !memory.covers(RSDP, 1 << 16) {
        return Ok(());
    }
    let mut next = TABLES;
    let mut put = |table: &Sdt| {
        let at = next;
        next += (table.len() as u64).next_multiple_of(16);
        place(memory, "an ACPI table", at, table.as_slice()).map(|()| at as u32)
    };
    let mut facs = [0; FACS_SIZE];
    facs[..4].copy_from_slice(b"FACS");
    facs[4] = FACS_SIZE as u8;
    place(memory, "an ACPI table", FACS, &facs)?;
    let dsdt = put(&table(b"DSDT", 1, &[]))?;
    let tables = [put(&fadt(dsdt))?, put(&madt(spec.vcpus))?, put(&hpet_table())?];
    let rsdt = put(&table(b"RSDT", 1, &tables.map(u32::to_le_bytes).concat()))?;
    place(memory, "an ACPI table", RSDP, &rsdp(rsdt))
}

fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(*signature, HEADER, revision, OEM, OEM_TABLE, 1);
    table.append_slice(body);
    table
}

/// Of ACPI 1.0, as the RSDT is.
fn rsdp(rsdt: u32) -> [u8; 20] {
    const CHECKSUM: usize = 8;
    let mut rsdp = [0; 20];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[9..15].copy_from_slice(&OEM);
    rsdp[16..].copy_from_slice(&rsdt.to_le_bytes());
    rsdp[CHECKSUM] = rsdp.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    rsdp
}

/// Revision 1: 116 bytes.
fn fadt(dsdt: u32) -> Sdt {
    let mut fadt = table(b"FACP", 1, &[0; 116 - HEADER as usize]);
    for (at, word) in [
        (36, FACS as u32),
        (40, dsdt),
        (48, SMI_COMMAND),
        (56, pm::PM1_EVENT.into()),
        (64, pm::PM1_CONTROL.into()),
        (76, pm::TIMER.into()),
        (112, FADT_FLAGS),
    ] {
        fadt.write_u32(at, word);
    }
    for (at, word) in [(46, SCI), (96, NO_STATE), (98, NO_STATE)] {
        fadt.write_u16(at, word);
    }
    // INT_MODEL, ACPI_ENABLE, ACPI_DISABLE, PM1_EVT_LEN, PM1_CNT_LEN, PM_TMR_LEN, CENTURY
    for (at, byte) in [(44, 1), (52, ENABLE), (53, DISABLE), (88, 4), (89, 2), (91, 4), (108, CENTURY)] {
        fadt.write_u8(at, byte);
    }
    fadt
}

/// Each processor's local APIC, the I/O APIC, the lines that are wired otherwise than in the PIC, and LINT1 for NMI.
fn madt(vcpus: u32) -> Sdt {
    const PCAT_COMPAT: u32 = 1;
    let mut body = [LOCAL_APIC, PCAT_COMPAT].map(u32::to_le_bytes).concat();
    for id in 0..vcpus as u8 {
        body.extend([0, 8, id, id, 1, 0, 0, 0]);
    }
    body.extend([1, 12, 0, 0]);
    body.extend([IO_APIC, 0].map(u32::to_le_bytes).concat());
    let mut wired = |line: u8, pin: u32, flags: u16| {
        body.extend([2, 10, 0, line]);
        body.extend(pin.to_le_bytes());
        body.extend(flags.to_le_bytes());
    };
    wired(0, 2, 0);
    [5, 9, 10, 11].into_iter().for_each(|line| wired(line, line.into(), LEVEL));
    body.extend([4, 6, 0xff, 0, 0, 1]);
    table(b"APIC", 1, &body)
}

fn hpet_table() -> Sdt {
    const BLOCK_ID: u32 = 0x8086_a201;
    let mut body = BLOCK_ID.to_le_bytes().to_vec();
    // In memory; sequence number, least ticks, protection.
    body.extend([0; 4]);
    body.extend(hpet::BASE.to_le_bytes());
    body.extend([0; 4]);
    table(b"HPET", 1, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of a table's bytes is zero, and its length is in its header.
    #[test]
    fn tables_add_up() {
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        for (table, length) in [(fadt(1), 116), (madt(3), 44 + 3 * 8 + 12 + 5 * 10 + 6), (hpet_table(), 56)] {
            assert_eq!((sum(table.as_slice()), table.len()), (0, length));
            assert_eq!(table.as_slice()[4..8], (length as u32).to_le_bytes());
        }
        assert_eq!(sum(&rsdp(0x1234_5678)), 0);
    }
}
