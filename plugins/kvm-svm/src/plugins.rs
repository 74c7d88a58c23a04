//! The two plugins, one for each value of `npt`.

use crate::{Vm, create, describe};
use vmtape_abi::{Description, Plugin, VmConfig};

/// `svm`: shadow paging.
#[derive(Debug)]
pub struct Svm;

/// `svm-npt`: nested paging.
#[derive(Debug)]
pub struct SvmNpt;

impl Plugin for Svm {
    type Vm = Vm;

    fn describe() -> Description {
        describe::description(false)
    }

    fn create(config: &VmConfig) -> Result<Vm, String> {
        create(config, false)
    }
}

impl Plugin for SvmNpt {
    type Vm = Vm;

    fn describe() -> Description {
        describe::description(true)
    }

    fn create(config: &VmConfig) -> Result<Vm, String> {
        create(config, true)
    }
}
