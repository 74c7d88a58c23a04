//! Repository tasks. `cargo run -p xtask -- tidy` checks what no compiler checks; the tests run the same.

use anyhow::{Result, bail};

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("tidy") => {
            let findings = xtask::tidy::check(&xtask::tidy::repository_root());
            findings.iter().for_each(|finding| println!("{finding}"));
            if findings.is_empty() { Ok(()) } else { bail!("{} findings", findings.len()) }
        }
        _ => bail!("usage: cargo run -p xtask -- tidy"),
    }
}
