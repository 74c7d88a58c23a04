//! CPU models in the syntax of QEMU.
