//! `include/vmtape_backend.h` is what cbindgen makes of the contract's sources today.
//!
//! `VMTAPE_BLESS=1 cargo test -p vmtape_abi --test header` writes it anew.

use std::{fs, path::Path};
use vmtape_abi::table;

/// Where the structures live that cross the boundary.
const SOURCES: &[&str] = &[
    "../../host/arch/src/access.rs",
    "../../host/arch/src/cpuid.rs",
    "../../host/arch/src/event.rs",
    "../../host/arch/src/exception.rs",
    "../../host/arch/src/level.rs",
    "../../host/arch/src/memory.rs",
    "../../host/arch/src/memory_type.rs",
    "../../host/arch/src/exit.rs",
    "../../host/arch/src/flag.rs",
    "../../host/arch/src/fpu.rs",
    "../../host/arch/src/host.rs",
    "../../host/arch/src/query.rs",
    "../../host/arch/src/regs.rs",
    "../../host/arch/src/sensitive.rs",
    "../../host/arch/src/state/kind.rs",
    "../../host/arch/src/state/msrs.rs",
    "../../host/arch/src/vcpu.rs",
    "src/contract.rs",
    "src/table.rs",
];

/// Types that a backend needs though no function mentions them.
const ALSO: [&str; 2] = ["VmxReason", "SvmExitCode"];

#[test]
fn header_is_current() {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/vmtape_backend.h");
    let fresh = generate();
    if std::env::var_os("VMTAPE_BLESS").is_some() {
        fs::write(&header, &fresh).unwrap();
    }
    let found = fs::read_to_string(&header).unwrap_or_default();
    assert!(found == fresh, "{} is stale: run with VMTAPE_BLESS=1 and review the change", header.display());
}

#[test]
fn header_speaks_c() {
    let header = generate();
    for rust in ["::", "bool", "[`"] {
        assert_eq!(header.lines().find(|line| line.contains(rust)), None, "{rust} is Rust's");
    }
}

fn generate() -> String {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("abi.rs");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut plain = String::new();
    for file in SOURCES {
        plain += &expand(&fs::read_to_string(root.join(file)).unwrap());
    }
    plain += &expand(&note_part(&fs::read_to_string(root.join("../../host/arch/src/note.rs")).unwrap()));
    let (fields, sizes) = table::sizes_in_c();
    plain += &format!(
        "/// `sizeof` each structure that crosses: vt_SIZES, at whose end newer headers add.\n#[repr(C)] pub struct Sizes {{\n{fields}}}\n"
    );
    plain +=
        "#[unsafe(no_mangle)] pub extern \"C\" fn vmtape_backend_v2() -> *const BackendTable { todo!() }\n";
    fs::write(&source, spell_in_c(&plain)).unwrap();

    let mut config =
        cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml is readable");
    config.trailer = Some(format!(
        "// The sizes of this header's structures, in the order of vt_Sizes.\n#define vt_SIZES {{ \\\n    {sizes} \\\n}}"
    ));
    config.export.include = ALSO.map(str::to_owned).to_vec();
    let bindings = cbindgen::Builder::new().with_config(config).with_src(&source).generate().unwrap();
    let mut out = Vec::new();
    bindings.write(&mut out);
    let mut header = String::from_utf8(out).unwrap() + "\n";
    while header.contains("\n\n\n") {
        header = header.replace("\n\n\n", "\n\n");
    }
    header
}

/// Names in comments as C has them. A link leads nowhere from a header.
fn spell_in_c(source: &str) -> String {
    const NAMES: [(&str, &str); 8] = [
        ("[`", "`"),
        ("`]", "`"),
        ("`Host::", "`HostTable."),
        ("`EmulatorMmu::", "`MmuTable."),
        ("`Backend::", "`BackendTable."),
        ("`EmulateRequest::", "`EmulateRequest."),
        ("`MemoryRegion::", "`MemoryRegion."),
        (" A Rust `bool` holds 0 or 1 and nothing else, which no foreign library promises.", ""),
    ];
    NAMES.iter().fold(source.to_owned(), |text, (rust, c)| text.replace(rust, c))
}

/// `note.rs` up to the decoded form, which does not cross the boundary.
fn note_part(source: &str) -> String {
    source.split("/// A note, decoded.").next().unwrap().to_owned()
}

/// Replaces the two macros that cbindgen cannot see through, `open_enum!` and `#[bitfield]`, by the transparent
/// structures that they make; drops tests and imports.
fn expand(source: &str) -> String {
    let mut out = String::new();
    let mut lines = source.split("#[cfg(test)]").next().unwrap().lines().peekable();
    let mut integer: Option<String> = None;
    let mut module = String::new();
    while let Some(line) = lines.next() {
        let text = line.trim();
        if text.starts_with("layout!(") {
            while !text.ends_with(");") && !lines.next().unwrap().ends_with(");") {}
        } else if text.starts_with("//!") || text.starts_with("use ") && text.ends_with(';') {
            continue;
        } else if text.starts_with("use ") {
            while !lines.next().unwrap().trim().ends_with("};") {}
        } else if let Some(name) = text.strip_prefix("pub mod ") {
            // A module is a prefix in C: `emultype::SKIP` is `EMULTYPE_SKIP`.
            module = name.trim_end_matches(" {").to_uppercase() + "_";
        } else if line == "}" && !module.is_empty() {
            module.clear();
        } else if let (false, Some(rest)) = (module.is_empty(), text.strip_prefix("pub const ")) {
            out += &format!("pub const {module}{rest}\n");
        } else if text.ends_with("each_call! table_of (") {
            out += &expand_table(&mut lines);
        } else if text == "open_enum! {" {
            out += &expand_open_enum(&mut lines);
        } else if let Some(width) = text.strip_prefix("#[bitfield(") {
            integer = Some(width.trim_end_matches(")]").to_owned());
        } else if let (Some(width), Some(name)) = (&integer, text.strip_prefix("pub struct ")) {
            let name = name.trim_end_matches(" {");
            out += &format!("#[repr(transparent)] pub struct {name}({width});\n");
            while lines.next().unwrap() != "}" {}
            integer = None;
        } else {
            out += line;
            out.push('\n');
        }
    }
    out
}

/// The table that `table_of!` makes: its own fields, then one for each call.
fn expand_table<'a>(lines: &mut impl Iterator<Item = &'a str>) -> String {
    let (mut docs, mut head, mut name) = (String::new(), String::new(), String::new());
    for line in lines.take_while(|line| *line != ") [] }") {
        let text = line.trim();
        if name.is_empty() && text.starts_with("///") {
            docs += &format!("{text}\n");
        } else if name.is_empty() {
            name = text.split_once(',').unwrap().0.to_owned();
        } else if text.starts_with("///") {
            head += &format!("{text}\n");
        } else if text != "}" {
            head += &format!("pub {text}\n");
        }
    }
    let calls = match name.as_str() {
        "MmuTable" => table::mmu_fields(),
        "HostTable" => table::host_fields(),
        _ => table::backend_fields(),
    };
    format!("{docs}#[repr(C)] pub struct {name} {{\n{head}{calls}}}\n")
}

fn expand_open_enum<'a>(lines: &mut impl Iterator<Item = &'a str>) -> String {
    let (mut head, mut body, mut name) = (String::new(), String::new(), String::new());
    for line in lines.by_ref() {
        let text = line.trim();
        if line == "}" {
            break;
        } else if let Some(rest) = text.strip_prefix("pub struct ") {
            let (found, rest) = rest.split_once('(').unwrap();
            let integer = rest.trim_end_matches(") {");
            head += &format!("#[repr(transparent)] pub struct {found}(pub {integer});\n");
            name = found.to_owned();
        } else if let Some((constant, value)) = text.split_once(" = ") {
            let value = value.split(" =>").next().unwrap();
            body += &format!("pub const {constant}: {name} = {name}({value});\n");
        } else if text.starts_with("///") {
            if name.is_empty() { &mut head } else { &mut body }.push_str(&format!("{text}\n"));
        }
    }
    format!("{head}impl {name} {{\n{body}}}\n")
}
