//! The program names its commit.

#[path = "../../plugins/commit.rs"]
mod commit;

fn main() {
    commit::tell(&[
        "host",
        "plugins",
        "traces",
        "replay",
        "tools/vmtape/src",
        "tools/vmtape/Cargo.toml",
        "Cargo.lock",
    ]);
}
