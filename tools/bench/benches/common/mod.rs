//! Time that this thread spent on a processor, so that a busy machine does not make the interpreter look slow.

use criterion::measurement::{Measurement, ValueFormatter, WallTime};

const WALL: &WallTime = &WallTime;

pub struct CpuTime;

impl CpuTime {
    /// Nanoseconds; zero where the kernel does not tell.
    fn now() -> u64 {
        let times = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        times.split_whitespace().next().and_then(|running| running.parse().ok()).unwrap_or(0)
    }
}

impl Measurement for CpuTime {
    type Intermediate = u64;
    type Value = u64;

    fn start(&self) -> u64 {
        Self::now()
    }

    fn end(&self, start: u64) -> u64 {
        Self::now() - start
    }

    fn add(&self, a: &u64, b: &u64) -> u64 {
        a + b
    }

    fn zero(&self) -> u64 {
        0
    }

    fn to_f64(&self, nanoseconds: &u64) -> f64 {
        *nanoseconds as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WALL.formatter()
    }
}
