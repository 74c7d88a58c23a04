//! The local APIC under virtual-interrupt delivery.

use crate::testing::{Guest, silicon};
use vmtape_abi::Backend;
use vmtape_arch::{
    access::Verdict,
    exit::{Resume, VmxReason},
    sensitive::{Sensitive, SensitiveKind},
};

/// SDM vol. 3C 30.1.4 EOI Virtualization: the exit comes after the EOI, with the vector as its qualification.
#[test]
fn an_eoi_exits_where_a_device_must_hear_of_it() {
    let eoi = Sensitive { kind: SensitiveKind::APIC_WRITE, number: 0xb0, size: 4, ..Default::default() };
    for (apicv, heard, verdict) in
        [("on", 0, Verdict::NATIVE), ("on", 0x55, Verdict::EXIT), ("off", 0x55, Verdict::EXIT)]
    {
        let mut guest = Guest::new(silicon(46), 46, &[("enable_apicv", apicv)]);
        guest.host.heard = heard;
        let Guest { vm, state, host, exit, .. } = &mut guest;
        assert_eq!(vm.sensitive(0, state, &eoi, host, exit, &mut Default::default()), verdict);
        let induced = VmxReason(exit.reason) == VmxReason::EOI_INDUCED;
        assert_eq!(induced, apicv == "on" && verdict == Verdict::EXIT, "apicv {apicv}");
        if induced {
            assert!(guest.exit.trap.is_set() && guest.exit.info1 == 0x55);
            assert_eq!(guest.handle(), Resume::GUEST);
            assert_eq!(guest.host.ended, [0x55]);
        }
    }
}
