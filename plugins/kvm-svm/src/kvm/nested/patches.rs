//! What differs between releases, as questions that the rest of this folder asks.
