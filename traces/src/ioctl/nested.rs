//! Nested state, as the ioctls that save and restore it have it.

use super::field::{Field, Packed, Shown, Unpacked};
use serde::{Deserialize, Serialize};
use std::fmt;
use vmtape_arch::state::{Layout, NestedFormat, NestedState};
use xxhash_rust::xxh3::xxh3_64;

/// `struct kvm_nested_state`, byte for byte, and as many bytes as the VMM has of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NestedBytes(pub Vec<u8>);

impl Field for NestedBytes {
    fn pack(&self, to: &mut Packed<'_>) {
        to.bytes(self.0.iter().copied());
    }

    fn unpack(from: &mut Unpacked<'_>) -> Result<Self, &'static str> {
        Ok(Self(from.bytes().to_vec()))
    }
}

impl Shown for NestedBytes {
    type Text<'a> = Header<'a>;

    fn shown(&self) -> Header<'_> {
        Header(&self.0)
    }
}

/// The header, and a digest of what follows it.
pub struct Header<'a>(&'a [u8]);

impl fmt::Display for Header<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((header, data)) = self.0.split_at_checked(size_of::<NestedState>()) else {
            return write!(f, "{} bytes", self.0.len());
        };
        let Some(state) = NestedState::from_bytes(header) else { return Ok(()) };
        let format = NestedFormat(state.format);
        match format.name() {
            Some(name) => f.write_str(name)?,
            None => write!(f, "format {}", format.0)?,
        }
        write!(f, " flags {:#x} size {}", state.flags.into_bits(), state.size)?;
        let words = header.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        let svm = format == NestedFormat::SVM;
        for (at, word) in (0..).step_by(8).zip(words).skip(1) {
            match at {
                8 if svm => write!(f, " vmcb_pa {word:#x}")?,
                // gPAT, where nested state has it.
                8 | 16 => write!(f, " u64@{at} {word:#x}")?,
                _ if word != 0 => write!(f, " u64@{at} {word:#x}")?,
                _ => {}
            }
        }
        if data.is_empty() { Ok(()) } else { write!(f, " ({:016x})", xxh3_64(data)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_told_by_its_fields() {
        let mut state = NestedState::none(NestedFormat::SVM);
        let text = |bytes: Vec<u8>| NestedBytes(bytes).shown().to_string();
        assert_eq!(text(state.to_bytes()), "svm flags 0x100 size 128 vmcb_pa 0x0 u64@16 0x0");
        (state.header.vmxon_pa, state.header.vmcs12_pa) = (0x10_8000, 0x0606_0606_0606_0606);
        state.header.rest[10] = 7;
        let bytes = [state.to_bytes(), vec![0; 8]].concat();
        let expected = "svm flags 0x100 size 128 vmcb_pa 0x108000 u64@16 0x606060606060606 u64@120 0x7 (";
        assert!(text(bytes.clone()).starts_with(expected), "{}", text(bytes));
        let vmx = NestedState::none(NestedFormat::VMX);
        let nowhere = "vmx flags 0x0 size 128 u64@8 0xffffffffffffffff u64@16 0xffffffffffffffff";
        assert_eq!(text(vmx.to_bytes()), nowhere);
        assert_eq!(text(vec![0; 7]), "7 bytes");
    }
}
