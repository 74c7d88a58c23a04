//! Memory slots, which KVM traces nowhere: QEMU does (`kvm_set_user_memory`), and probes on the kernel's own function.
//!
//! See: QEMU accel/kvm/trace-events kvm_set_user_memory; KVM virt/kvm/kvm_main.c kvm_set_memslot()

/// A slot as a line tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub gpa: u64,
    pub size: u64,
}

const EVENTS: [&str; 3] = ["kvm_set_user_memory", "kvm_set_memslot", "kvm_set_memory_region"];
const PAGE_SHIFT: u32 = 12;

/// Reads the slot of a line. One of no size is a slot that goes.
pub fn parse(line: &str) -> Option<Slot> {
    EVENTS.iter().find(|event| line.contains(**event))?;
    let pages = |name| number(line, name)?.checked_shl(PAGE_SHIFT);
    let gpa =
        number(line, "gpa").or_else(|| number(line, "guest_phys_addr")).or_else(|| pages("base_gfn"))?;
    let size = number(line, "size").or_else(|| number(line, "memory_size")).or_else(|| pages("npages"))?;
    (size > 0).then_some(Slot { gpa, size })
}

/// `NAME=0x1000` or `NAME=4096`, as a word of its own.
fn number(line: &str, name: &str) -> Option<u64> {
    let value = line.split([' ', ',', '(']).find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
    match value.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => value.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_as_qemu_and_probes_print_them() {
        let high = Some(Slot { gpa: 0x1_0000_0000, size: 0x8000_0000 });
        for line in [
            "tracing_mark_write: kvm_set_user_memory Slot#1 flags=0x0 gpa=0x100000000 size=0x80000000 ua=0x7f00 ret=0",
            "print: kvm_set_user_memory AddrSpace#0 Slot#1 flags=0x4 gpa=0x100000000 size=0x80000000 ua=0x7f00 \
             guest_memfd=-1 guest_memfd_offset=0x0 ret=0",
            "kvm_set_memslot: (kvm_set_memslot+0x0/0x3b0) base_gfn=0x100000 npages=0x80000",
        ] {
            assert_eq!(parse(line), high, "{line}");
        }
        assert_eq!(parse("print: kvm_set_user_memory Slot#1 flags=0x0 gpa=0x0 size=0x0 ua=0x0 ret=0"), None);
        assert_eq!(parse("kvm_fpu: load gpa=0x1000 size=0x1000"), None);
    }
}
