//! The walk of a nested page table.
//!
//! Manual: AMD APM volume 2, 24593 rev. 3.42, 15.25.

use super::{
    nested::{Nested, NestedFault},
    private::PrivateTables,
};
use crate::{
    config::Config,
    memory_type::{self, HOST_PAT},
    walk::{self, AdPolicy, Failure, Mode, Paging, Steps, Tables, Update, WalkAccess},
};
use std::convert::Infallible;
use vmtape_arch::{access::AccessKind, paging::Pte};

impl Tables for PrivateTables<'_> {
    type Stop = Infallible;

    fn read(&mut self, address: u64, _size: u8) -> Result<Option<u64>, Infallible> {
        Ok(Some(self.entry(address)))
    }

    fn update(&mut self, address: u64, old: u64, new: u64, _size: u8) -> Result<Update, Infallible> {
        let (before, after) = (Pte::from_bits(old), Pte::from_bits(new));
        let accessed = after.a() && !before.a() && !self.loses_accessed(old);
        let dirty = after.d() && !before.d() && !self.loses_dirty(old);
        let kept = after.with_a(before.a() || accessed).with_d(before.d() || dirty);
        self.set(address, kept.into_bits());
        Ok(if kept == after { Update::Done } else { Update::Lost(kept.into_bits()) })
    }
}

/// Walks the nested page table: ordinary paging with the host's mode and width, every access a user's.
/// See: APM 15.25.5 Nested Table Walk, 15.25.6 Nested versus Guest Page Faults, Fault Ordering
pub(super) fn walk_npt(
    tables: &mut PrivateTables<'_>,
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
    match walk::walk(&paging, gpa, &access, AdPolicy::AfterTranslation, tables, &mut steps) {
        Ok(walk) => {
            let [read, write, fetch] = paging.rights(walk.acc, 0, &access);
            let memory_type = memory_type::Nested::Npt(walk.memory_type(HOST_PAT));
            Ok(Nested { hpa: walk.gpa, read, write: write && walk.dirty, fetch, memory_type })
        }
        Err(Failure::Fault(error)) => Err(NestedFault::Npf(error)),
        Err(Failure::Stopped(stop)) => match stop {},
    }
}

pub(crate) fn npt_paging(config: &Config, root: u64, levels: u8) -> Paging {
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
