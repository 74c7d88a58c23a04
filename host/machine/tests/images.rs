//! Guest images that nobody should trust.

mod bare;

use proptest::prelude::*;
use vmtape_arch::host::Silicon;
use vmtape_machine::{Error, Live, LoadError, Machine};

const BASE: u32 = 0x10_0000;
const HEADER: usize = 52 + 32 * SEGMENTS;
const SEGMENTS: usize = 2;

/// Offsets in the second program header.
const SECOND: usize = 52 + 32;
const P_OFFSET: usize = SECOND + 4;
const P_PADDR: usize = SECOND + 12;
const P_FILESZ: usize = SECOND + 16;
const P_MEMSZ: usize = SECOND + 20;
const E_ENTRY: usize = 24;

/// A multiboot image with two segments, of which nothing runs.
fn image() -> Vec<u8> {
    let mut image = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut words = |words: &[u32]| image.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    words(&[3 << 16 | 2, 1, BASE + HEADER as u32 + 12, 52, 0, 0, 32 << 16 | 52, SEGMENTS as u32, 0]);
    words(&[1, 0, BASE, BASE, 0x100, 0x100, 7, 0x1000]);
    words(&[1, 0x100, BASE + 0x1000, BASE + 0x1000, 0x10, 0x2000, 6, 0x1000]);
    words(&[0x1bad_b002, 0, 0x1bad_b002u32.wrapping_neg()]);
    image.resize(0x110, 0xf4);
    image
}

fn load(bytes: Vec<u8>) -> Result<(), Error> {
    let mut spec = bare::spec("bad.flat", bytes, 1);
    spec.memory = 4 << 20;
    Machine::new(spec, Box::new(bare::Bare::default()), Box::new(Live::new(1)), None).map(drop)
}

fn with(at: usize, word: u32) -> Vec<u8> {
    let mut image = image();
    image[at..at + 4].copy_from_slice(&word.to_le_bytes());
    image
}

fn cause(bytes: Vec<u8>) -> LoadError {
    match load(bytes) {
        Err(Error::Image { file, cause }) => {
            assert_eq!(file, "bad.flat");
            cause
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_defect_has_its_name() {
    load(image()).unwrap();
    assert_eq!(cause(b"hello".to_vec()), LoadError::Unknown);
    assert_eq!(cause(with(E_ENTRY, 0x1234)), LoadError::Entry(0x1234));
    assert_eq!(cause(with(P_PADDR, BASE + 0x80)), LoadError::Overlap(BASE.into(), (BASE + 0x80).into()));
    assert!(matches!(cause(with(P_FILESZ, 0x1000)), LoadError::Truncated { len: 0x110, .. }));
    assert!(matches!(cause(with(P_OFFSET, u32::MAX)), LoadError::Truncated { .. }));
    assert_eq!(cause(with(P_MEMSZ, 1)), LoadError::SegmentSize((BASE + 0x1000).into()));
    assert!(matches!(cause(with(P_MEMSZ, 0x7fff_0000)), LoadError::NoMemory { .. }));
    assert!(matches!(cause(with(P_PADDR, 0xffff_f000)), LoadError::NoMemory { .. }));
    assert_eq!(cause(with(HEADER, 0)), LoadError::NoMultiboot);
    let mut elf64 = image();
    elf64[4] = 2;
    assert_eq!(cause(elf64), LoadError::ElfClass);
}

#[test]
fn memory_must_make_sense() {
    for (memory, vcpus) in [(0, 1), (1234, 1), (1 << 50, 1), (4 << 20, 0), (4 << 20, 5000)] {
        let mut spec = bare::spec("any", image(), vcpus);
        spec.memory = memory;
        let machine = Machine::new(spec, Box::new(bare::Bare::default()), Box::new(Live::new(1)), None);
        assert!(machine.is_err(), "{memory:#x} bytes, {vcpus} vCPUs");
    }
}

#[test]
fn silicon_must_make_sense() {
    let changes: [fn(&mut Silicon); 4] =
        [|s| s.phys_bits = 53, |s| s.host_levels = 16, |s| s.ept_levels = 0, |s| s.backing_shift = 11];
    for change in changes {
        let mut spec = bare::spec("any.flat", image(), 1);
        change(&mut spec.silicon);
        let built = Machine::new(spec, Box::new(bare::Bare::default()), Box::new(Live::new(1)), None);
        assert!(matches!(built.map(drop), Err(Error::Host { .. })));
    }
}

/// A bzImage's header with a code32_start of 1 MiB, and 512 bytes of kernel.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 0x600];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206] = 0xc;
    image[0x207] = 2;
    image[0x211] = 1;
    image[0x216] = 0x10;
    image
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_image_makes_the_loaders_panic(
        bz: bool,
        changes in proptest::collection::vec((0usize..0x600, any::<u8>()), 1..8),
        cut in 0usize..0x700,
    ) {
        let mut image = if bz { bzimage() } else { image() };
        for (at, byte) in changes {
            let len = image.len();
            image[at % len] = byte;
        }
        image.truncate(cut);
        vmtape_machine::fuzz::image(&image);
    }
}
