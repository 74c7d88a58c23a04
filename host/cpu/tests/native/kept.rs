//! What processors showed, kept as digests: so that a vendor's rules are tested on the other vendor's processors too.
//!
//! A digest is of the interpreter's outcomes over a mnemonic's forms and states, taken while each of them agreed with the
//! silicon. `VMTAPE_NATIVE_RECORD=FILE cargo test -p vmtape_cpu --test native -- --test-threads=1` writes them for the
//! processor at hand; the file then gets an entry in [`ALL`].

use crate::{
    compare::Outcome,
    forms::Form,
    silicon::{Ending, Mode},
};
use std::{collections::BTreeMap, fmt::Write, fs::OpenOptions, io::Write as _};
use vmtape_arch::host::Vendor;
use xxhash_rust::xxh3::Xxh3;

/// A processor that was recorded.
pub struct Kept {
    pub name: &'static str,
    pub vendor: Vendor,
    /// Forms in 64-bit, 32-bit and 16-bit code. Random states depend on them.
    forms: [usize; 3],
    digests: &'static str,
}

pub const ALL: &[Kept] = &[Kept {
    name: "AMD EPYC, family 25 model 17",
    vendor: Vendor::AMD,
    forms: [2219, 960, 1009],
    digests: include_str!("kept/amd-25-17.txt"),
}];

/// What a form's outcomes are for.
pub enum Against<'a> {
    /// Compared with the processor at hand.
    Silicon(&'a mut Digest),
    /// Digested only.
    Kept(&'a mut Digest),
}

impl Against<'_> {
    pub fn is_kept(&self) -> bool {
        matches!(self, Self::Kept(_))
    }

    pub fn digest(&mut self) -> &mut Digest {
        match self {
            Self::Silicon(digest) | Self::Kept(digest) => digest,
        }
    }
}

/// Of outcomes.
#[derive(Default)]
pub struct Digest(Xxh3);

impl Digest {
    pub fn add(&mut self, outcome: &Outcome) {
        let context = &outcome.context;
        let mut word = |word: u64| self.0.update(&word.to_le_bytes());
        match outcome.ending {
            Ending::Next => word(1),
            Ending::Target => word(2),
            Ending::Target16 => word(3),
            Ending::Fault(fault) => {
                [4, fault.vector.into(), fault.error.into(), fault.address].into_iter().for_each(&mut word);
            }
        }
        context.gpr.into_iter().for_each(&mut word);
        word(context.rflags);
        context.ymm_hi.as_flattened().iter().for_each(|half| word(*half));
        self.0.update(&context.fx);
        self.0.update(&outcome.data);
    }
}

/// By mode and mnemonic.
#[derive(Default)]
pub struct Digests(BTreeMap<String, u64>);

impl Digests {
    pub fn add(&mut self, form: &Form, digest: &Digest) {
        let digest = digest.0.digest();
        let sum = self.0.entry(format!("{:?} {:?}", form.mode, form.mnemonic())).or_default();
        *sum = sum.rotate_left(1) ^ digest;
    }
}

impl Kept {
    /// Whether a mode has as many forms here as it had there.
    pub fn has(&self, mode: Mode, forms: usize) -> bool {
        let [bits64, bits32, bits16] = self.forms;
        forms
            == match mode {
                Mode::Bits64 => bits64,
                Mode::Bits32 => bits32,
                Mode::Bits16 => bits16,
            }
    }

    /// Modes and mnemonics whose digest is another one, or is missing on one side.
    pub fn differences(&self, now: &Digests) -> Vec<String> {
        let then: BTreeMap<_, _> = self
            .digests
            .lines()
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(name, digest)| Some((name.to_owned(), u64::from_str_radix(digest, 16).ok()?)))
            .collect();
        let names: std::collections::BTreeSet<_> = then.keys().chain(now.0.keys()).collect();
        names.into_iter().filter(|name| then.get(*name) != now.0.get(*name)).cloned().collect()
    }
}

/// Appends to the file of VMTAPE_NATIVE_RECORD, if it is set.
pub fn record(digests: &Digests) {
    let Ok(path) = std::env::var("VMTAPE_NATIVE_RECORD") else { return };
    let mut text = String::new();
    for (name, digest) in &digests.0 {
        writeln!(text, "{name} {digest:016x}").expect("strings take all");
    }
    let mut file =
        OpenOptions::new().create(true).append(true).open(path).expect("VMTAPE_NATIVE_RECORD is a file");
    file.write_all(text.as_bytes()).expect("the digests are written");
}
