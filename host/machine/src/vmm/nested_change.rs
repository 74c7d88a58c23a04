//! Changes to nested state, in words: what a VMM passes to KVM_SET_NESTED_STATE instead of what KVM_GET_NESTED_STATE gave.

use std::{ops::Range, str::FromStr};

/// A change to `struct kvm_nested_state`.
///
/// Words, separated by commas: `same`; `flags=F`, `format=N`, `size=N`, `vmcb_pa=A` (fields of the header); `u64@OFFSET=VALUE`:
/// eight bytes anywhere; `bytes=N`: the VMM's buffer, cut or filled up with zeros, whatever the header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NestedChange(Vec<Change>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    /// A number of so many bytes at an offset.
    Number {
        at: usize,
        bytes: usize,
        value: u64,
    },
    Bytes(usize),
}

/// The header's fields. See: Linux arch/x86/include/uapi/asm/kvm.h struct kvm_nested_state, struct kvm_svm_nested_state_hdr
const FIELDS: [(&str, Range<usize>); 4] =
    [("flags", 0..2), ("format", 2..4), ("size", 4..8), ("vmcb_pa", 8..16)];
/// More than any format has (VMX: 128 + 2 * 4096), and small enough for a tape.
const MOST_BYTES: usize = 0x4000;

impl FromStr for NestedChange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words = text.split(',').filter(|word| *word != "same");
        Ok(Self(words.map(change).collect::<Result<_, _>>()?))
    }
}

fn change(word: &str) -> Result<Change, String> {
    let unknown = || format!("`{word}` is no change to nested state");
    let (key, text) = word.split_once('=').ok_or_else(unknown)?;
    let value = number(word, text)?;
    let within = |offset: u64, bytes: usize| match usize::try_from(offset) {
        Ok(offset) if offset <= MOST_BYTES - bytes => Ok(offset),
        _ => Err(format!("{word}: nested state has {MOST_BYTES} bytes at most here")),
    };
    if key == "bytes" {
        return Ok(Change::Bytes(within(value, 0)?));
    }
    if let Some(offset) = key.strip_prefix("u64@") {
        return Ok(Change::Number { at: within(number(word, offset)?, 8)?, bytes: 8, value });
    }
    let (_, place) = FIELDS.iter().find(|(name, _)| *name == key).ok_or_else(unknown)?;
    let bits = 8 * place.len() as u32;
    if bits < u64::BITS && value >> bits != 0 {
        return Err(format!("{word}: {key} has {bits} bits"));
    }
    Ok(Change::Number { at: place.start, bytes: place.len(), value })
}

fn number(word: &str, text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{word}: `{text}` is no number of 64 bits"))
}

impl NestedChange {
    /// The changed state.
    pub fn apply(&self, mut state: Vec<u8>) -> Vec<u8> {
        for change in &self.0 {
            match *change {
                Change::Bytes(count) => state.resize(count, 0),
                Change::Number { at, bytes, value } => {
                    state.resize(state.len().max(at + bytes), 0);
                    state[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
                }
            }
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(text: &str) -> Vec<u8> {
        text.parse::<NestedChange>().unwrap().apply(vec![0xaa; 24])
    }

    #[test]
    fn changes_are_made_where_the_structure_has_them() {
        assert_eq!(applied("same"), [0xaa; 24]);
        let changed = applied("flags=0x103,format=1,size=0x1080,vmcb_pa=0x108000,u64@16=0x0606060606060604");
        let expected =
            [[0x03, 1, 1, 0, 0x80, 0x10, 0, 0], [0, 0x80, 0x10, 0, 0, 0, 0, 0], [4, 6, 6, 6, 6, 6, 6, 6]];
        assert_eq!(changed, expected.concat());
        assert_eq!(applied("bytes=7"), [0xaa; 7]);
        assert_eq!(applied("u64@24=1"), [vec![0xaa; 24], vec![1, 0, 0, 0, 0, 0, 0, 0]].concat());
    }

    #[test]
    fn what_is_no_change_is_refused() {
        for text in [
            "",
            "gif",
            "flags=x",
            "flags=0x10000",
            "size=0x100000000",
            "u64@0x3ff9=1",
            "bytes=0x4001",
            "u64@=1",
        ] {
            assert!(text.parse::<NestedChange>().is_err(), "{text}");
        }
    }
}
