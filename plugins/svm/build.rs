//! The plugin names its commit.

#[path = "../commit.rs"]
mod commit;

fn main() {
    commit::tell(&[
        "plugins/svm",
        "plugins/abi",
        "plugins/kvm-mmu",
        "plugins/kvm-core",
        "host/arch",
        "plugins/kvm-svm",
        "Cargo.lock",
    ]);
}
