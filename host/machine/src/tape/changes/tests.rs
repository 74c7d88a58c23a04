use super::{rest, *};
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
    of_handling(&mut Changes::new(1), exit, &Emulation::default(), before, after).handling
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
    let wrong: [fn(&mut VcpuState); 9] = [
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
        let told = words.take_digest() != 0;
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
        of_handling(&mut Changes::new(1), &Exit::default(), &emulation, before, &after).handling
    };
    assert_eq!([digest(&recorder, 0), digest(&reader, 0)], [0, 0]);
    assert_ne!(digest(&reader, 1), 0);
    assert_eq!(digest(&recorder, 1), digest(&reader, 1));
}

#[test]
fn an_entry_is_told_with_the_next_exit_where_it_follows_one() {
    let (before, hlt) = (VcpuState::reset(), exit(SensitiveKind::HLT));
    let after = VcpuState { gpr: [1; 16], ..before };
    let mut changes = Changes::new(1);
    assert!(!changes.begin_entry(0));
    for activity in [Activity::ACTIVE, Activity::HLT] {
        of_handling(&mut changes, &hlt, &Emulation::default(), &before, &before);
        changes.end_exit(0, activity);
        assert_eq!(changes.begin_entry(0), activity == Activity::ACTIVE);
    }
    changes.begin(&before);
    changes.end_entry(0, &after);
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
