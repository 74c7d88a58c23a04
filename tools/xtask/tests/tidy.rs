//! The repository keeps its own rules.

#[test]
fn repository_is_tidy() {
    let findings = xtask::tidy::check(&xtask::tidy::repository_root());
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}
