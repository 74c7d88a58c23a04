//! Plugins that answer against the ABI, as a user meets them: the run ends as "the backend broke", which names the call and the
//! field, with exit code 125. No panic, no hang.

use anyhow::{Result, ensure};
use vmtape_conformance::{identity::compile, vmtape};

const COULD_NOT_TEST: i32 = 125;

/// A change to the backend in C, and what the message must say.
type Wrong = (&'static str, &'static str, &'static [&'static str]);

const WRONG: [Wrong; 7] = [
    (
        ".hpa = hpa & ~0xfffull,",
        ".hpa = (uint64_t)1 << 50,",
        &["`access`", "mapping.hpa", "in no memory slot"],
    ),
    (".kind = vt_MappingKind_RAM,", ".kind = 7,", &["`access`", "mapping.kind"]),
    (
        "    *verdict = vt_Verdict_EXIT;\n    return vt_STATUS_OK;\n}\n\nstatic vt_Status exception",
        "    *verdict = 9;\n    return vt_STATUS_OK;\n}\n\nstatic vt_Status exception",
        &["`sensitive`", "verdict 0x9"],
    ),
    (
        "    // RFLAGS.IF, and not",
        "    state->inject = (vt_Event){.valid = true, .kind = vt_EventKind_NMI, .vector = 77};\n    // RFLAGS.IF, and not",
        &["`enter`", "state.inject.vector 77"],
    ),
    (
        "        cpuid(vm, state);\n",
        "        cpuid(vm, state);\n        resume->kind = 4711;\n",
        &["`handle_exit`", "kind 0x1267"],
    ),
    (
        "        state->rip += exit->insn.len;\n        state->activity = vt_Activity_HLT;",
        "        state->activity = 99;",
        &["`handle_exit`", "state.activity"],
    ),
    (
        ".key = TEXT(\"kvm\"), .value = TEXT(\"none\")",
        ".key = TEXT(\"ept\"), .value = TEXT(\"on\")",
        &["`resolved`", "option `ept`"],
    ),
];

const RECORD: [&str; 8] =
    ["record", "--plugin", "libidentity.so", "-b", "identity", "--host", "intel-46", "-o"];

#[test]
fn a_wrong_answer_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut failed = Vec::new();
    for (from, to, mentions) in WRONG {
        compile(folder.path(), from, to)?;
        // One halts, one reads CPUID, one reaches what no memory is behind.
        let mut said = Vec::new();
        for guest in ["builtin:smp2", "builtin:cpuid", "builtin:illegal"] {
            let output = vmtape(folder.path(), &[&RECORD[..], &["a.tape", guest]].concat())?;
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(!stderr.contains("panicked"), "{to}: {stderr}");
            said.push((output.status.code(), stderr));
        }
        let told = |stderr: &str| mentions.iter().all(|word| stderr.contains(word));
        if !said.iter().any(|(code, stderr)| *code == Some(COULD_NOT_TEST) && told(stderr)) {
            failed.push(format!("{to}: {said:?}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// A CPUID exit that does not move RIP and changes a register that only a repeated instruction counts in.
#[test]
fn an_instruction_that_is_never_done_ends_the_run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let still =
        "        cpuid(vm, state);\n        static uint64_t n;\n        state->gpr[vt_GPR_RCX] = ++n;\n";
    compile(folder.path(), "        cpuid(vm, state);\n        state->rip += exit->insn.len;\n", still)?;
    let output = vmtape(folder.path(), &[&RECORD[..], &["a.tape", "builtin:late"]].concat())?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("no progress") && stderr.contains("CPUID"), "{stderr}");
    Ok(())
}
