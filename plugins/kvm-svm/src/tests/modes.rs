//! Every paging mode, in both forms.

use super::bench::*;
use vmtape_abi::{Backend, Host};
use vmtape_arch::regs::{Cr0, Cr4, Efer};

/// A paging mode to try: its registers and the words of its tables.
struct ModeCase {
    name: &'static str,
    cr0: Cr0,
    cr4: Cr4,
    long: bool,
    /// Address, value, bytes.
    words: Vec<(u64, u64, usize)>,
    pdptr: [u64; 4],
    /// Linear address, host physical page.
    pages: Vec<(u64, u64)>,
}

fn mode_cases() -> Vec<ModeCase> {
    let paged = Cr0::new().with_pe(true).with_pg(true).with_wp(true).with_et(true);
    let pae = Cr4::new().with_pae(true);
    let t = TABLES;
    vec![
        ModeCase {
            name: "paging off",
            cr0: Cr0::new().with_pe(true).with_et(true),
            cr4: Cr4::new(),
            long: false,
            words: Vec::new(),
            pdptr: [0; 4],
            pages: vec![(0x1000, 0x1000), (0x2f_f000, 0x2f_f000)],
        },
        ModeCase {
            name: "32-bit, all four quarters and both halves of a table",
            cr0: paged,
            cr4: Cr4::new().with_pse(true),
            long: false,
            words: vec![
                (t[0], t[1] | 7, 4),
                (t[0] + 4 * 0x3ff, t[1] | 7, 4),
                (t[0] + 4 * 0x140, t[1] | 7, 4),
                (t[0] + 4 * 0x240, 0x80_0087, 4),
                (t[1] + 4 * 5, 0x30_0007, 4),
                (t[1] + 4 * 0x205, 0x30_1007, 4),
            ],
            pdptr: [0; 4],
            pages: vec![
                (0x5000, 0x30_0000),
                (0x20_5000, 0x30_1000),
                (0xffc0_5000, 0x30_0000),
                (0xffe0_5000, 0x30_1000),
                (0x5000_5000, 0x30_0000),
                (0x9000_3000, 0x80_3000),
                (0x9023_3000, 0xa3_3000),
            ],
        },
        ModeCase {
            name: "PAE",
            cr0: paged,
            cr4: pae,
            long: false,
            words: vec![(t[1] + 8, t[2] | 7, 8), (t[2] + 8 * 7, 0x30_0007, 8), (t[1] + 16, 0x40_0087, 8)],
            pdptr: [0, t[1] | 1, 0, 0],
            pages: vec![(0x4020_7000, 0x30_0000), (0x4041_2000, 0x41_2000)],
        },
        ModeCase {
            name: "5-level",
            cr0: paged,
            cr4: pae.with_la57(true),
            long: true,
            words: vec![
                (t[0] + 8 * 3, t[1] | 7, 8),
                (t[1], t[2] | 7, 8),
                (t[2], 0x87, 8),
                (t[2] + 8, t[3] | 7, 8),
                (t[3], 0x20_0087, 8),
            ],
            pdptr: [0; 4],
            pages: vec![(3 << 48 | 0x12_3000, 0x12_3000), (3 << 48 | 0x4000_1000, 0x20_1000)],
        },
    ]
}

/// Runs all pages of a case; gives what was mapped and what the tables hold afterwards.
fn run_case(npt: bool, case: &ModeCase) -> (Vec<End>, Vec<u64>) {
    let mut bench =
        Setup { npt, guest_width: 40, host_width: 40, pde: 0, pte: 0, ..Default::default() }.build();
    TABLES.iter().for_each(|table| assert!(bench.host.write(*table, &[0; 0x1000])));
    for (address, value, size) in &case.words {
        bench.host.write(*address, &value.to_le_bytes()[..*size]);
    }
    let state = bench.state();
    state.cr0 = case.cr0.into_bits();
    state.cr4 = case.cr4.into_bits();
    state.efer = Efer::new().with_lme(case.long).with_lma(case.long).into_bits();
    state.pdptr = case.pdptr;
    bench.vm.state_changed(0, &mut bench.states[0], &mut bench.host);
    bench.enter(0);
    let mut ends = Vec::new();
    for (gva, _) in &case.pages {
        for kind in [READ, WRITE] {
            ends.push(bench.run_at(0, *gva, kind, false).0);
        }
    }
    let words = case.words.iter().map(|(address, ..)| bench.host.read_u64(*address).unwrap()).collect();
    (ends, words)
}

#[test]
fn every_paging_mode_maps_alike_in_both_forms() {
    for case in mode_cases() {
        let expected: Vec<_> = case.pages.iter().flat_map(|(_, page)| [End::Mapped(*page); 2]).collect();
        let (shadow, shadow_words) = run_case(false, &case);
        let (nested, nested_words) = run_case(true, &case);
        assert_eq!(shadow, expected, "shadow paging, {}", case.name);
        assert_eq!(nested, expected, "nested paging, {}", case.name);
        assert_eq!(shadow_words, nested_words, "accessed and dirty bits, {}", case.name);
    }
}
