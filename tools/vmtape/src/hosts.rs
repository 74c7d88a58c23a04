//! Hosts and CPU models by name, until the machine has them.

use crate::output::usage;
use anyhow::Result;
use vmtape_abi::Backend;
use vmtape_arch::{
    cpuid::CpuidEntry,
    host::{Silicon, Vendor},
};

pub fn parse(name: &str) -> Result<Silicon> {
    let unknown = || usage(format!("--host {name}: no such host"));
    let mut parts = name.split('-');
    let vendor = parts.next().and_then(Vendor::from_name).ok_or_else(unknown)?;
    let phys_bits = parts.next().and_then(|bits| bits.parse().ok()).ok_or_else(unknown)?;
    if !(32..=52).contains(&phys_bits) {
        return Err(unknown());
    }
    let levels = if phys_bits > 48 && parts.next() != Some("4level") { 5 } else { 4 };
    Ok(Silicon {
        vendor,
        phys_bits,
        host_levels: levels,
        ept_levels: levels,
        gbpages: true,
        ept_ad: true,
        ept_advanced: true,
        apicv: vendor == Vendor::INTEL,
        nrips: true,
        decode_assists: true,
        backing_shift: 21,
        pad: [0; 5],
    })
}

pub fn default_for(vendor: Vendor) -> Result<(String, Silicon)> {
    let name = if vendor == Vendor::AMD { "amd-48" } else { "intel-46" };
    Ok((name.to_owned(), parse(name)?))
}

pub fn other_vendor(silicon: &Silicon) -> Result<(String, Silicon)> {
    let vendor = if silicon.vendor == Vendor::AMD { "intel" } else { "amd" };
    let name = format!("{vendor}-{}", silicon.phys_bits);
    Ok((name.clone(), Silicon { backing_shift: silicon.backing_shift, ..parse(&name)? }))
}

pub fn guest_cpuid(model: &str, silicon: &Silicon, backend: &dyn Backend) -> Result<Vec<CpuidEntry>> {
    let mut width = u32::from(silicon.phys_bits);
    for part in model.split(',') {
        if let Some(bits) = part.strip_prefix("phys-bits=") {
            width = bits
                .parse()
                .ok()
                .filter(|n| (32..=52).contains(n))
                .ok_or_else(|| usage(format!("phys-bits={bits}")))?;
        }
    }
    let word = |text: &[u8; 4]| u32::from_le_bytes(*text);
    let (b, d, c) =
        if silicon.vendor == Vendor::AMD { (b"Auth", b"enti", b"cAMD") } else { (b"Genu", b"ineI", b"ntel") };
    let e = |function, eax, ebx, ecx, edx| CpuidEntry { function, eax, ebx, ecx, edx, ..Default::default() };
    let silicon_cpuid = [
        e(0, 0xd, word(b), word(c), word(d)),
        e(1, 0x000906ea, 0x0010_0800, 0x77fa_3203 & !(1 << 5), 0x0f8b_fbff),
        CpuidEntry { flags: 1, ..e(7, 0, 0x219c_07ab, 0x0000_001c, 0) },
        e(0xa, 0, 0, 0, 0),
        CpuidEntry { flags: 1, ..e(0xd, 7, 0x340, 0x340, 0) },
        e(0x8000_0000, 0x8000_0008, 0, 0, 0),
        e(0x8000_0001, 0, 0, 0x121, 0x2c10_0800),
        e(0x8000_0008, 0x3000 | width, 0, 0, 0),
    ];
    Ok(backend.supported_cpuid(&silicon_cpuid))
}
