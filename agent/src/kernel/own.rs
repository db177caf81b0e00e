//! What this process has taken of its host: its CPU clock, and `/proc/self`.

use std::fs::File;
use std::io::{Read, Seek};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::proc::memory::parse_pss;

/// CPU time of all threads since the start, kernel time included (`CLOCK_PROCESS_CPUTIME_ID`).
pub fn cpu_time() -> Duration {
    Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// CPU time of this thread, kernel time included (`CLOCK_THREAD_CPUTIME_ID`): what work costs. A clock on the wall would
/// count what a busy host gave to others.
pub fn thread_time() -> Duration {
    Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// Bytes of memory: the proportional set size of `/proc/self/smaps_rollup`, or the resident set of `/proc/self/statm` on
/// kernels older than 4.14. The kernel visits every page for the first, so it is read anew when the second has moved by
/// a quarter of a MiB, or after sixty readings; else what the second has moved by is added.
pub fn memory() -> Option<u64> {
    static PROPORTIONAL: KeptOpen = KeptOpen::of("/proc/self/smaps_rollup");
    static RESIDENT: KeptOpen = KeptOpen::of("/proc/self/statm");
    static LAST: Mutex<Option<Both>> = Mutex::new(None);
    let resident = RESIDENT.read()?.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()?;
    let resident = resident * rustix::param::page_size() as u64;
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(it) = last.as_mut().filter(|it| it.left > 0 && it.resident.abs_diff(resident) < MOVED) {
        it.left -= 1;
        return Some((it.proportional + resident).saturating_sub(it.resident));
    }
    let proportional = PROPORTIONAL.read().and_then(|it| parse_pss(it.as_bytes()));
    *last = proportional.map(|proportional| Both { proportional, resident, left: READINGS });
    Some(proportional.unwrap_or(resident))
}

/// See [`memory`].
const MOVED: u64 = 256 << 10;
const READINGS: u32 = 60;

/// What both files said at once, and how often that may be gone by.
struct Both {
    proportional: u64,
    resident: u64,
    left: u32,
}

/// A small file that is read again and again, and opened once: later it may be out of reach.
struct KeptOpen {
    path: &'static str,
    file: Mutex<Option<File>>,
}

impl KeptOpen {
    const fn of(path: &'static str) -> Self {
        Self { path, file: Mutex::new(None) }
    }

    fn read(&self) -> Option<String> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.is_none() {
            *file = File::open(self.path).ok();
        }
        let file = file.as_mut()?;
        let mut text = String::new();
        file.rewind().ok()?;
        file.take(16 << 10).read_to_string(&mut text).ok()?;
        Some(text)
    }
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

    #[test]
    fn who_waits_spends_nothing() {
        let (before, began) = (thread_time(), std::time::Instant::now());
        // The others of this process may have all cores: it is one thread's time.
        std::thread::sleep(Duration::from_millis(20));
        assert!(thread_time().saturating_sub(before) * 4 < began.elapsed());
    }
}
