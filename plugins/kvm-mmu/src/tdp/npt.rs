//! The walk of a nested page table.
//!
//! Manual: AMD APM volume 2, 24593 rev. 3.42, 15.25.

use super::nested::{Nested, NestedFault};
use crate::{
    config::Config,
    pages::Pages,
    walk::{self, AdPolicy, Failure, Mode, Paging, Steps, Tables, Update, WalkAccess},
};
use std::convert::Infallible;
use vmtape_arch::access::AccessKind;

/// The private tables as silicon's walk of x86-format entries sees them.
pub(crate) struct PrivateTables<'a>(pub &'a mut Pages);

impl Tables for PrivateTables<'_> {
    type Stop = Infallible;

    fn read(&mut self, address: u64, _size: u8) -> Result<Option<u64>, Infallible> {
        Ok(Some(self.0.read(address)))
    }

    fn update(&mut self, address: u64, _old: u64, new: u64, _size: u8) -> Result<Update, Infallible> {
        self.0.write(address, new);
        Ok(Update::Done)
    }
}

/// Walks the nested page table: ordinary paging with the host's mode and width, every access a user's.
/// See: APM 15.25.5 Nested Table Walk, 15.25.6 Nested versus Guest Page Faults, Fault Ordering
pub(super) fn walk_npt(
    pages: &mut Pages,
    config: &Config,
    root: u64,
    levels: u8,
    gpa: u64,
    kind: AccessKind,
) -> Result<Nested, NestedFault> {
    let mut steps = Steps::default();
    let access = WalkAccess { kind, user: true, implicit: false };
    let paging = npt_paging(config, root, levels);
    if levels < 5 && config.wide_gpa_faults && gpa >> 48 != 0 {
        return Err(NestedFault::Npf(paging.describe(&access)));
    }
    match walk::walk(&paging, gpa, &access, AdPolicy::AfterTranslation, &mut PrivateTables(pages), &mut steps)
    {
        Ok(walk) => {
            let [read, write, fetch] = paging.rights(walk.acc, 0, &access);
            Ok(Nested { hpa: walk.gpa, read, write: write && walk.dirty, fetch })
        }
        Err(Failure::Fault(error)) => Err(NestedFault::Npf(error)),
        Err(Failure::Stopped(stop)) => match stop {},
    }
}

fn npt_paging(config: &Config, root: u64, levels: u8) -> Paging {
    Paging {
        mode: if levels == 5 { Mode::Level5 } else { Mode::Level4 },
        root,
        maxphyaddr: config.table_width(),
        nx: true,
        wp: true,
        gbpages: config.gbpages,
        bit8_reserved: true,
        reports_fetch: true,
        ..Paging::BARE
    }
}
