//! The tape: its events, its file format with writer and reader side by side, importers and exporters.

pub mod event;
