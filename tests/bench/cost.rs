//! What a process costs, as the kernel counts it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tickbird_tests::wait::{Paced, paced, throughout};
use tickbird_tests::{Cgroup, StageError, until};

/// Clock ticks of `/proc/<pid>/stat` in a second, on every Linux that Rust runs on.
const TICKS: f64 = 100.0;
/// Nothing that is watched takes as long.
const LONGEST: Duration = Duration::from_secs(3_600);

/// What a process cost over some time.
pub(crate) struct Cost {
    /// Share of one core: user and kernel time, children that it waited for included.
    pub(crate) cpu_ratio: f64,
    /// Largest proportional set size seen, in MiB.
    pub(crate) pss_mib: f64,
}

/// Watches process `pid` for `time`, one look at its memory a second.
pub(crate) fn over(pid: u32, time: Duration) -> Result<Cost, StageError> {
    let (began, before) = (Instant::now(), cpu_seconds(pid)?);
    let mut pss_mib: f64 = 0.0;
    while began.elapsed() < time {
        pss_mib = pss_mib.max(pss(pid)?);
        let next = began.elapsed() + Duration::from_secs(1);
        until("the next second", Duration::from_secs(2), || {
            if began.elapsed() >= next { Ok(()) } else { Err(String::new()) }
        })?;
    }
    Ok(Cost { cpu_ratio: (cpu_seconds(pid)? - before) / began.elapsed().as_secs_f64(), pss_mib })
}

/// Does something, and says what it came to and the largest proportional set size of a process meanwhile, in MiB, of twenty looks a second.
pub(crate) fn most_memory<T>(pid: u32, act: impl FnOnce() -> T) -> (T, Result<f64, StageError>) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most: f64 = 0.0;
            paced(Duration::from_millis(50), LONGEST, || {
                most = most.max(pss(pid)?);
                Ok(if is_over.load(Ordering::Relaxed) { Paced::Enough } else { Paced::More })
            })?;
            Ok(most)
        });
        let done = act();
        is_over.store(true, Ordering::Relaxed);
        (done, watch.join().expect("it returns its errors"))
    })
}

/// As [`over`], of everything in a cgroup, to the microsecond, with the children and threads that ended.
pub(crate) fn over_in(cgroup: &Cgroup, time: Duration) -> Result<Cost, StageError> {
    let (began, before) = (Instant::now(), cgroup.cpu_seconds()?);
    let mut pss_mib: f64 = 0.0;
    while began.elapsed() < time {
        // A child that has just ended has no memory.
        let all = cgroup.processes()?.into_iter().filter_map(|pid| pss(pid).ok()).sum();
        pss_mib = pss_mib.max(all);
        warm_up(Duration::from_secs(1))?;
    }
    Ok(Cost { cpu_ratio: (cgroup.cpu_seconds()? - before) / began.elapsed().as_secs_f64(), pss_mib })
}

/// A quarter of the values are less than this one.
pub(crate) fn lower_quartile(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 4).copied().unwrap_or(f64::NAN)
}

/// Lets `time` go by, so that what starts once is over.
pub(crate) fn warm_up(time: Duration) -> Result<(), StageError> {
    throughout("warming up", time, || Ok(()))
}

/// Seconds of CPU so far: fields 14 to 17 of `/proc/<pid>/stat`.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64, StageError> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).map_err(StageError::system(format!("read {path}")))?;
    // The second field is a name in brackets that may hold anything, blanks and brackets included.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields).split_ascii_whitespace();
    let ticks: f64 = fields.skip(11).take(4).filter_map(|it| it.parse::<f64>().ok()).sum();
    Ok(ticks / TICKS)
}

/// Seconds that the threads of a process have run so far, to the nanosecond: the first field of
/// `/proc/<pid>/task/*/schedstat`. A thread that ended takes its part with it.
pub(crate) fn run_seconds(pid: u32) -> Result<f64, StageError> {
    let path = format!("/proc/{pid}/task");
    let mut nanoseconds = 0.0;
    for task in std::fs::read_dir(&path).map_err(StageError::system(format!("read {path}")))?.flatten() {
        // One that ended since the directory was read has nothing to add.
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text.split_ascii_whitespace().next().and_then(|it| it.parse::<f64>().ok()).unwrap_or_default();
    }
    Ok(nanoseconds / 1e9)
}

/// Proportional set size, in MiB: `Pss` of `/proc/<pid>/smaps_rollup`.
pub(crate) fn pss(pid: u32) -> Result<f64, StageError> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).map_err(StageError::system(format!("read {path}")))?;
    let kib = text.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
    let kib: f64 = kib.ok_or(StageError::Malformed { what: path, found: text })?;
    Ok(kib / 1024.0)
}
