//! /proc/cpuinfo. See: Linux arch/x86/kernel/cpu/proc.c show_cpuinfo()

use super::evidence::Evidence;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use vmtape_arch::host::Vendor;

/// Flags that the kernel spells otherwise than QEMU. See: Linux arch/x86/include/asm/cpufeatures.h
const SPELLED: [(&str, &str); 4] = [
    ("tsc_deadline_timer", "tsc-deadline"),
    ("cr8_legacy", "cr8legacy"),
    ("sha_ni", "sha-ni"),
    ("constant_tsc", "invtsc"),
];
/// Features that the kernel knows and does not show.
const HIDDEN: [&str; 2] = ["svme-addr-chk", "xsaves"];

pub fn is_one(text: &str) -> bool {
    text.lines().any(|line| key(line) == Some("vendor_id"))
}

fn key(line: &str) -> Option<&str> {
    line.split_once(':').map(|(key, _)| key.trim())
}

/// The fields of one processor.
type Processor<'t> = BTreeMap<&'t str, &'t str>;

pub fn read(text: &str) -> Result<Evidence> {
    // What is pasted may end within a processor.
    let (whole, cut): (Vec<_>, Vec<_>) =
        processors(text).into_iter().partition(|fields| fields.contains_key("flags"));
    let first = whole.first().or(cut.first()).context("no processor is in it")?;
    let mut evidence =
        Evidence { complete: !whole.is_empty(), hidden: &HIDDEN, ..Evidence::of("/proc/cpuinfo") };
    if !cut.is_empty() {
        evidence.remarks.push("a processor without flags is cut, and says nothing of features".to_owned());
    }
    evidence.vendor = match *first.get("vendor_id").unwrap_or(&"") {
        "GenuineIntel" | "CentaurHauls" | "  Shanghai  " => Some(Vendor::INTEL),
        "AuthenticAMD" | "HygonGenuine" => Some(Vendor::AMD),
        _ => None,
    };
    evidence.brand = first.get("model name").map(|name| (*name).to_owned());
    let widths: BTreeSet<u8> = whole.iter().chain(&cut).filter_map(width).collect();
    evidence.phys_bits = widths.first().copied();
    let mut flags = words(first, "flags");
    let mut vmx = words(first, "vmx flags");
    let mut unequal = widths.len() > 1;
    for other in whole.iter().skip(1) {
        let its = words(other, "flags");
        unequal |= its != flags;
        flags.retain(|flag| its.contains(flag));
        if other.contains_key("vmx flags") {
            let its = words(other, "vmx flags");
            unequal |= its != vmx;
            vmx.retain(|flag| its.contains(flag));
        }
    }
    if unequal {
        evidence.remarks.push("its processors differ: what all of them have, and the narrowest".to_owned());
    }
    for flag in &flags {
        let name = SPELLED.iter().find(|(linux, _)| linux == flag).map_or(*flag, |(_, qemu)| *qemu);
        evidence.feature(name, true);
    }
    // The kernel shows la57 where it uses five levels itself, unless it was told not to.
    evidence.host_levels = evidence.complete.then_some(if flags.contains("la57") { 5 } else { 4 });
    if first.contains_key("vmx flags") {
        evidence.ept_levels = Some(if vmx.contains("ept_5level") { 5 } else { 4 });
        evidence.ept_ad = Some(vmx.contains("ept_ad"));
        evidence.apicv = Some(vmx.contains("apicv"));
        evidence
            .remarks
            .push("a kernel before v6.9 shows no ept_5level though silicon may have it".to_owned());
    }
    if flags.contains("hypervisor") {
        evidence
            .remarks
            .push("this machine is a guest itself: all of this is what its hypervisor gives".to_owned());
    }
    evidence
        .remarks
        .push("the width is what the kernel uses: memory encryption may have taken some".to_owned());
    Ok(evidence)
}

fn processors(text: &str) -> Vec<Processor<'_>> {
    let mut processors: Vec<Processor> = Vec::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let (key, value) = (key.trim(), value.trim());
        let starts = key == "processor" || processors.last().is_none_or(|known| known.contains_key(key));
        if starts {
            processors.push(Processor::new());
        }
        if let Some(last) = processors.last_mut() {
            last.insert(key, value);
        }
    }
    processors.retain(|fields| fields.contains_key("vendor_id") || fields.contains_key("flags"));
    processors
}

fn words<'t>(processor: &Processor<'t>, field: &str) -> BTreeSet<&'t str> {
    processor.get(field).into_iter().flat_map(|text| text.split_whitespace()).collect()
}

fn width(processor: &Processor) -> Option<u8> {
    processor.get("address sizes")?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu pku la57\n\
                         vmx flags\t: ept_ad apicv\naddress sizes\t: 46 bits physical, 57 bits virtual\n\n";

    /// A text that ends within its second processor says of it what it says, and takes nothing from the first.
    #[test]
    fn a_processor_that_is_cut_takes_no_features() {
        let first = read(WHOLE).unwrap();
        for lines in 2..5 {
            let second: Vec<&str> = WHOLE.lines().take(lines).collect();
            let both = read(&format!("{WHOLE}{}\n", second.join("\n"))).unwrap();
            assert_eq!(both.features, first.features, "{lines} lines");
            assert_eq!((both.ept_ad, both.host_levels), (Some(true), Some(5)), "{lines} lines");
            let cut = both.remarks.iter().any(|remark| remark.contains("is cut"));
            assert_eq!(cut, lines < 3, "{lines} lines");
        }
        assert!(!read("processor : 0\nvendor_id : AuthenticAMD\n").unwrap().complete);
    }
}
