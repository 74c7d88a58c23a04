//! Memory and devices where the host keeps addresses for something else.

use super::{
    Guest, Host,
    finding::{DMA, Finding, Pin, Severity, Subject},
    footprint::{Kind, Place},
};
use vmtape_machine::hosts::Reserved;

/// One finding for each range that something of the guest is in. Only DMA is known to mind.
pub fn findings(guest: &Guest, host: &Host, findings: &mut Vec<Finding>) {
    let name = &host.passport.name;
    for range in host.passport.reserved() {
        let places = guest.footprint.ranges.values().filter(|place| meets(&range, place));
        let Some(place) = places.min_by_key(|place| place.exit.unwrap_or(u64::MAX)) else { continue };
        let (severity, words) = match guest.assigned_device {
            true => (Severity::Breaks, "mapping this for DMA fails"),
            false => (Severity::Caution, "a device that is assigned later could not be mapped"),
        };
        let sentence = format!("{name} keeps {range}: {words}");
        let finding = Finding::new(severity, Subject::Reserved, sentence, DMA).at(Some(place));
        findings.push(finding.pin(Pin::KeepOut { first: range.first, last: range.last }));
    }
}

/// Devices in the MSI window are the guest's local APICs, which nobody maps.
fn meets(range: &Reserved, place: &Place) -> bool {
    match place.kind {
        Kind::Slot => range.meets(place.at.unwrap_or(place.address), place.address),
        Kind::Device => !range.is_msi_window() && range.meets(place.address, place.address),
        Kind::Entry | Kind::Page => false,
    }
}
