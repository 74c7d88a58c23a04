//! The matrix as one page.

use super::{fleet::Matrix, pins::Pinned};

pub fn page(_: &Matrix, _: Option<&Pinned>) -> String {
    String::new()
}
