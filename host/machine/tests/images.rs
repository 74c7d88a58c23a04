//! Guest images that nobody should trust.

mod bare;

use proptest::prelude::*;
use vmtape_arch::host::Silicon;
use vmtape_machine::{Error, Live, LoadError, Machine, Memory, load_image};

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

/// Offsets in a bzImage's header. See: Linux Documentation/arch/x86/boot.rst, The Real-Mode Kernel Header
const VERSION: usize = 0x206;
const INITRD_ADDR_MAX: usize = 0x22c;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
/// Where the header's fields lie in the guest's memory: the zero page has them at the same offsets.
const ZERO_PAGE: u64 = 0x7000;
const RAMDISK_IMAGE: u64 = 0x218;
const RAMDISK_SIZE: u64 = 0x21c;
const MIB: u32 = 1 << 20;

/// A bzImage's header of protocol 2.12 with a code32_start of 1 MiB, and 512 bytes of kernel.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 0x600];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[VERSION..VERSION + 2].copy_from_slice(&[0xc, 2]);
    image[0x211] = 1;
    image[0x216] = 0x10;
    image
}

/// Loads a bzImage with these words in its header, and an initrd, into 32 MiB. Gives where the zero page says that the initrd
/// lies, if it lies there.
fn load_initrd(words: &[(usize, u32)], initrd: &[u8]) -> Result<(u32, u32), LoadError> {
    let mut bytes = bzimage();
    for (at, word) in words {
        bytes[*at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    let mut spec = bare::spec("bzImage", bytes, 1);
    spec.memory = 32 << 20;
    spec.initrd = Some(initrd.to_vec());
    let memory = Memory::new(spec.memory, spec.layout, spec.silicon.backing_shift, &[]).unwrap();
    load_image(&spec, &memory).map_err(|error| match error {
        Error::Image { cause, .. } => cause,
        other => panic!("{other}"),
    })?;
    let read = |gpa, bytes: &mut [u8]| assert!(memory.ram().read(memory.hpa(gpa).unwrap(), bytes));
    let word = |at| {
        let mut word = [0; 4];
        read(ZERO_PAGE + at, &mut word);
        u32::from_le_bytes(word)
    };
    let (start, size) = (word(RAMDISK_IMAGE), word(RAMDISK_SIZE));
    let mut found = vec![0; initrd.len()];
    read(start.into(), &mut found);
    assert_eq!(found, initrd);
    Ok((start, size))
}

#[test]
fn an_initrd_lies_as_high_as_the_kernel_allows() {
    let high = (INITRD_ADDR_MAX, 0x7fff_ffff);
    assert_eq!(load_initrd(&[high], b"initrd"), Ok((32 * MIB - 0x1000, 6)));
    assert_eq!(load_initrd(&[high], &[7; 0x1001]), Ok((32 * MIB - 0x2000, 0x1001)));
    assert_eq!(load_initrd(&[(INITRD_ADDR_MAX, 8 * MIB - 1)], b"initrd"), Ok((8 * MIB - 0x1000, 6)));
    // Protocol 2.02 has no such field.
    assert_eq!(load_initrd(&[(VERSION, 0x202)], b"initrd"), Ok((32 * MIB - 0x1000, 6)));
}

#[test]
fn an_initrd_does_not_lie_where_the_kernel_will() {
    let kernel = [(INITRD_ADDR_MAX, 0x7fff_ffff), (PREF_ADDRESS, 16 * MIB), (INIT_SIZE, 8 * MIB)];
    let largest = vec![1; 8 << 20];
    assert_eq!(load_initrd(&kernel, &largest), Ok((24 * MIB, 8 * MIB)));
    let (len, start, end) = ((8 << 20) + 1, 24 << 20, 32 << 20);
    assert_eq!(
        load_initrd(&kernel, &[&largest[..], &[1]].concat()),
        Err(LoadError::Initrd { len, start, end })
    );
    assert_eq!(load_initrd(&kernel, &[]), Err(LoadError::EmptyInitrd));
    let beyond = load_initrd(&[(PREF_ADDRESS, 16 * MIB), (INIT_SIZE, 17 * MIB)], b"initrd");
    assert!(matches!(beyond, Err(LoadError::NoMemory { .. })), "{beyond:?}");
}

#[test]
fn a_boot_sector_takes_no_initrd() {
    let mut sector = vec![0xf4; 512];
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let mut spec = bare::spec("sector", sector, 1);
    spec.initrd = Some(vec![1]);
    let machine = Machine::new(spec, Box::new(bare::Bare::default()), Box::new(Live::new(1)), None);
    assert!(matches!(machine.map(drop), Err(Error::Image { cause: LoadError::InitrdOfBootSector, .. })));
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
