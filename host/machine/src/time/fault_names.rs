//! The backend's fault points as the tape numbers them: what they have in common are their names.

use super::HostPoint;
use std::collections::BTreeMap;

/// From the backend's numbers to the tape's.
#[derive(Clone, Debug, Default)]
pub(crate) struct FaultNumbers(Option<BTreeMap<u32, u32>>);

impl FaultNumbers {
    /// `own`: the backend's numbers, in decimal, and names; `taped`: the tape's. Where one of them says nothing the numbers are
    /// the same.
    pub(crate) fn new(own: &[(String, String)], taped: &[(u32, String)]) -> Self {
        if own.is_empty() || taped.is_empty() {
            return Self(None);
        }
        let number = |(own, name): &(String, String)| {
            let (taped, _) = taped.iter().find(|(_, known)| known == name)?;
            Some((own.parse().ok()?, *taped))
        };
        Self(Some(own.iter().filter_map(number).collect()))
    }

    /// The tape's number; `None`: the tape has no such point, so nothing on it can answer.
    pub(crate) fn of(&self, point: u32) -> Option<u32> {
        match &self.0 {
            Some(numbers) if point < HostPoint::FIRST => numbers.get(&point).copied(),
            _ => Some(point),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_found_by_name() {
        let own = [("7".to_owned(), "lost-flush".to_owned()), ("8".to_owned(), "new".to_owned())];
        let taped = [(20, "lost-flush".to_owned()), (7, "other".to_owned())];
        let numbers = FaultNumbers::new(&own, &taped);
        assert_eq!([numbers.of(7), numbers.of(8), numbers.of(20)], [Some(20), None, None]);
        assert_eq!(numbers.of(HostPoint::NMI.0), Some(HostPoint::NMI.0));
        assert_eq!(FaultNumbers::new(&[], &taped).of(7), Some(7));
        assert_eq!(FaultNumbers::new(&own, &[]).of(7), Some(7));
    }
}
