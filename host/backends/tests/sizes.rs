//! Backends built from headers of other ages: those that go together with this host run guests, the others are refused.

mod common;
#[path = "common/guest.rs"]
mod guest;

use common::{compile, compile_with, intel};
use vmtape_abi::{Errno, Query, VmConfig};
use vmtape_arch::host::{Silicon, Vendor};
use vmtape_backends::LoadedPlugin;
use vmtape_traces::event::End;

/// The structures that may grow.
const GROWING: [&str; 17] = [
    "Answer",
    "BusOp",
    "CpuidEntry",
    "DirtyGfn",
    "EmulateRequest",
    "Emulated",
    "Exit",
    "Maybe",
    "MemoryRegion",
    "MsrEntry",
    "RawConfig",
    "RawNote",
    "RawRow",
    "Resume",
    "Silicon",
    "Translated",
    "VcpuState",
];

/// A header of a later day: structures have grown at their ends, one is new, and so are functions.
fn larger(mut header: String) -> String {
    let mut insert = |before: &str, text: &str| {
        assert!(header.contains(before), "{before}");
        header = header.replacen(before, &format!("{text}{before}"), 1);
    };
    for name in GROWING {
        insert(&format!("}} vt_{name};"), "uint64_t grown[9];\n");
    }
    insert("} vt_Sizes;", "uint32_t later;\n");
    insert("} vt_BackendTable;", "vt_Status (*later)(struct vt_Vm *vm);\n");
    insert("} vt_MmuTable;", "vt_Status (*later)(void *ctx);\n");
    insert("} vt_HostTable;", "vt_Status (*later)(void *ctx);\n");
    header.replace("sizeof(vt_VcpuState)", "sizeof(vt_VcpuState), 8")
}

/// A header of an earlier day: what came last is not there yet.
fn smaller(mut header: String) -> String {
    for last in [
        "    struct vt_Fpu fpu;\n",
        "    uint8_t encryption_bits;\n    // SVM: virtual GIF.\n    vt_Flag vgif;\n    // SVM: virtual VMLOAD and VMSAVE.\n    vt_Flag vls;\n    // SVM: virtual NMI.\n    vt_Flag vnmi;\n} vt_Silicon",
    ] {
        assert!(header.contains(last), "{last}");
        let kept = if last.contains('}') { "} vt_Silicon" } else { "" };
        header = header.replacen(last, kept, 1);
    }
    let (start, rest) = header.split_once("    // PATCHES: the commit").unwrap();
    let (_, end) = rest.split_once("} vt_RawRow;").unwrap();
    format!("{start}}} vt_RawRow;{end}")
}

#[test]
fn guests_run_under_backends_with_larger_and_smaller_structures() {
    let folder = tempfile::tempdir().unwrap();
    let larger = compile_with(folder.path(), "liblarger.so", &["-DVARIANT_LARGER"], larger);
    let smaller = compile_with(folder.path(), "libsmaller.so", &["-DVARIANT_SMALLER"], smaller);
    for library in [&larger, &smaller] {
        for name in ["hello", "io"] {
            let (end, text) = guest::run(library, name, vmtape_guests::image(name).unwrap());
            assert_eq!(end, End::DebugExit { status: 1 }, "{}: {name}: {text}", library.display());
        }
    }
}

#[test]
fn a_call_that_a_smaller_table_lacks_has_its_default() {
    let folder = tempfile::tempdir().unwrap();
    let smaller = compile_with(folder.path(), "libsmaller.so", &["-DVARIANT_SMALLER"], smaller);
    let config = VmConfig { silicon: intel(), options: Vec::new() };
    let smaller = LoadedPlugin::load(&smaller).unwrap();
    assert_eq!(smaller.description.rules[0].since, "");
    let vm = smaller.create(&config).unwrap();
    assert_eq!(vm.query(0, Query::SHADOW_PAGES), Err(Errno::ENOTTY));
    let whole = LoadedPlugin::load(&compile(folder.path(), "libwhole.so", &[])).unwrap();
    assert_eq!(whole.create(&config).unwrap().query(0, Query::SHADOW_PAGES), Ok(0));
}

#[test]
fn lists_cross_in_the_strides_of_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let library = compile_with(folder.path(), "liblarger.so", &["-DVARIANT_LARGER"], larger);
    let plugin = LoadedPlugin::load(&library).unwrap();
    let vm = plugin.create(&VmConfig { silicon: intel(), options: Vec::new() }).unwrap();
    let entries = [1, 2, 3].map(|function| vmtape_arch::cpuid::CpuidEntry {
        function,
        edx: 10 * function,
        ..Default::default()
    });
    assert_eq!(vm.supported_cpuid(&entries), entries);
    let amd = Silicon { vendor: Vendor::AMD, ..intel() };
    let reason = plugin.create(&VmConfig { silicon: amd, options: Vec::new() }).err().unwrap();
    assert!(reason.contains("needs an Intel host"), "{reason}");
}

#[test]
fn sizes_that_do_not_go_together_are_refused() {
    let cases = [
        ("-DVARIANT_NO_SIZES", "its list of sizes has 0 bytes"),
        ("-DVARIANT_SIZES_BYTES=0", "its list of sizes has 0 bytes"),
        ("-DVARIANT_SIZES_BYTES=40", "its list of sizes has 40 bytes"),
        ("-DVARIANT_SIZES_BYTES=0xffffffff", "its list of sizes has 4294967295 bytes"),
        ("-DVARIANT_TABLE_SIZE=0", "its table has 0 bytes"),
        ("-DVARIANT_TABLE_SIZE=8", "its table has 8 bytes"),
        ("-DVARIANT_TABLE_SIZE=24", "ends before `describe`"),
        ("-DVARIANT_TABLE_SIZE=offsetof(vt_BackendTable,enter)", "ends before `enter`"),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (n, (define, cause)) in cases.into_iter().enumerate() {
        let library = compile(folder.path(), &format!("lib{n}.so"), &[define]);
        let said = LoadedPlugin::load(&library).expect_err("must be refused").to_string();
        assert!(said.contains(cause) && said.contains("version 2"), "{define}: {said}");
    }
    for (structure, bytes) in [
        ("access", 0),
        ("access", 48),
        ("exit", 0),
        ("exit", 1),
        ("exit", u32::MAX),
        ("vcpu_state", 8),
        ("resume", 65537),
    ] {
        let define = format!("-DVARIANT_WRONG={structure}");
        let value = format!("-DVARIANT_WRONG_SIZE={bytes}u");
        let library = compile(folder.path(), &format!("lib{structure}{bytes}.so"), &[&define, &value]);
        let said = LoadedPlugin::load(&library).expect_err("must be refused").to_string();
        assert!(said.contains(&format!("has {bytes} bytes")), "{structure}: {said}");
    }
}
