//! The built-in guests: small systems that stand on their own, written with an assembler library.
//!
//! Each is an ELF32 multiboot-1 image that any hypervisor can start (`qemu-system-x86_64 -kernel x.flat -device
//! isa-debug-exit,iobase=0xf4,iosize=4 -serial stdio`). Like kvm-unit-tests, a guest reports on the serial port and
//! leaves through the debug-exit port with 0 for success.
#![forbid(unsafe_code)]

mod boot;
mod image;
mod kernel;
mod programs;

/// A built-in guest.
#[derive(Clone, Copy, Debug)]
pub struct GuestInfo {
    pub name: &'static str,
    pub summary: &'static str,
    /// Memory in MiB that it needs.
    pub default_memory: u32,
    /// vCPUs that it needs.
    pub default_smp: u32,
    program: fn(&mut kernel::Kernel) -> Result<(), iced_x86::IcedError>,
}

/// Every built-in guest, simplest first.
pub fn list() -> &'static [GuestInfo] {
    programs::ALL
}

/// The guest with this name.
pub fn find(name: &str) -> Option<&'static GuestInfo> {
    list().iter().find(|guest| guest.name == name)
}

/// The image of the guest with this name.
pub fn image(name: &str) -> Option<Vec<u8>> {
    let guest = find(name)?;
    // The programs are constants of this crate: that they assemble is a test, not a condition at run time.
    Some(boot::image(guest.program).expect("built-in guests assemble"))
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
}
