//! /proc/cpuinfo, and what `lscpu` makes of it. See: Linux arch/x86/kernel/cpu/proc.c show_cpuinfo()

use super::evidence::{Evidence, WIDTHS};
use anyhow::{Context, Result, ensure};
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

/// What only the kernels of other architectures print.
/// See: Linux arch/{arm64,arm,powerpc,s390,riscv,loongarch}/kernel, show_cpuinfo() or c_show()
const FOREIGN: [&str; 7] =
    ["CPU implementer", "CPU architecture", "cpu", "# processors", "hart", "isa", "Loongson"];
/// `lscpu`'s names of the fields that are read.
const OF_LSCPU: [(&str, &str); 4] = [
    ("Vendor ID", "vendor_id"),
    ("Model name", "model name"),
    ("Address sizes", "address sizes"),
    ("Flags", "flags"),
];

pub fn is_one(text: &str) -> bool {
    let fields = || text.lines().filter_map(field);
    fields().any(|(key, _)| key == "vendor_id")
        || fields().any(|(key, _)| key == "processor") && fields().any(|(key, _)| FOREIGN.contains(&key))
}

/// A line's field, under the kernel's name.
fn field(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once(':')?;
    let (key, value) = (key.trim(), value.trim());
    let known = OF_LSCPU.iter().find(|(lscpu, _)| *lscpu == key);
    Some((known.map_or(key, |(_, kernel)| *kernel), value))
}

/// The fields of one processor. A line that is no field goes on with the one before, which was too long for who passed it on.
type Processor<'t> = BTreeMap<&'t str, Vec<&'t str>>;

pub fn read(text: &str) -> Result<Evidence> {
    let foreign = text.lines().filter_map(field).find(|(key, _)| FOREIGN.contains(key));
    ensure!(
        foreign.is_none(),
        "this /proc/cpuinfo is no x86 machine's: it has '{}'",
        foreign.map_or("", |(key, _)| key)
    );
    // What is pasted may end within a processor, or within its flags: what is last in it and in no line of its own.
    let ends_in_flags = !text.ends_with('\n')
        && text.lines().rev().find_map(field).is_some_and(|(key, _)| matches!(key, "flags" | "vmx flags"));
    let mut all = processors(text);
    let mut cut = Vec::new();
    if ends_in_flags && let Some(mut last) = all.pop() {
        last.remove("flags");
        cut.push(last);
    }
    let (whole, without): (Vec<_>, Vec<_>) = all.into_iter().partition(|fields| fields.contains_key("flags"));
    cut.extend(without);
    let first = whole.first().or(cut.first()).context("no processor is in it")?;
    let mut evidence =
        Evidence { complete: !whole.is_empty(), hidden: &HIDDEN, ..Evidence::of("/proc/cpuinfo") };
    if !cut.is_empty() {
        let told = "a processor that is cut in its flags, or before them, says nothing of features";
        evidence.remarks.push(told.to_owned());
    }
    let vendor = value(first, "vendor_id");
    // Whose module runs there. See: KVM vmx/vmx.c vmx_cpu_id[], svm/svm.c svm_init()
    evidence.vendor = match vendor.as_str() {
        "GenuineIntel" | "CentaurHauls" | "Shanghai" => Some(Vendor::INTEL),
        "AuthenticAMD" | "HygonGenuine" => Some(Vendor::AMD),
        _ => None,
    };
    if !matches!(vendor.as_str(), "GenuineIntel" | "AuthenticAMD" | "") {
        let whose =
            evidence.vendor.map_or("nobody's", |v| if v == Vendor::INTEL { "Intel's" } else { "AMD's" });
        evidence.remarks.push(format!("a processor of {vendor}, taken for {whose}"));
    }
    evidence.brand = first.contains_key("model name").then(|| value(first, "model name"));
    let told: BTreeSet<u8> = whole.iter().chain(&cut).filter_map(width).collect();
    let widths: BTreeSet<u8> = told.iter().copied().filter(|width| WIDTHS.contains(width)).collect();
    if let Some(width) = told.difference(&widths).next() {
        evidence.remarks.push(format!("no processor has {width} address bits: not taken over"));
    }
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
    let mut open = None;
    for line in text.lines() {
        let Some((key, value)) = field(line) else {
            let goes_on = open.filter(|_| !line.trim().is_empty());
            if let Some((last, key)) = processors.last_mut().zip(goes_on) {
                last.entry(key).or_default().push(line.trim());
            } else {
                open = None;
            }
            continue;
        };
        open = Some(key);
        let starts = key == "processor" || processors.last().is_none_or(|known| known.contains_key(key));
        if starts {
            processors.push(Processor::new());
        }
        if let Some(last) = processors.last_mut() {
            last.insert(key, vec![value]);
        }
    }
    processors.retain(|fields| fields.contains_key("vendor_id") || fields.contains_key("flags"));
    processors
}

fn words<'t>(processor: &Processor<'t>, field: &str) -> BTreeSet<&'t str> {
    let lines = processor.get(field).into_iter().flatten();
    lines.flat_map(|text| text.split_whitespace()).collect()
}

fn value(processor: &Processor, field: &str) -> String {
    processor.get(field).map_or_else(String::new, |lines| lines.join(" "))
}

fn width(processor: &Processor) -> Option<u8> {
    value(processor, "address sizes").split_whitespace().next()?.parse().ok()
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

    /// Mails wrap long lines.
    #[test]
    fn a_line_that_was_wrapped_is_one() {
        let wrapped = WHOLE.replace("fpu pku", "fpu\npku").replace("ept_ad apicv", "ept_ad\n  apicv");
        assert_ne!(wrapped, WHOLE);
        let (whole, wrapped) = (read(WHOLE).unwrap(), read(&wrapped).unwrap());
        assert_eq!((wrapped.features, wrapped.apicv), (whole.features, Some(true)));
    }

    /// Flags that end with the text may go on.
    #[test]
    fn flags_that_are_cut_take_no_features() {
        let at = WHOLE.find(" la57").unwrap();
        let cut = read(&WHOLE[..at]).unwrap();
        assert!(!cut.complete && cut.features.is_empty() && cut.host_levels.is_none());
        let second = read(&format!("{WHOLE}{}", &WHOLE[..at])).unwrap();
        assert_eq!(second.features, read(WHOLE).unwrap().features);
    }

    #[test]
    fn widths_that_nobody_has_are_not_taken_over() {
        let read = read(&WHOLE.replace("46 bits", "99 bits")).unwrap();
        assert_eq!(read.phys_bits, None);
        assert!(read.remarks.iter().any(|remark| remark.contains("99")));
    }

    #[test]
    fn other_vendors_and_architectures() {
        let shanghai = read(&WHOLE.replace("GenuineIntel", "  Shanghai  ")).unwrap();
        assert_eq!(shanghai.vendor, Some(Vendor::INTEL));
        assert!(shanghai.remarks.iter().any(|remark| remark.contains("Shanghai, taken for Intel's")));
        for text in [
            "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\n",
            "vendor_id       : IBM/S390\n# processors    : 4\nfeatures\t: esan3\n",
            "processor\t: 0\ncpu\t\t: POWER9\n",
        ] {
            assert!(is_one(text));
            assert!(read(text).unwrap_err().to_string().contains("no x86"), "{text}");
        }
    }

    #[test]
    fn lscpu_says_the_same() {
        let lscpu = "Architecture:    x86_64\nAddress sizes:   46 bits physical, 57 bits virtual\n\
                     Vendor ID:       GenuineIntel\nFlags:           fpu pku la57\nCaches (sum of all):\n";
        assert!(is_one(lscpu));
        let (read, whole) = (read(lscpu).unwrap(), read(WHOLE).unwrap());
        assert_eq!((read.features, read.phys_bits, read.vendor), (whole.features, Some(46), whole.vendor));
    }
}
