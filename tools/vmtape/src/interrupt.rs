//! Ctrl-C and `kill` as a wish: whoever records ends the run and keeps the tape. A second one ends the program at once.

// UNSAFETY: the standard library has no signals. The handler does nothing but what a handler may do.
#![expect(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

static WISHED: AtomicBool = AtomicBool::new(false);

extern "C" fn wish(signal: libc::c_int) {
    if WISHED.swap(true, Ordering::Relaxed) {
        // SAFETY: signal() and raise() are async-signal-safe (POSIX.1-2008, 2.4.3 Signal Actions). It comes when the handler
        // returns.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
}

/// From here on signals are wishes; those that the program was started without (`nohup`) stay ignored.
pub fn listen() {
    let handler = wish as extern "C" fn(libc::c_int) as *const () as libc::sighandler_t;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler has the type that the kernel calls, and lives as long as the program.
        let before = unsafe { libc::signal(signal, handler) };
        if before == libc::SIG_IGN {
            // SAFETY: as above; no handler of ours is involved.
            unsafe { libc::signal(signal, before) };
        }
    }
}

/// Whether somebody wants the program to end.
pub fn is_wished() -> bool {
    WISHED.load(Ordering::Relaxed)
}
