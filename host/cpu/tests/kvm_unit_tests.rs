//! kvm-unit-tests images on the bare CPU. Needs `VMTAPE_KUT`, the directory that holds the `.flat` files.

#[path = "common/pc.rs"]
mod pc;

const INTEL: &[u8; 12] = b"GenuineIntel";
const AMD: &[u8; 12] = b"AuthenticAMD";

/// Instructions after which a guest counts as hanging.
const BUDGET: u64 = 2_000_000_000;

/// Runs an image and demands that it passes, with at least `lines` lines of `PASS`.
fn passes(name: &str, vendor: &[u8; 12], lines: usize) {
    let directory = std::env::var_os("VMTAPE_KUT").expect("VMTAPE_KUT is kvm-unit-tests' x86 folder");
    let path = std::path::Path::new(&directory).join(format!("{name}.flat"));
    let image = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let ended = pc::run(&image, "", vendor, BUDGET);
    println!("{}", ended.console);
    println!("{:?} after {} instructions", ended.stop, ended.instructions);
    assert_eq!(ended.status, Some(0), "{name}");
    let passed = ended.console.lines().filter(|line| line.starts_with("PASS")).count();
    assert!(passed >= lines, "{name}: {passed} lines of PASS");
}

macro_rules! images {
    ($($test:ident: $name:literal $vendor:ident >= $lines:literal;)*) => {
        $(#[test]
        #[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
        fn $test() {
            passes($name, $vendor, $lines);
        })*
    };
}

images! {
    dummy: "dummy" INTEL >= 0;
    setjmp: "setjmp" INTEL >= 10;
    idt_test: "idt_test" INTEL >= 4;
    umip: "umip" INTEL >= 21;
    debug: "debug" INTEL >= 20;
    smap: "smap" INTEL >= 18;
    pku: "pku" INTEL >= 7;
    pcid: "pcid" INTEL >= 2;
    la57: "la57" INTEL >= 20;
    memory: "memory" INTEL >= 6;
    syscall: "syscall" AMD >= 1;
    msr: "msr" INTEL >= 20;
    tsc: "tsc" INTEL >= 3;
    emulator: "emulator" INTEL >= 150;
    realmode: "realmode" INTEL >= 120;
    xsave: "xsave" INTEL >= 10;
}
