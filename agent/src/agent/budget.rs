//! What the agent may cost its host. It measures itself, looks less often before it takes more than its budget of CPU
//! time, and tells when it is over.

use std::time::Duration;

use crate::kernel::own;

/// The looks are this many times less frequent at most.
const MOST: u32 = 8;
/// From this share of the budget on, the agent looks half as often.
const TIGHT: f64 = 0.8;
/// It looks twice as often again when that would still leave it below this share.
const LOOSE: f64 = 0.6;
/// A halving has helped when it left so much of the cost at most.
const HELPS: f64 = 0.85;
/// A start is dear: everything is new to it.
const START: Duration = Duration::from_secs(60);
/// So many measurements in a row have to say so: a start, or a burst of new processes, is no state.
const IN_A_ROW: u32 = 2;
const IN_A_ROW_CALM: u32 = 3;

/// Most that the agent may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Cores. Default 0.05: five per cent of one.
    pub cpu: f64,
    /// Bytes of memory, its share of what it shares included. Default 40 MiB, of which the shipped unit leaves it 64.
    pub memory: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { cpu: 0.05, memory: 40 << 20 }
    }
}

/// What it took since the last measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Taken {
    /// Cores; `None` at the first measurement.
    pub(super) cpu: Option<f64>,
    /// Bytes; `None` where the kernel does not tell.
    pub(super) memory: Option<u64>,
}

/// How much less often than configured the agent looks.
#[derive(Debug)]
pub(super) struct Pace {
    last: Option<(Duration, Duration)>,
    times: u32,
    tight: u32,
    calm: u32,
    /// What was taken before the last halving.
    before_slower: Option<f64>,
    /// Fewer looks did not make it cheaper.
    is_in_vain: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self { last: None, times: 1, tight: 0, calm: 0, before_slower: None, is_in_vain: false }
    }
}

impl Pace {
    /// Measures this process.
    pub(super) fn measure(&mut self, budget: Budget, now: Duration) -> Taken {
        Taken { cpu: self.take(own::cpu_time(), budget, now), memory: own::memory() }
    }

    /// Intervals are so many times longer: 1, 2, 4 or 8.
    pub(super) const fn times(&self) -> u32 {
        self.times
    }

    /// Takes in the CPU time since the start of the process; returns the cores taken since the last measurement, once the
    /// start is over.
    fn take(&mut self, total: Duration, budget: Budget, now: Duration) -> Option<f64> {
        let (at, before) = self.last.replace((now, total))?;
        if now < START {
            return None;
        }
        let cores = total.saturating_sub(before).as_secs_f64() / now.saturating_sub(at).as_secs_f64().max(1e-3);
        let is_tight = cores > TIGHT * budget.cpu;
        let is_calm = 2.0 * cores < LOOSE * budget.cpu;
        self.tight = if is_tight { self.tight + 1 } else { 0 };
        if !is_tight {
            // It was enough; what comes later has nothing to do with it.
            self.before_slower = None;
        }
        self.calm = if is_calm { self.calm + 1 } else { 0 };
        if self.tight >= IN_A_ROW {
            self.tight = 0;
            let has_helped = self.before_slower.is_none_or(|before| cores < before * HELPS);
            if !has_helped {
                // It is not the looks that are dear: to see less would cost sight and save nothing.
                self.times = (self.times / 2).max(1);
                self.is_in_vain = true;
            } else if self.times < MOST && !self.is_in_vain {
                self.before_slower = Some(cores);
                self.times *= 2;
            }
        } else if self.calm >= IN_A_ROW_CALM {
            self.calm = 0;
            self.times = (self.times / 2).max(1);
            (self.before_slower, self.is_in_vain) = (None, false);
        }
        Some(cores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget { cpu: 0.05, memory: 64 << 20 };

    /// Measures every ten seconds an agent that takes so many cores at full pace, half of them at half pace.
    fn after(pace: &mut Pace, measurements: u32, cores: f64) -> Vec<u32> {
        let (mut at, mut total) = pace.last.unwrap_or_default();
        (0..measurements)
            .map(|_| {
                at += Duration::from_secs(10);
                total += Duration::from_secs_f64(10.0 * cores / f64::from(pace.times()));
                pace.take(total, BUDGET, at);
                pace.times()
            })
            .collect()
    }

    #[test]
    fn the_dearer_its_looks_the_fewer_it_takes_and_it_comes_back() {
        let mut pace = Pace::default();
        assert_eq!(after(&mut pace, 5, 1.0), [1; 5], "its first minute");
        assert_eq!(after(&mut pace, 6, 0.03), [1; 6], "within the budget");
        assert_eq!(after(&mut pace, 6, 0.10), [1, 2, 2, 4, 4, 4], "0.025 at a quarter of the pace fits");
        assert_eq!(after(&mut pace, 4, 2.0), [4, 8, 8, 8], "and never less than an eighth");
        let back = after(&mut pace, 12, 0.01);
        assert_eq!(back, [8, 8, 4, 4, 4, 2, 2, 2, 1, 1, 1, 1]);
    }

    #[test]
    fn where_fewer_looks_make_nothing_cheaper_the_agent_looks_as_often_as_before() {
        let mut pace = Pace::default();
        let (mut at, mut total) = (Duration::ZERO, Duration::ZERO);
        let mut times = Vec::new();
        for _ in 0..20 {
            at += Duration::from_secs(10);
            total += Duration::from_secs_f64(10.0 * 0.2);
            pace.take(total, BUDGET, at);
            times.push(pace.times());
        }
        assert_eq!(times[6..], [[2, 2].as_slice(), &[1; 12]].concat(), "{times:?}");
    }

    #[test]
    fn a_burst_changes_nothing_and_what_fits_only_when_slow_stays_slow() {
        let mut pace = Pace::default();
        after(&mut pace, 10, 0.01);
        assert_eq!(after(&mut pace, 1, 0.5), [1], "one measurement over it");
        assert_eq!(after(&mut pace, 3, 0.01), [1; 3]);
        after(&mut pace, 4, 0.07);
        assert_eq!(pace.times(), 2);
        assert_eq!(after(&mut pace, 30, 0.07), [2; 30], "at full pace it would be over it again");
    }
}
