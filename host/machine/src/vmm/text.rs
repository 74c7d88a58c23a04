//! Ioctls in words.

use super::script::Action;
use vmtape_abi::Query;
use vmtape_arch::cpuid::{CpuidEntry, maxphyaddr};
use vmtape_traces::event::Control;

/// An ioctl that nobody has made yet.
pub fn action_text(action: &Action) -> String {
    match action {
        Action::SetCpuid { vcpu, change } => format!("KVM_SET_CPUID2 vcpu {vcpu}, {change}"),
        Action::SetMemoryRegion { slot, gpa, size, .. } => {
            format!("KVM_SET_USER_MEMORY_REGION slot {slot} gpa {gpa:#x} size {size:#x}")
        }
        Action::SetMsr { vcpu, index, data } => format!("KVM_SET_MSRS vcpu {vcpu} {index:x} = {data:#x}"),
        Action::CheckExtension { cap } => format!("KVM_CHECK_EXTENSION {cap}"),
        Action::GetCpuid { vcpu } => format!("KVM_GET_CPUID2 vcpu {vcpu}"),
        Action::GetSupportedCpuid => "KVM_GET_SUPPORTED_CPUID".to_owned(),
        Action::GetMsr { vcpu, index } => format!("KVM_GET_MSRS vcpu {vcpu} {index:x}"),
        Action::Query { vcpu, query } => format!("{} vcpu {vcpu}", Query(*query)),
    }
}

/// An ioctl, what one looks at first in its arguments, and its result.
pub fn control_text(control: &Control) -> String {
    match control {
        Control::SetCpuid { vcpu, entries, result } => {
            format!("KVM_SET_CPUID2 vcpu {vcpu}, {}: {}", table_text(entries), result_text(*result))
        }
        Control::SetMemoryRegion { slot, flags, gpa, size, hpa, result } => format!(
            "KVM_SET_USER_MEMORY_REGION slot {slot} flags {flags:#x} gpa {gpa:#x} size {size:#x} hpa {hpa:#x}: {}",
            result_text(*result)
        ),
        Control::SetMsr { vcpu, index, data, result } => {
            format!("KVM_SET_MSRS vcpu {vcpu} {index:x} = {data:#x}: {}", result_text(*result))
        }
        Control::CheckExtension { cap, result } => format!("KVM_CHECK_EXTENSION {cap}: {result}"),
        Control::GetCpuid { vcpu, entries, result } => {
            format!("KVM_GET_CPUID2 vcpu {vcpu}: {}, {}", result_text(*result), table_text(entries))
        }
        Control::GetSupportedCpuid { entries, result } => {
            format!("KVM_GET_SUPPORTED_CPUID: {}, {}", result_text(*result), table_text(entries))
        }
        Control::GetMsr { vcpu, index, data, result: 0 } => {
            format!("KVM_GET_MSRS vcpu {vcpu} {index:x}: {data:#x}")
        }
        Control::GetMsr { vcpu, index, result, .. } => {
            format!("KVM_GET_MSRS vcpu {vcpu} {index:x}: {}", result_text(*result))
        }
        Control::Query { query, vcpu, value, result: 0 } => {
            format!("{} vcpu {vcpu}: {value:#x}", Query(*query))
        }
        Control::Query { query, vcpu, result, .. } => {
            format!("{} vcpu {vcpu}: {}", Query(*query), result_text(*result))
        }
    }
}

/// What one looks at first in a table: how long it is, and its widths.
fn table_text(entries: &[CpuidEntry]) -> String {
    let widths = entries.iter().find(|entry| entry.function == 0x8000_0008).map_or(0, |entry| entry.eax);
    let guest = widths >> 16 & 0xff;
    format!("{} entries, phys-bits {}, guest-phys-bits {guest}", entries.len(), maxphyaddr(entries))
}

/// Zero, or a negative errno by its name.
fn result_text(result: i32) -> String {
    /// See: Linux include/uapi/asm-generic/errno-base.h
    const NAMES: [(i32, &str); 8] = [
        (-2, "ENOENT"),
        (-5, "EIO"),
        (-7, "E2BIG"),
        (-14, "EFAULT"),
        (-16, "EBUSY"),
        (-17, "EEXIST"),
        (-22, "EINVAL"),
        (-25, "ENOTTY"),
    ];
    let name = NAMES.iter().find(|(errno, _)| *errno == result);
    name.map_or_else(|| result.to_string(), |(_, name)| format!("-{name}"))
}
