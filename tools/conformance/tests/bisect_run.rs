//! Builds of a plugin: `git bisect run vmtape replay --bisect` in a real repository of plugin sources, and the axis
//! `plugin` over libraries that exist.

use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use vmtape_conformance::{program, tail, vmtape};

/// The history of a backend in C: what each commit changes, and what must come of it.
const HISTORY: [(&str, &str, &str); 8] = [
    ("the backend", "", ""),
    ("a comment", "// --- silicon ---", "// --- silicon, as far as it goes ---"),
    ("half an edit", "// --- control ---", "// --- control ---\nint unfinished(void) {"),
    ("the other half", "int unfinished(void) {", "int unfinished(void);"),
    // The guest's EDX is ECX from here on.
    ("tidy up", "state->gpr[vt_GPR_RDX] = found.edx;", "state->gpr[vt_GPR_RDX] = found.ecx;"),
    (
        "a backend that breaks",
        "    struct walk found;\n    uint64_t hpa;\n",
        "    struct walk found;\n    uint64_t hpa;\n    return vt_STATUS_PANICKED;\n",
    ),
    ("it no longer breaks", "    return vt_STATUS_PANICKED;\n", ""),
    ("another comment", "// --- KVM ---", "// --- the rest ---"),
];
const CULPRIT: usize = 4;

fn abi() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/abi")
}

/// The source as each commit has it.
fn sources() -> Result<Vec<String>> {
    let mut source = fs::read_to_string(abi().join("tests/c/identity.c"))?;
    HISTORY
        .iter()
        .map(|(what, from, to)| {
            ensure!(source.contains(from), "{what}: the backend in C has no longer `{from}`");
            source = source.replacen(from, to, 1);
            Ok(source.clone())
        })
        .collect()
}

fn compile(source: &Path, library: &Path) -> Result<Output> {
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-w", "-shared", "-fPIC", "-O1", "-I"]).arg(abi().join("include"));
    cc.arg(source).arg("-o").arg(library).output().context("a C compiler is installed as `cc`")
}

fn git(folder: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .current_dir(folder)
        .args(["-c", "user.name=Tester", "-c", "user.email=tester@localhost", "-c", "commit.gpgsign=false"])
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .env_remove("GIT_DIR")
        .output()
        .context("git is installed")?;
    ensure!(output.status.success(), "git {}: {}", arguments.join(" "), tail(&output));
    Ok(String::from_utf8(output.stdout)?)
}

/// Tapes a guest under the first build.
fn record(folder: &Path, library: &str) -> Result<()> {
    let line = [
        "record",
        "-q",
        "--plugin",
        library,
        "-b",
        "identity",
        "--host",
        "intel-46",
        "-o",
        "a.tape",
        "builtin:late,rounds=20",
    ];
    let recorded = vmtape(folder, &line)?;
    ensure!(recorded.status.success(), "{}", tail(&recorded));
    Ok(())
}

#[test]
fn git_finds_the_commit() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    git(folder, &["init", "-q"])?;
    let mut commits = Vec::new();
    for (source, (what, ..)) in sources()?.iter().zip(HISTORY) {
        fs::write(folder.join("backend.c"), source)?;
        git(folder, &["add", "backend.c"])?;
        git(folder, &["commit", "-q", "-m", what])?;
        commits.push(git(folder, &["rev-parse", "HEAD"])?.trim().to_owned());
    }
    git(folder, &["checkout", "-q", &commits[0]])?;
    let built = compile(&folder.join("backend.c"), &folder.join("libidentity.so"))?;
    ensure!(built.status.success(), "{}", tail(&built));
    record(folder, "libidentity.so")?;
    let script = format!(
        "cc -std=c11 -w -shared -fPIC -O1 -I '{}' backend.c -o libidentity.so || exit 125\n\
         exec '{}' replay --bisect --plugin libidentity.so a.tape\n",
        abi().join("include").display(),
        program()?.display()
    );
    fs::write(folder.join("trial.sh"), script)?;
    let last = commits.last().context("commits")?;
    git(folder, &["bisect", "start", last, &commits[0]])?;
    let said = git(folder, &["bisect", "run", "sh", "trial.sh"])?;
    assert!(said.contains(&format!("{} is the first bad commit", commits[CULPRIT])), "{said}");
    Ok(())
}

/// The codes of git-bisect(1): only a verdict is 0 or 1; 125 skips a commit, 128 stops the search.
#[test]
fn only_verdicts_are_verdicts() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let sources = sources()?;
    for (name, n) in [("good", 0), ("bad", CULPRIT), ("broken", CULPRIT + 1)] {
        let source = folder.join(format!("{name}.c"));
        fs::write(&source, &sources[n])?;
        let built = compile(&source, &folder.join(format!("{name}.so")))?;
        ensure!(built.status.success(), "{}", tail(&built));
    }
    record(folder, "good.so")?;
    let tape = fs::read(folder.join("a.tape"))?;
    fs::write(folder.join("cut.tape"), &tape[..tape.len() / 2])?;
    for (line, code) in [
        ("--bisect --plugin good.so a.tape", 0),
        ("--bisect --plugin bad.so a.tape", 1),
        ("--bisect=entry:+A@0x10 --plugin bad.so a.tape", 125),
        ("--bisect --plugin broken.so a.tape", 125),
        ("--bisect --plugin absent.so a.tape", 128),
        ("--bisect --plugin good.so cut.tape", 125),
        ("--bisect --plugin good.so absent.tape", 128),
        ("--bisect --plugin good.so a.tape --no-such-option", 128),
        ("--bisect --plugin good.so a.tape --host intel-9000", 128),
        ("--bisect --plugin good.so a.tape --host absent.toml", 128),
        ("--bisect=nonsense --plugin good.so a.tape", 128),
        ("--bisect", 128),
    ] {
        let words: Vec<&str> = std::iter::once("replay").chain(line.split(' ')).collect();
        let output = vmtape(folder, &words)?;
        assert_eq!(output.status.code(), Some(code), "{line}: {}", tail(&output));
    }
    Ok(())
}

#[test]
fn the_first_build_that_differs() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let mut names = Vec::new();
    for (n, source) in sources()?.iter().enumerate() {
        let (file, library) = (folder.join("backend.c"), format!("{n}.so"));
        fs::write(&file, source)?;
        if compile(&file, &folder.join(&library))?.status.success() {
            names.push(library);
        }
    }
    assert_eq!(names.len(), HISTORY.len() - 1, "one commit does not compile");
    record(folder, "0.so")?;
    let builds: Vec<&str> = names.iter().map(String::as_str).collect();
    let output = vmtape(folder, &[&["bisect", "a.tape", "--axis", "plugin"], &builds[..]].concat())?;
    assert_eq!(output.status.code(), Some(1), "{}", tail(&output));
    let text = String::from_utf8(output.stdout)?;
    assert!(text.starts_with(&format!("first bad: {CULPRIT}.so\n")), "{text}");
    Ok(())
}
