//! Libraries that are backends, and libraries that are not: each refusal names the file and the cause.

mod common;

use common::{compile, intel};
use std::{fs, path::Path};
use vmtape_abi::VmConfig;
use vmtape_arch::host::{Silicon, Vendor};
use vmtape_backends::{LoadedPlugin, Search};

fn refusal(library: &Path) -> String {
    LoadedPlugin::load(library).expect_err("must be refused").to_string()
}

#[test]
fn a_backend_in_c_is_found_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    compile(folder.path(), "libvmtape_anything.so", &[]);
    let search = Search::new(&[folder.path().to_owned()]);
    let plugin = search.load("identity").unwrap();
    assert_eq!((plugin.name(), plugin.build.as_str()), ("identity", "identity 1"));
    assert_eq!(plugin.description.rules[0].source, "identity.c, find_slot()");
    let missing = search.load("nosuch").unwrap_err().to_string();
    assert!(missing.contains("`nosuch`") && missing.contains("identity"), "{missing}");
}

#[test]
fn a_vm_under_the_backend_in_c() {
    let folder = tempfile::tempdir().unwrap();
    let plugin = LoadedPlugin::load(&compile(folder.path(), "libidentity.so", &[])).unwrap();
    let silicon = intel();
    let vm = plugin.create(&VmConfig { silicon, options: Vec::new() }).unwrap();
    assert_eq!(vm.resolved(), [("kvm".to_owned(), "none".to_owned())]);
    let amd = Silicon { vendor: Vendor::AMD, ..silicon };
    let reason = plugin.create(&VmConfig { silicon: amd, options: Vec::new() }).err().unwrap();
    assert!(reason.contains("needs an Intel host"), "{reason}");
}

#[test]
fn what_is_not_a_backend_is_refused_by_name_and_cause() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("libtext.so");
    fs::write(&text, "not a library").unwrap();
    let said = refusal(&text);
    assert!(said.contains("libtext.so: is not a library"), "{said}");

    let cases: [(&str, &[&str], &str); 5] = [
        ("liboldname.so", &["-DVARIANT_NO_SYMBOL"], "speaks version 9 of the backend ABI only"),
        ("libother.so", &["-DVARIANT_OTHER_VERSION"], "speaks version 3 of the backend ABI"),
        ("libnull.so", &["-DVARIANT_NULL_FUNCTION"], "`exception` of its table is null"),
        ("libnameless.so", &["-DVARIANT_NO_NAME"], "it describes itself without a name"),
        ("libplain.so", &["-Dvmtape_backend_v2=something_else"], "no symbol vmtape_backend_v2"),
    ];
    for (name, defines, cause) in cases {
        let said = refusal(&compile(folder.path(), name, defines));
        let is_about_version = name != "libnameless.so";
        assert!(said.contains(name) && said.contains(cause), "{said}");
        assert!(!is_about_version || said.contains("version 2"), "{said}");
    }
}

#[test]
fn a_named_file_that_does_not_load_is_never_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("libtext.so");
    fs::write(&text, "").unwrap();
    let said = Search::new(&[text]).load("anything").unwrap_err().to_string();
    assert!(said.contains("libtext.so"), "{said}");
    let said = Search::new(&["absent.so".into()]).load("anything").unwrap_err().to_string();
    assert!(said.contains("absent.so: cannot be read"), "{said}");
}
