//! One file per subcommand.

pub mod backends;
pub mod bisect;
pub mod campaign;
pub mod check;
pub mod completions;
pub mod diff;
pub mod export;
pub mod guests;
pub mod host;
pub mod import;
pub mod inject;
pub mod man;
pub mod migrate;
pub mod outcome;
pub mod page;
pub mod record;
pub mod repair;
pub mod replay;
pub mod report;
pub mod run;
pub mod scenarios;
pub mod show;
pub mod stat;
pub mod tour;
