//! What this process has taken of its host: its CPU clock, and `/proc/self`.

use std::time::Duration;

use super::proc::memory::parse_pss;

/// CPU time of all threads since the start, kernel time included (`CLOCK_PROCESS_CPUTIME_ID`).
pub fn cpu_time() -> Duration {
    Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// Bytes of memory: the proportional set size of `/proc/self/smaps_rollup`, or the resident set of `/proc/self/statm` on
/// kernels older than 4.14.
pub fn memory() -> Option<u64> {
    let proportional = std::fs::read("/proc/self/smaps_rollup").ok();
    proportional.and_then(|it| parse_pss(&it)).or_else(|| {
        let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
        let resident = pages.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()?;
        Some(resident * rustix::param::page_size() as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_taken_is_seen_and_cpu_time_goes_on() {
        let (before, began) = (memory().expect("the kernel tells"), cpu_time());
        let taken = vec![1_u8; 64 << 20];
        assert!(taken.iter().map(|it| u64::from(*it)).sum::<u64>() == 64 << 20);
        let after = memory().expect("the kernel tells");
        assert!(after >= before + (48 << 20), "{before} {after}");
        assert!(cpu_time() > began);
    }
}
