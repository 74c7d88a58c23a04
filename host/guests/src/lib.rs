//! The built-in guests: small systems that stand on their own, written with an assembler library.
//!
//! Each is an ELF32 multiboot-1 image that any hypervisor can start (`qemu-system-x86_64 -kernel x.flat -device
//! isa-debug-exit,iobase=0xf4,iosize=4 -serial stdio`). Like kvm-unit-tests, a guest reports on the serial port and
//! leaves through the debug-exit port with 0 for success. Some take parameters (`touch,pte=0x1002000001`): the image is
//! assembled for these values and holds nothing else.
#![forbid(unsafe_code)]

mod apic;
mod boot;
mod error;
mod image;
mod kernel;
mod parameters;
mod places;
mod programs;

pub use error::GuestError;
use iced_x86::{IcedError, code_asm::CodeAssembler};
use parameters::Values;
pub use parameters::{Kind, Parameter};

/// A built-in guest.
#[derive(Clone, Copy, Debug)]
pub struct GuestInfo {
    pub name: &'static str,
    pub summary: &'static str,
    /// What may follow the name.
    pub parameters: &'static [Parameter],
    /// Memory in MiB that it needs.
    pub default_memory: u32,
    /// vCPUs that it needs.
    pub default_smp: u32,
    program: Program,
}

/// How a guest's code comes about.
#[derive(Clone, Copy, Debug)]
enum Program {
    /// 64-bit code with the small runtime of `kernel`.
    Long(fn(&mut kernel::Kernel, &Values) -> Result<(), IcedError>),
    /// 32-bit code that stands alone, and its page directory.
    Legacy(fn(&mut CodeAssembler, &Values) -> Result<(), IcedError>, fn() -> Vec<u32>),
}

/// Every built-in guest, simplest first.
pub fn list() -> &'static [GuestInfo] {
    programs::ALL
}

/// The guest that `NAME[,key=value...]` names, whatever its parameters.
pub fn find(text: &str) -> Option<&'static GuestInfo> {
    let name = text.split_once(',').map_or(text, |(name, _)| name);
    list().iter().find(|guest| guest.name == name)
}

/// The image of `NAME[,key=value...]`.
pub fn image(text: &str) -> Result<Vec<u8>, GuestError> {
    let guest = find(text).ok_or_else(|| GuestError::UnknownGuest(text.to_owned()))?;
    let values =
        Values::parse(guest.name, guest.parameters, text.split_once(',').map_or("", |(_, values)| values))?;
    // The programs are code of this crate: that they assemble is a test, not a condition at run time.
    let image = match guest.program {
        Program::Long(program) => boot::image(program, &values),
        Program::Legacy(program, tables) => boot::image32(program, &tables(), &values),
    };
    Ok(image.expect("built-in guests assemble"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_guest_assembles() {
        for guest in super::list() {
            let image = super::image(guest.name).expect("listed guests exist");
            assert_eq!(&image[..4], b"\x7fELF", "{}", guest.name);
        }
    }

    #[test]
    fn parameters_are_checked() {
        for (text, expected) in [
            ("nobody", "no built-in guest `nobody` (see `vmtape guests`)"),
            ("hello,x=1", "builtin:hello has no parameter `x` (see `vmtape guests hello`)"),
            ("touch,wp=2", "builtin:touch: wp=2 is not wp=0|1"),
            ("touch,pte=12z", "builtin:touch: pte=12z is not pte=N"),
            ("touch,access=jump", "builtin:touch: access=jump is not access=read|write|fetch|x87"),
            ("touch,pte=1,gpa=0x1000", "builtin:touch: gpa cannot stand beside pte"),
            ("touch,gpa=1,pte=0x1000", "builtin:touch: pte cannot stand beside gpa"),
            ("touch,wp=0,wp=0", "builtin:touch: wp cannot stand beside wp"),
        ] {
            assert_eq!(super::image(text).unwrap_err().to_string(), expected);
        }
        assert_ne!(super::image("touch,pte=0x1002000001").unwrap(), super::image("touch").unwrap());
    }
}
