//! kvm-unit-tests images on the bare CPU. Needs `VMTAPE_KUT`, the directory that holds the `.flat` files.

#[path = "common/pc.rs"]
mod pc;

const INTEL: &[u8; 12] = b"GenuineIntel";

/// Instructions after which a guest counts as hanging.
const BUDGET: u64 = 2_000_000_000;

/// Runs an image and demands that it passes, with at least `lines` lines of `PASS`.
fn passes(name: &str, arguments: &str, lines: usize) {
    let Some(directory) = std::env::var_os("VMTAPE_KUT") else {
        eprintln!("SKIPPED {name}: VMTAPE_KUT is not set");
        return;
    };
    let path = std::path::Path::new(&directory).join(format!("{name}.flat"));
    let image = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let ended = pc::run(&image, arguments, INTEL, BUDGET);
    println!("{}", ended.console);
    println!("{:?} after {} instructions", ended.stop, ended.instructions);
    assert_eq!(ended.status, Some(0), "{name}");
    let passed = ended.console.lines().filter(|line| line.starts_with("PASS")).count();
    assert!(passed >= lines, "{name}: {passed} lines of PASS");
}

macro_rules! images {
    ($($test:ident: $name:literal $arguments:literal >= $lines:literal;)*) => {
        $(#[test]
        fn $test() {
            passes($name, $arguments, $lines);
        })*
    };
}

images! {
    dummy: "dummy" "" >= 0;
    setjmp: "setjmp" "" >= 10;
    idt_test: "idt_test" "" >= 4;
    umip: "umip" "" >= 21;
    debug: "debug" "" >= 20;
    smap: "smap" "" >= 18;
    pku: "pku" "" >= 7;
    pcid: "pcid" "" >= 2;
    la57: "la57" "" >= 20;
    memory: "memory" "" >= 6;
    syscall: "syscall" "" >= 1;
    msr: "msr" "" >= 20;
    tsc: "tsc" "" >= 3;
    xsave: "xsave" "" >= 10;
    sieve: "sieve" "" >= 0;
    access: "access_test" "" >= 0;
}
