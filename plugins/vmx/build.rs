//! The plugin names its commit.

#[path = "../commit.rs"]
mod commit;

fn main() {
    commit::tell(&[
        "plugins/vmx",
        "plugins/abi",
        "plugins/kvm-mmu",
        "plugins/kvm-core",
        "host/arch",
        "Cargo.lock",
    ]);
}
