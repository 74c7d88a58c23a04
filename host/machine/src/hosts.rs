//! Named hosts, and hosts described in a file.
