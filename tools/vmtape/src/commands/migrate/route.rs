//! Where a guest goes, and when.

use crate::commands::{check::hosts::KnownHost, replay::Plugins};
use anyhow::Result;
use vmtape_machine::{MachineSpec, hosts, vmm::When};
use vmtape_replay::migration::Hop;

/// All moves, in order.
pub fn hops(at: &[When], to: &[String], guest: &MachineSpec, plugins: &Plugins) -> Result<Vec<Hop>> {
    let (mut hops, mut from) = (Vec::new(), guest.clone());
    for (at, text) in at.iter().zip(to) {
        let host = host(text, &from, plugins)?;
        let machine = host.load(plugins, Some(&from))?.machine(&host, guest);
        from = machine.clone();
        hops.push(Hop { at: *at, to: machine });
    }
    Ok(hops)
}

/// A machine by its text. One without a host is where the guest is, or on that host's like of the other vendor.
fn host(text: &str, from: &MachineSpec, plugins: &Plugins) -> Result<KnownHost> {
    let backend = text.split(',').next().unwrap_or_default();
    let names_host =
        text.split(',').any(|word| word.starts_with("host=")) || hosts::passport(backend).is_ok();
    if names_host {
        return KnownHost::parse(text);
    }
    let vendor = plugins.get(backend)?.description.vendor;
    let host = if vendor == from.silicon.vendor {
        from.host.clone()
    } else {
        format!("{vendor}-{}", hosts::counterpart(&from.silicon, vendor).phys_bits)
    };
    KnownHost::parse(&format!("{text},host={host}"))
}
