//! One line of a report.

use schemars::JsonSchema;
use serde::Serialize;

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Row {
    pub what: String,
    pub expected: String,
    pub actual: String,
}

impl Row {
    pub fn new(what: impl Into<String>, expected: impl Into<String>, actual: impl Into<String>) -> Self {
        Self { what: what.into(), expected: expected.into(), actual: actual.into() }
    }
}
