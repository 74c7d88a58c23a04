//! Exits as a Parquet file, as DuckDB reads it: `cargo test -p vmtape_traces --features parquet --test parquet`.
//!
//! DuckDB is the one of `python3`, or of the interpreter that VMTAPE_PYTHON names; without it the test skips and says so.

use std::{
    collections::BTreeMap,
    io::{Write, stderr},
    path::Path,
    process::Command,
};
use vmtape_arch::exit::{SvmExitCode, reason_name};
use vmtape_traces::{Event, Options, Tape, export, import};

const QUESTION: &str = "
import duckdb, sys
rows = duckdb.sql(f\"SELECT vcpu, reason, count(*) FROM '{sys.argv[1]}' GROUP BY ALL ORDER BY ALL\").fetchall()
print('\\n'.join('\\t'.join(str(value) for value in row) for row in rows))
row = duckdb.sql(f\"SELECT exit, hex(rip), hex(gpa) FROM '{sys.argv[1]}' WHERE gpa IS NOT NULL ORDER BY exit LIMIT 1\").fetchall()[0]
print(*row)
";

#[test]
fn duckdb_counts_exits_per_reason_per_vcpu() {
    let python = std::env::var("VMTAPE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = Command::new(&python).args(["-c", "import duckdb"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        let _ = writeln!(
            stderr(),
            "SKIPPED: {python} has no duckdb (pip install duckdb; VMTAPE_PYTHON names the interpreter)"
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let trace = Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings/npt1/setjmp/trace.txt.gz");
    let path = folder.path().join("real.tape");
    import::to_tape(&trace, &path, Options::default()).unwrap();
    let tape = Tape::open_whole(&path).unwrap();
    let file = folder.path().join("exits.parquet");
    export::parquet::write(&tape, std::fs::File::create(&file).unwrap()).unwrap();
    let mut expected: BTreeMap<(u32, String), u64> = BTreeMap::new();
    let mut first = None;
    for (number, group) in tape.exits().enumerate() {
        let exit = group.unwrap().exit;
        let reason = reason_name(exit.exit.isa, exit.exit.reason).unwrap().to_owned();
        *expected.entry((exit.vcpu, reason)).or_default() += 1;
        if first.is_none() && SvmExitCode(exit.exit.reason) == SvmExitCode::NPF {
            first = Some(format!("{number} {:X} {:X}", exit.rip, exit.exit.info2));
        }
    }
    assert!(tape.events().any(|event| matches!(event, Ok(Event::Exit(_)))));
    let output = Command::new(&python).args(["-c", QUESTION]).arg(&file).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<String> =
        expected.iter().map(|((vcpu, reason), count)| format!("{vcpu}\t{reason}\t{count}")).collect();
    let told: Vec<&str> = text.lines().collect();
    assert_eq!(told[..told.len() - 1], lines.iter().map(String::as_str).collect::<Vec<_>>()[..]);
    assert_eq!(told.last().map(|line| (*line).to_owned()), first);
}
