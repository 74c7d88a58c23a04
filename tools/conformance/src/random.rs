//! Guests of random code: the same bytes for a seed on every machine.

/// xorshift64*
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, most: u64) -> u64 {
        (self.next() >> 8) % most
    }

    fn of<'a>(&mut self, list: &[&'a [u8]]) -> &'a [u8] {
        list[self.below(list.len() as u64) as usize]
    }

    /// A few bytes of anything.
    fn bytes(&mut self) -> Vec<u8> {
        let length = 1 + self.below(7) as usize;
        self.next().to_le_bytes()[..length].to_vec()
    }
}

/// Instructions that virtualization is about.
const SENSITIVE: [&[u8]; 12] = [
    b"\x0f\xa2",
    b"\x0f\x30",
    b"\x0f\x32",
    b"\x0f\x01\xc1",
    b"\x0f\x0b",
    b"\xf3\x6c",
    b"\xf3\x6e",
    b"\xe6\x43",
    b"\xe4\x40",
    b"\x0f\x20\xc0",
    b"\x0f\x22\xc0",
    b"\xf3\xa4",
];

/// A boot sector in real mode, of which every second piece is sensitive.
pub fn boot_sector(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut sector = Vec::new();
    while sector.len() < 496 {
        match random.next() & 1 {
            0 => sector.extend_from_slice(random.of(&SENSITIVE)),
            _ => sector.extend(random.bytes()),
        }
    }
    sector.resize(510, 0xf4);
    sector.extend([0x55, 0xaa]);
    sector
}

/// Where a paged guest's image lies, and what is in it: code, then tables, then blocks.
const BASE: u32 = 0x10_0000;
const ENTRY: u32 = 0x60;
const HANDLER: u32 = 0x200;
const GDT: u32 = 0x300;
const IDT: u32 = 0x400;
const COUNTER: u32 = 0x600;
const BLOCKS: u32 = 0x800;
/// Pieces of random code: an exception goes on with the next one.
const BLOCK: u32 = 64;
const COUNT: u32 = 24;
const DIRECTORY: u32 = 0x20_0000;
const TABLE: u32 = 0x30_0000;

/// A guest under 32-bit paging that rewrites its page directory and a page table, and touches what they map.
pub fn paged(seed: u64) -> Vec<u8> {
    let mut image = vec![0_u8; (BLOCKS + BLOCK * COUNT + 0x40) as usize];
    let mut put =
        |at: u32, bytes: &[u8]| image[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x01\x01\x01");
    for (at, half) in [(16, 2), (18, 3), (40, 52), (42, 32), (44, 1)] {
        put(at, &u16::to_le_bytes(half));
    }
    let length = BLOCKS + BLOCK * COUNT + 0x40;
    let words =
        [(20, 1), (24, BASE + ENTRY), (28, 52), (52, 1), (60, BASE), (64, BASE), (68, length), (72, length)];
    let multiboot = [(84, 0x1bad_b002), (92, 0x1bad_b002_u32.wrapping_neg())];
    for (at, word) in words.into_iter().chain([(76, 7), (80, 0x1000)]).chain(multiboot) {
        put(at, &u32::to_le_bytes(word));
    }
    put(GDT + 8, &0x00cf_9a00_0000_ffff_u64.to_le_bytes());
    put(GDT + 16, &0x00cf_9200_0000_ffff_u64.to_le_bytes());
    let pointer = |limit: u16, base: u32| [&limit.to_le_bytes()[..], &base.to_le_bytes()].concat();
    put(GDT + 0x20, &pointer(23, BASE + GDT));
    put(GDT + 0x30, &pointer(255, BASE + IDT));
    for vector in 0..32 {
        let handler = u64::from(BASE + HANDLER);
        let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48;
        put(IDT + 8 * vector, &gate.to_le_bytes());
    }
    put(ENTRY, &prologue());
    put(HANDLER, &handler());

    let mut random = Random::new(seed);
    for block in 0..COUNT {
        let mut code = Vec::new();
        while code.len() < 48 {
            code.extend(piece(&mut random));
        }
        put(BLOCKS + BLOCK * block, &code[..code.len().min(BLOCK as usize)]);
    }
    put(BLOCKS + BLOCK * COUNT, b"\x31\xc0\xe6\xf4\xf4");
    image
}

/// Descriptor tables, a directory of 4 MiB pages that map to themselves, paging with CR0.WP.
fn prologue() -> Vec<u8> {
    let mut code = Vec::new();
    let address = |offset: u32| (BASE + offset).to_le_bytes();
    code.extend([&b"\x0f\x01\x15"[..], &address(GDT + 0x20), b"\x0f\x01\x1d", &address(GDT + 0x30)].concat());
    // ljmp 8:next; next: mov ax, 16; to ds, es, ss
    let next = BASE + ENTRY + code.len() as u32 + 7;
    code.extend([&b"\xea"[..], &next.to_le_bytes(), b"\x08\x00"].concat());
    code.extend(b"\x66\xb8\x10\x00\x8e\xd8\x8e\xc0\x8e\xd0");
    // mov esp, DIRECTORY; mov edi, DIRECTORY; mov eax, 0x87; mov ecx, 1024; 1: stosd; add eax, 0x400000; loop 1b
    code.extend([&b"\xbc"[..], &DIRECTORY.to_le_bytes(), b"\xbf", &DIRECTORY.to_le_bytes()].concat());
    code.extend(b"\xb8\x87\x00\x00\x00\xb9\x00\x04\x00\x00\xab\x05\x00\x00\x40\x00\xe2\xf8");
    // mov eax, DIRECTORY; mov cr3, eax; mov eax, cr4; or al, 0x10; mov cr4, eax; mov eax, cr0; or eax, 0x80010000; mov cr0, eax
    code.extend(
        [&b"\xb8"[..], &DIRECTORY.to_le_bytes(), b"\x0f\x22\xd8\x0f\x20\xe0\x0c\x10\x0f\x22\xe0"].concat(),
    );
    code.extend(b"\x0f\x20\xc0\x0d\x00\x00\x01\x80\x0f\x22\xc0");
    // jmp to the first block
    let from = ENTRY + code.len() as u32 + 5;
    code.extend([&b"\xe9"[..], &(BLOCKS - from).to_le_bytes()].concat());
    code
}

/// On with the next block: mov ax, 16; mov ds, ax; mov ss, ax; mov esp, DIRECTORY; inc dword [COUNTER]; mov eax, [COUNTER]; cmp eax,
/// COUNT; jb 1f; mov eax, COUNT; 1: shl eax, 6; add eax, BLOCKS; jmp eax
fn handler() -> Vec<u8> {
    let counter = (BASE + COUNTER).to_le_bytes();
    [
        &b"\x66\xb8\x10\x00\x8e\xd8\x8e\xd0\xbc"[..],
        &DIRECTORY.to_le_bytes(),
        b"\xff\x05",
        &counter,
        b"\xa1",
        &counter,
        b"\x83\xf8",
        &[COUNT as u8],
        b"\x72\x05\xb8",
        &COUNT.to_le_bytes(),
        b"\xc1\xe0\x06\x05",
        &(BASE + BLOCKS).to_le_bytes(),
        b"\xff\xe0",
    ]
    .concat()
}

/// A sensitive instruction, a rewritten entry, an access, or anything.
fn piece(random: &mut Random) -> Vec<u8> {
    let touched = |random: &mut Random| {
        // Beyond the first page of the directory, which holds the guest itself; some of it lies beyond memory.
        let page = 1 + random.below(15) as u32;
        (page << 22 | (random.below(0x40_0000) as u32) & !3).to_le_bytes()
    };
    match random.below(8) {
        0 => random.of(&SENSITIVE).to_vec(),
        1 | 2 => {
            // mov dword [entry], anything that is often present
            let (table, slot) = match random.below(2) {
                0 => (DIRECTORY, 1 + random.below(15) as u32),
                _ => (TABLE, random.below(1024) as u32),
            };
            let flags = (random.next() >> 16) as u32 & 0x1ff | 1;
            let frame = match random.below(4) {
                0 => TABLE,
                1 => (random.below(64) as u32) << 22,
                2 => (random.below(0x4000) as u32) << 12,
                _ => random.next() as u32 & !0xfff,
            };
            [&b"\xc7\x05"[..], &(table + 4 * slot).to_le_bytes(), &(frame | flags).to_le_bytes()].concat()
        }
        3 => [&b"\xa1"[..], &touched(random)].concat(),
        4 => [&b"\xa3"[..], &touched(random)].concat(),
        5 => [&b"\x0f\x01\x3d"[..], &touched(random)].concat(),
        // mov eax, cr3; mov cr3, eax
        6 => b"\x0f\x20\xd8\x0f\x22\xd8".to_vec(),
        _ => random.bytes(),
    }
}
