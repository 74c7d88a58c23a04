//! A set of switches, asked at every exit.

use super::Switch;

/// Numbers of switches are below this.
pub const SWITCHES: usize = 1024;

/// A set of switches by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwitchSet([u64; SWITCHES / 64]);

impl SwitchSet {
    pub fn contains(&self, Switch(number): Switch) -> bool {
        self.0.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 != 0)
    }

    /// Puts a switch in or takes it out; numbers that no switch has are left out.
    pub fn set(&mut self, Switch(number): Switch, on: bool) {
        if let Some(word) = self.0.get_mut(number as usize / 64) {
            let bit = 1 << (number % 64);
            *word = if on { *word | bit } else { *word & !bit };
        }
    }
}

impl FromIterator<Switch> for SwitchSet {
    fn from_iter<I: IntoIterator<Item = Switch>>(switches: I) -> Self {
        let mut set = Self::default();
        switches.into_iter().for_each(|switch| set.set(switch, true));
        set
    }
}
