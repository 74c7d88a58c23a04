//! A vCPU's state as KVM's ioctls get and set it, one file per ioctl.

pub mod msrs;
