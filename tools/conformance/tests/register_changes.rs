//! Registers that no event tells: a build of a backend that leaves something else in them is DIFFERENT without the guest being
//! run, and an honest one is not.

use anyhow::{Context, Result, ensure};
use std::{path::Path, process::Command};
use vmtape_conformance::{
    BACKENDS,
    identity::{compile, compile_changed},
    program,
    sector::{self, FLAT, LEAVE, leaves_with},
    tail, vmtape,
};

const SAME: Option<i32> = Some(0);
const DIFFERENT: Option<i32> = Some(1);

const PLUGIN: [&str; 2] = ["--plugin", "libidentity.so"];
const RECORD: [&str; 7] = ["record", "-q", "-b", "identity", "--host", "intel-46", "-o"];
const CPUID: &str = "        cpuid(vm, state);\n";
const ENTER: &str = "    // RFLAGS.IF, and not";

fn lines(folder: &Path, parts: &[&[&str]]) -> Result<std::process::Output> {
    vmtape(folder, &parts.concat())
}

/// What a build does besides, where, and who is said to have done it.
const LIES: [(&str, &str, &str); 15] = [
    (CPUID, "state->gpr[vt_GPR_RAX] = 0;", "the handling"),
    (CPUID, "state->gpr[15] ^= 1;", "the handling"),
    (CPUID, "state->rflags ^= 1;", "the handling"),
    (CPUID, "state->lstar ^= 1;", "the handling"),
    (CPUID, "state->seg[5].base ^= 1;", "the handling"),
    (CPUID, "state->fpu.xmm[5][1] ^= 1;", "the handling"),
    (CPUID, "state->cr2 ^= 1;", "the handling"),
    (CPUID, "state->dr[1] ^= 1;", "the handling"),
    (CPUID, "state->dr6 ^= 1;", "the handling"),
    (CPUID, "state->pdptr[2] ^= 4096;", "the handling"),
    (CPUID, "state->spec_ctrl ^= 1;", "the handling"),
    (CPUID, "state->debugctl ^= 1;", "the handling"),
    (CPUID, "state->tsc_offset ^= 1;", "the handling"),
    (ENTER, "state->gpr[15] ^= 1;", "the entry before it"),
    (ENTER, "state->tsc_offset ^= 1;", "the entry before it"),
];

#[test]
fn a_build_that_changes_a_register_that_no_event_tells_is_different() -> Result<()> {
    let folder = tempfile::tempdir()?;
    compile(folder.path(), "", "")?;
    let recorded = lines(folder.path(), &[&RECORD, &["a.tape", "builtin:cpuid"], &PLUGIN])?;
    ensure!(recorded.status.success(), "{}", tail(&recorded));
    let replay = ["replay", "a.tape", "--mode", "exits"];
    let honest = lines(folder.path(), &[&replay, &PLUGIN])?;
    assert_eq!(honest.status.code(), SAME, "{}", tail(&honest));
    let mut failed = Vec::new();
    for (place, lie, who) in LIES {
        let (before, after) = if place == CPUID { (place, "") } else { ("", place) };
        compile(folder.path(), place, &format!("{before}        {lie}\n{after}"))?;
        let replayed = lines(folder.path(), &[&replay, &PLUGIN])?;
        let text = String::from_utf8_lossy(&replayed.stdout).into_owned();
        let named = text.contains(&format!(": {who} changes registers otherwise"));
        if replayed.status.code() != DIFFERENT || !named {
            failed.push(format!("{lie}: {}", tail(&replayed)));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// Three flat segments, and a GDTR at 0x7d60.
fn segments() -> Vec<u8> {
    const GDT: [u64; 3] = [0, 0x00cf_9a00_0000_ffff, 0x00cf_9200_0000_ffff];
    let mut bytes = GDT.iter().flat_map(|segment| segment.to_le_bytes()).collect::<Vec<_>>();
    bytes.resize(0x20, 0);
    bytes.extend(b"\x17\0\x40\x7d\0\0\0\0");
    bytes
}

/// Three times it halts, in 32-bit mode, and the local APIC's timer comes, by vector 0x40.
fn halts(folder: &Path) -> Result<()> {
    // In the sector behind the handler: segments, IDTR, and the gate of the vector.
    const GATE: [u8; 8] = [0x00, 0x7d, 0x08, 0, 0, 0x8e, 0, 0];
    // mov dword [APIC + REGISTER], VALUE
    let apic = |register: u16, value: u32| {
        [&b"\xc7\x05"[..], &register.to_le_bytes(), b"\xe0\xfe", &value.to_le_bytes()].concat()
    };
    // cli; lgdt [0x7d60]; mov eax, cr0; or al, 1; mov cr0, eax; jmp 8:0x7c1b
    let enter = b"\xfa\x0f\x01\x16\x60\x7d\x0f\x20\xc0\x0c\x01\x0f\x22\xc0\x66\xea\x1a\x7c\0\0\x08\0";
    // mov eax, 16; mov ds, eax; mov ss, eax; mov esp, 0x7000; lidt [0x7d68]
    let flat = b"\xb8\x10\0\0\0\x8e\xd8\x8e\xd0\xbc\0\x70\0\0\x0f\x01\x1d\x68\x7d\0\0";
    let timer = [apic(0xf0, 0x1ff), apic(0x320, 0x2_0040), apic(0x3e0, 0xb), apic(0x380, 0x1000)].concat();
    // sti; hlt; hlt; hlt; cli; mov edx, 0xf4; out dx, eax
    let code = [FLAT, enter, flat, &timer, b"\xfb\xf4\xf4\xf4\xfa\xba\xf4\0\0\0\xef"].concat();
    // EOI; iretd
    let mut handler = [&apic(0xb0, 0), &b"\xcf"[..]].concat();
    handler.resize(0x40, 0);
    handler.extend(segments());
    handler.extend(b"\x07\x02\x70\x7b\0\0\0\0");
    handler.extend(GATE);
    sector::write(folder, &code, &handler)
}

/// What ends a halt stands with the exit that halted, and is looked at when the machine comes there.
#[test]
fn a_build_that_ends_a_halt_with_something_else_is_different() -> Result<()> {
    const ENTER: &str = "static vt_Status enter(";
    const TAKES: &str = "        state->inject.vector = (uint8_t)vector.value;\n";
    const HALTS: &str = "        state->activity = vt_Activity_HLT;\n";
    let folder = tempfile::tempdir()?;
    let build = |lie: u8| {
        let takes = format!(
            "        state->inject.vector = (uint8_t)vector.value ^ (halted[vcpu] ? {lie} : 0);
        halted[vcpu] = false;
        vt_RawNote note = {{.kind = vt_NoteKind_INJ_VIRQ, .args = {{state->inject.vector}}}};
        host.table->note_at(host.ctx, vcpu, vt_Place_L1, &note);
"
        );
        let halted = format!("static bool halted[2];\n{ENTER}");
        let halts = format!("{HALTS}        halted[vcpu] = true;\n");
        compile_changed(folder.path(), &[(ENTER, &halted), (TAKES, &takes), (HALTS, &halts)])
    };
    halts(folder.path())?;
    build(0)?;
    let recorded = lines(folder.path(), &[&RECORD, &["h.tape", "guest.bin"], &PLUGIN])?;
    ensure!(recorded.status.success(), "{}", tail(&recorded));
    let replay = ["replay", "h.tape", "--mode", "exits"];
    let honest = lines(folder.path(), &[&replay, &PLUGIN])?;
    assert_eq!(honest.status.code(), SAME, "{}", tail(&honest));
    build(1)?;
    let lying = lines(folder.path(), &[&replay, &PLUGIN])?;
    assert_eq!(lying.status.code(), DIFFERENT, "{}", tail(&lying));
    let text = String::from_utf8_lossy(&lying.stdout).into_owned();
    assert!(text.contains("the entry after the halt: kvm_inj_virq"), "{text}");
    Ok(())
}

/// Outside of 64-bit mode an emulated access goes by its segment: flat in 32-bit mode, and with the limit that protected mode left
/// in "unreal" mode.
#[test]
fn segments_of_emulated_accesses_are_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // cli; lgdt [0x7d60]; mov eax, cr0; or al, 1; mov cr0, eax; mov bx, 16; mov ds, bx; and al, 0xfe; mov cr0, eax
    let unreal =
        b"\xfa\x0f\x01\x16\x60\x7d\x0f\x20\xc0\x0c\x01\x0f\x22\xc0\xbb\x10\0\x8e\xdb\x24\xfe\x0f\x22\xc0";
    // mov eax, [0xfee00030]: the local APIC's version, with six entries
    let read = b"\x67\x66\xa1\x30\0\xe0\xfe";
    let mut data = vec![0; 0x40];
    data.extend(segments());
    for backend in BACKENDS {
        let code = [FLAT, unreal, read, LEAVE].concat();
        assert_eq!(leaves_with(folder.path(), backend, &code, &data)?, 0x5_0014, "{backend}");
        halts(folder.path())?;
        lines(folder.path(), &[&["record", "-q", "-b", backend, "-o", "h.tape", "guest.bin"]])?;
        for mode in ["run", "exits"] {
            let replayed = lines(folder.path(), &[&["replay", "h.tape", "--mode", mode]])?;
            assert_eq!(replayed.status.code(), SAME, "{backend}, {mode}: {}", tail(&replayed));
        }
    }
    Ok(())
}

/// A register that is changed at one entry of a run, whichever: the first one, those after a halt, and the one after the last exit.
#[test]
fn a_lie_at_any_entry_is_different() -> Result<()> {
    let lie = "    static int entries;\n    const char *at = getenv(\"LIE_AT\");\n    \
               if (at && ++entries == atoi(at)) state->gpr[15] ^= 1;\n    // RFLAGS.IF, and not";
    let folder = tempfile::tempdir()?;
    let replay = |at: usize| {
        Command::new(program()?)
            .current_dir(folder.path())
            .args(["replay", "a.tape", "--mode", "exits"])
            .args(PLUGIN)
            .env("LIE_AT", at.to_string())
            .output()
            .context("vmtape")
    };
    compile(folder.path(), ENTER, lie)?;
    // The second one halts.
    for (guest, entries) in [("builtin:cpuid", 9), ("builtin:smp2", 14)] {
        lines(folder.path(), &[&RECORD, &["a.tape", guest], &PLUGIN])?;
        let stat = lines(folder.path(), &[&["stat", "a.tape", "--json"]])?;
        let stat: serde_json::Value = serde_json::from_slice(&stat.stdout)?;
        assert_eq!(stat["events_by_kind"]["kvm_entry"], entries, "{guest}: {stat}");
        let honest = replay(0)?;
        assert_eq!(honest.status.code(), SAME, "{guest}: {}", tail(&honest));
        for at in 1..=entries {
            let lying = replay(at)?;
            assert_eq!(lying.status.code(), DIFFERENT, "{guest}, entry {at} of {entries}: {}", tail(&lying));
        }
    }
    Ok(())
}

/// The same build is the same, whatever it does, from wherever the tape tells its registers anew.
#[test]
fn an_honest_replay_is_the_same() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for guest in ["builtin:io", "builtin:matrix", "builtin:smp2", "builtin:pending"] {
        for backend in BACKENDS {
            for every in ["0", "7"] {
                let record =
                    ["record", "-q", "-b", backend, "--checkpoint-every", every, "-o", "b.tape", guest];
                lines(folder.path(), &[&record])?;
                let replayed = lines(folder.path(), &[&["replay", "b.tape", "--mode", "exits"]])?;
                assert_eq!(replayed.status.code(), SAME, "{guest} {backend} {every}: {}", tail(&replayed));
            }
        }
    }
    Ok(())
}

/// NMIs that another vCPU sends wait one at a time: each is taken by an entry that no exit comes before, and not by a later one.
#[test]
fn each_nmi_of_another_vcpu_is_taken_by_its_own_entry() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for backend in BACKENDS {
        for every in ["0", "7"] {
            let record = ["record", "-b", backend, "--checkpoint-every", every, "-o", "n.tape"];
            let recorded = lines(folder.path(), &[&record, &["builtin:smp2,nmis=5"]])?;
            let text = String::from_utf8_lossy(&recorded.stdout).into_owned();
            ensure!(text.contains("NMIs that came: 5\n"), "{backend}: {}", tail(&recorded));
            let replayed = lines(folder.path(), &[&["replay", "n.tape", "--mode", "exits"]])?;
            assert_eq!(replayed.status.code(), SAME, "{backend} {every}: {}", tail(&replayed));
        }
    }
    Ok(())
}
