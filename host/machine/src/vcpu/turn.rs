//! Whose turn it is.

/// Instructions that a vCPU executes before another one has its turn.
const TURN: u64 = 2_000;

/// The vCPU whose turn it is, and the instruction count at which its turn ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) vcpu: u32,
    pub(crate) ends: u64,
}

impl Turn {
    fn is_over(&self, icount: u64) -> bool {
        icount >= self.ends
    }

    /// The vCPUs in the order in which they may have it: the current one until its turn ends, then those after it.
    pub(crate) fn order(&self, vcpus: u32, icount: u64) -> impl Iterator<Item = u32> + use<> {
        let first = if self.is_over(icount) { self.vcpu + 1 } else { self.vcpu };
        (first..first + vcpus).map(move |n| n % vcpus)
    }

    /// Gives it to a vCPU; the current one keeps the rest of its own. True: it is a new turn.
    pub(crate) fn give(&mut self, vcpu: u32, icount: u64) -> bool {
        let new = vcpu != self.vcpu || self.is_over(icount);
        if new {
            self.ends = icount + TURN;
        }
        self.vcpu = vcpu;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_kept_until_it_ends() {
        let mut turn = Turn::default();
        assert_eq!(turn.order(3, 0).collect::<Vec<_>>(), [1, 2, 0], "nobody has had one");
        turn.give(1, 0);
        assert_eq!(turn.order(3, TURN - 1).collect::<Vec<_>>(), [1, 2, 0]);
        turn.give(1, TURN - 1);
        assert_eq!(turn, Turn { vcpu: 1, ends: TURN }, "it is the same turn");
        assert_eq!(turn.order(3, TURN).collect::<Vec<_>>(), [2, 0, 1]);
        turn.give(2, 5);
        assert_eq!(turn, Turn { vcpu: 2, ends: TURN + 5 });
    }
}
