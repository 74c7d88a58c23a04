//! Which part of a campaign a process runs: from an option, or from the engine that started it.

use std::{fmt, str::FromStr};
use thiserror::Error;

/// One shard of several, from zero on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub index: u32,
    pub of: u32,
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ShardError {
    #[error("`{0}` is not I or I/N, I from zero on")]
    Text(String),
    #[error("shard {index} is none of {of}: they count from 0 to {last}", last = of.saturating_sub(1))]
    Beyond { index: u32, of: u32 },
    #[error("{of} shards are asked for, but the plan has {planned}: make it anew with as many")]
    Other { of: u32, planned: u32 },
    #[error("{variable} is `{value}`, which is no number from {base} on")]
    Variable { variable: &'static str, value: String, base: u32 },
    #[error("which shard? --shard I/N, or one of {0}")]
    Which(String),
}

/// What engines call the index of a task, and where they begin to count. Their counts are not the number of shards: Slurm's is that
/// of the tasks, whatever their indices, and the others have none.
// See: GNU parallel(1); Slurm job_array; Kubernetes Indexed Jobs
const VARIABLES: [(&str, u32); 3] =
    [("SLURM_ARRAY_TASK_ID", 0), ("JOB_COMPLETION_INDEX", 0), ("PARALLEL_SEQ", 1)];

impl Shard {
    /// The shard of a plan with so many. `option`: `I` or `I/N`; without it the engine's variable says.
    pub fn find(
        option: Option<&str>,
        planned: u32,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ShardError> {
        let index = match option {
            Some(text) => text.parse::<Wanted>()?.of(planned)?,
            None if planned == 1 => 0,
            None => Self::of_engine(variable)?,
        };
        if index >= planned {
            return Err(ShardError::Beyond { index, of: planned });
        }
        Ok(Self { index, of: planned })
    }

    fn of_engine(variable: impl Fn(&str) -> Option<String>) -> Result<u32, ShardError> {
        let set = VARIABLES.iter().find_map(|(name, base)| Some((name, base, variable(name)?)));
        let Some((variable, base, value)) = set else {
            return Err(ShardError::Which(VARIABLES.map(|(name, _)| name).join(", ")));
        };
        let number: Option<u32> = value.trim().parse().ok();
        let index = number.and_then(|number| number.checked_sub(*base));
        index.ok_or(ShardError::Variable { variable, value, base: *base })
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

/// `I` or `I/N`.
struct Wanted(u32, Option<u32>);

impl Wanted {
    fn of(&self, planned: u32) -> Result<u32, ShardError> {
        match self.1 {
            Some(of) if of != planned => Err(ShardError::Other { of, planned }),
            _ => Ok(self.0),
        }
    }
}

impl FromStr for Wanted {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        let no = || ShardError::Text(text.to_owned());
        let number = |text: &str| text.parse().map_err(|_| no());
        match text.split_once('/') {
            Some((index, of)) => Ok(Self(number(index)?, Some(number(of)?))),
            None => Ok(Self(number(text)?, None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_comes_from_whoever_says_it() {
        let find = |option: Option<&str>, set: &[(&str, &str)]| {
            let value = |name: &str| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            };
            Shard::find(option, 5, value).map(|shard| shard.index)
        };
        assert_eq!(find(Some("3"), &[]), Ok(3));
        assert_eq!(find(Some("3/5"), &[("PARALLEL_SEQ", "1")]), Ok(3), "the option counts");
        assert_eq!(find(None, &[("PARALLEL_SEQ", "1")]), Ok(0), "counts from one on");
        assert_eq!(find(None, &[("SLURM_ARRAY_TASK_ID", "4"), ("PARALLEL_SEQ", "1")]), Ok(4));
        assert_eq!(find(None, &[("JOB_COMPLETION_INDEX", "0")]), Ok(0));
        // An array of 1,3,5-9:2 has five tasks, and 7 and 9 are none of five shards.
        let beyond = find(None, &[("SLURM_ARRAY_TASK_ID", "7"), ("SLURM_ARRAY_TASK_COUNT", "5")]);
        assert_eq!(beyond, Err(ShardError::Beyond { index: 7, of: 5 }));
        assert_eq!(find(Some("1/4"), &[]), Err(ShardError::Other { of: 4, planned: 5 }));
        assert!(find(None, &[]).unwrap_err().to_string().contains("JOB_COMPLETION_INDEX"));
        assert!(find(None, &[("PARALLEL_SEQ", "0")]).is_err() && find(Some("x"), &[]).is_err());
        assert_eq!(Shard::find(None, 1, |_| None), Ok(Shard { index: 0, of: 1 }));
    }
}
