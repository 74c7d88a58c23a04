//! Exceptions and interrupts on their way to the guest.

use crate::{core::Core, cpu::Stop};
use vmtape_arch::{event::Event, exception::Exception};

/// An exception that an instruction raised: offers it to the backend if it is intercepted, delivers it otherwise,
/// with double and triple faults.
pub(crate) fn exception(core: &mut Core<'_>, exception: Exception) -> Result<(), Stop> {
    let wanted = core.state.intercepts.exceptions >> exception.vector.0 & 1 != 0;
    if wanted && core.env.exception(core.state, &exception).is_some() {
        return Err(Stop::Exit);
    }
    Err(Stop::TripleFault)
}

/// The event that the backend injects at entry.
pub(crate) fn inject(_: &mut Core<'_>, _: Event) -> Result<(), Stop> {
    Err(Stop::TripleFault)
}

/// An external interrupt without an exit.
pub(crate) fn interrupt(_: &mut Core<'_>, _vector: u8) -> Result<(), Stop> {
    Err(Stop::TripleFault)
}
