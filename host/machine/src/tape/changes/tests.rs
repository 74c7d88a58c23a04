use super::{rest, *};
use crate::spec::ChangesTold;
use vmtape_arch::{
    exit::StimulusKind,
    sensitive::{Sensitive, SensitiveKind},
    vcpu::{gpr, seg},
};

fn exit(kind: SensitiveKind) -> Exit {
    Exit {
        stimulus: StimulusKind::SENSITIVE,
        insn: Sensitive { kind, ..Sensitive::default() },
        ..Exit::default()
    }
}

fn digest(exit: &Exit, before: &VcpuState, after: &VcpuState) -> u16 {
    of_handling(&mut chained(), exit, &Emulation::default(), before, after).handling
}

fn of_handling(
    changes: &mut Changes,
    exit: &Exit,
    emulation: &Emulation,
    before: &VcpuState,
    after: &VcpuState,
) -> RegisterChanges {
    changes.begin(before);
    changes.of_handling(0, exit, emulation, after)
}

fn chained() -> Changes {
    Changes::new(1, ChangesTold::Chained)
}

/// A recorder and a reader that has other values in registers that no event tells: the same handling has the same digest, and
/// each register that it changes besides has another one.
#[test]
fn it_depends_on_nothing_that_one_side_alone_knows() {
    let cpuid = exit(SensitiveKind::CPUID);
    let recorder = VcpuState { gpr: [7; 16], lstar: 9, ..VcpuState::reset() };
    let mut reader = recorder;
    reader.gpr[gpr::RBX] = 0x1234;
    reader.gpr[8..].fill(55);
    (reader.lstar, reader.rflags) = (1, 0x893);
    reader.fpu.xmm[3] = [4, 4];
    let handled = |before: &VcpuState| {
        let mut after = *before;
        after.rip += 2;
        after.gpr[..4].copy_from_slice(&[1, 2, 3, 7]);
        after
    };
    let expected = digest(&cpuid, &recorder, &handled(&recorder));
    assert_ne!(expected, 0);
    assert_eq!(digest(&cpuid, &reader, &handled(&reader)), expected);
    let wrong: [fn(&mut VcpuState); 14] = [
        |state| state.dr6 ^= 1,
        |state| state.pdptr[3] ^= 1 << 12,
        |state| state.spec_ctrl ^= 1,
        |state| state.debugctl ^= 1,
        |state| state.tsc_offset ^= 1,
        |state| state.gpr[gpr::RAX] = 0,
        |state| state.gpr[gpr::RBX] += 1,
        |state| state.gpr[15] ^= 1,
        |state| state.rflags ^= 1,
        |state| state.cr3 += 0x1000,
        |state| state.seg[seg::ES].selector += 8,
        |state| state.lstar ^= 1,
        |state| state.dr[2] ^= 1,
        |state| state.fpu.st[7][9] ^= 1,
    ];
    for (n, change) in wrong.into_iter().enumerate() {
        let mut after = handled(&reader);
        change(&mut after);
        assert_ne!(digest(&cpuid, &reader, &after), expected, "{n}");
    }
}

/// Each byte of a state in turn is another one: what would be told is looked for.
#[test]
fn what_is_asked_first_is_what_is_told() {
    let state = VcpuState::reset();
    let bytes = postcard::to_stdvec(&state).unwrap();
    let (mut words, mut seen) = (Words::default(), 0);
    for n in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[n] ^= 1;
        let Ok(other) = postcard::from_bytes::<VcpuState>(&bytes) else { continue };
        Rule::ALL.beyond_gprs(&state, &other, &mut words);
        let told = words.take_digest().is_some();
        assert!(!told || rest::differs(&other, &state), "byte {n}");
        seen += usize::from(told);
    }
    assert!(seen > 60, "{seen}");
}

/// MOVQ of an MMX register to a device: that the x87's registers are in use is news to one side only.
#[test]
fn of_the_fpu_an_emulation_changes_what_it_names() {
    let emulation = Emulation { asked: true, fpu: vec![16], ..Emulation::default() };
    let (recorder, mut reader) = (VcpuState::reset(), VcpuState::reset());
    reader.fpu.fsw = 0x3800;
    let after = |before: &VcpuState, mantissa| {
        let mut after = *before;
        after.fpu.fsw = 0;
        after.fpu.st[0][0] = mantissa;
        after
    };
    let digest = |before: &VcpuState, mantissa| {
        let after = after(before, mantissa);
        of_handling(&mut chained(), &Exit::default(), &emulation, before, &after).handling
    };
    assert_eq!([digest(&recorder, 0), digest(&reader, 0)], [0, 0]);
    assert_ne!(digest(&reader, 1), 0);
    assert_eq!(digest(&recorder, 1), digest(&reader, 1));
}

#[test]
fn an_entry_is_told_with_the_next_exit_where_it_follows_one() {
    let (before, hlt) = (VcpuState::reset(), exit(SensitiveKind::HLT));
    let after = VcpuState { gpr: [1; 16], ..before };
    let mut changes = Changes::new(1, ChangesTold::Each);
    assert!(!changes.begin_entry(0));
    for activity in [Activity::ACTIVE, Activity::HLT] {
        of_handling(&mut changes, &hlt, &Emulation::default(), &before, &before);
        changes.end_exit(0, activity);
        assert_eq!(changes.begin_entry(0), activity == Activity::ACTIVE);
    }
    changes.begin(&before);
    changes.end_entry(0, &after, false);
    let told =
        |changes: &mut Changes| of_handling(changes, &hlt, &Emulation::default(), &before, &before).entry;
    assert_ne!(told(&mut changes), 0);
    assert_eq!(told(&mut changes), 0);
}

#[test]
fn as_many_words_as_there_are_count() {
    let page_fault = Exit::default();
    let before = VcpuState::reset();
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..16 {
        let mut after = VcpuState { gpr: [1; 16], ..before };
        after.fpu.xmm = [[2; 2]; 16];
        after.fpu.ymm_hi[n] = [3; 2];
        seen.insert(digest(&page_fault, &before, &after));
    }
    assert!(seen.len() > 14, "{seen:x?}");
}

/// Two runs of which one digest differs, and all of them afterwards are alike: they do not come together again.
#[test]
fn what_one_exit_changed_shows_in_all_chains_behind_it() {
    let page_fault = Exit::default();
    let before = VcpuState::reset();
    let mut chains = [chained(), chained()];
    for (n, changes) in (0..).zip(&mut chains) {
        for exit in 0..40 {
            let mut after = before;
            after.gpr[gpr::RDX] = if exit == 3 { 5 + n } else { exit };
            of_handling(changes, &page_fault, &Emulation::default(), &before, &after);
        }
    }
    let [a, b] = chains.each_mut().map(|changes| changes.take_chain(0, true));
    assert!(a.is_some() && a != b, "{a:?} {b:?}");
    assert_eq!(chains[0].take_chain(0, true), None, "it was told");
    assert!(!chains[0].compare_chain(0, 7) && chains[0].compare_chain(0, 7));
}

/// Whoever waits enters for what others did: chained digests tell of that as well.
#[test]
fn an_entry_after_a_halt_is_told_where_digests_are_chained() {
    let (before, hlt) = (VcpuState::reset(), exit(SensitiveKind::HLT));
    let after = VcpuState { gpr: [1; 16], ..before };
    let mut changes = chained();
    of_handling(&mut changes, &hlt, &Emulation::default(), &before, &before);
    changes.end_exit(0, Activity::HLT);
    assert!(changes.begin_entry(0));
    changes.begin(&before);
    changes.end_entry(0, &after, false);
    let told = of_handling(&mut changes, &hlt, &Emulation::default(), &before, &before);
    assert_ne!(told.entry, 0);
}

/// One lie in 65,536 has the honest digest on the tape; the next telling of all digests together has it.
#[test]
fn a_digest_that_happens_to_be_equal_is_found_by_the_next_chain() {
    let cpuid = exit(SensitiveKind::CPUID);
    let before = VcpuState::reset();
    let changed = |lie: u64| {
        let mut after = VcpuState { rip: before.rip + 2, ..before };
        (after.gpr[gpr::RBX], after.gpr[15]) = (5, lie);
        let mut changes = chained();
        let told = of_handling(&mut changes, &cpuid, &Emulation::default(), &before, &after);
        (told, changes.take_chain(0, true))
    };
    let (honest, chain) = changed(0);
    let missed = (1..1 << 20).map(changed).find(|(told, _)| *told == honest);
    let (_, other) = missed.expect("2^20 of them and 2^16 digests");
    assert_ne!(other, chain);
}

#[test]
fn another_event_in_an_entry_is_told() {
    let before = VcpuState::reset();
    let digest = |vector| {
        let mut after = before;
        after.inject = vmtape_arch::event::Event { valid: true.into(), vector, ..Default::default() };
        let mut changes = chained();
        changes.begin(&before);
        changes.end_entry(0, &after, false);
        changes.take_chain(0, true)
    };
    assert!(digest(32).is_some() && digest(32) != digest(33));
}
