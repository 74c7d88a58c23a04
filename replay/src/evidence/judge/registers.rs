//! Control registers that the guest writes.

use super::Judge;
use crate::check::{footprint::Place, tables::Entry};
use vmtape_arch::{paging::Pte, regs::Cr4};
use vmtape_machine::model::named;

impl Judge<'_> {
    pub(super) fn control_register(&mut self, number: u8, value: u64) {
        self.events += 1;
        match number {
            3 => {
                // Only the frame: the rest says what to flush and how to treat tags.
                let table = Pte::new().with_frame(Pte::from_bits(value).frame());
                let entry = Entry { level: 0, at: 0, value: table.into_bits() };
                let place = Place::entry(entry, self.exit).nowhere();
                self.target.reach(&place).into_iter().for_each(|finding| self.find(finding));
            }
            4 => {
                let cr4 = Cr4::from_bits(value);
                let bits = [
                    (cr4.la57(), "la57"),
                    (cr4.smep(), "smep"),
                    (cr4.smap(), "smap"),
                    (cr4.umip(), "umip"),
                    (cr4.fsgsbase(), "fsgsbase"),
                    (cr4.pcide(), "pcid"),
                    (cr4.osxsave(), "xsave"),
                    (cr4.pke(), "pku"),
                ];
                for name in bits.into_iter().filter(|(set, _)| *set).map(|(_, name)| name) {
                    if let Some(feature) = named(name).ok().filter(|feature| self.lacks(feature)) {
                        self.missing(feature, "the guest turns it on in CR4");
                    }
                }
            }
            _ => {}
        }
    }
}
