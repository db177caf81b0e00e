//! Waiting for a state with a deadline. The one place where the stage polls.

use std::time::{Duration, Instant};

use crate::stage::StageError;

const PAUSE: Duration = Duration::from_millis(25);

/// `45.s()` reads as it is said.
pub trait Seconds {
    /// So many seconds.
    fn s(self) -> Duration;
}

impl Seconds for u64 {
    fn s(self) -> Duration {
        Duration::from_secs(self)
    }
}

/// What a look at a state gave: the value that was waited for, or a word on what was there instead.
pub type Seen<T> = Result<T, String>;

/// Looks until `look` gives a value. `what` names the state, for the error.
///
/// # Errors
/// [`StageError::NotInTime`] with what was there at the last look.
pub fn until<T>(what: impl Into<String>, within: Duration, mut look: impl FnMut() -> Seen<T>) -> Result<T, StageError> {
    let end = Instant::now() + within;
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= end => {
                return Err(StageError::NotInTime { what: what.into(), within, last });
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// Looks for the whole of `time`, and wants every look to give a value; gives the last one.
///
/// # Errors
/// [`StageError::Failed`] at the first look that does not.
pub fn throughout<T>(
    what: impl Into<String>,
    time: Duration,
    mut look: impl FnMut() -> Seen<T>,
) -> Result<T, StageError> {
    let end = Instant::now() + time;
    let what = what.into();
    loop {
        let value = look().map_err(|said| StageError::Failed { what: what.clone(), said })?;
        if Instant::now() >= end {
            return Ok(value);
        }
        std::thread::sleep(PAUSE);
    }
}

/// What [`paced`] should do after a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paced {
    /// Look again.
    More,
    /// End early.
    Enough,
}

/// Looks once in each `period` until `time` is over, or the look has seen enough. A late look delays the next ones.
///
/// # Errors
/// The first of a look.
pub fn paced(
    period: Duration,
    time: Duration,
    mut look: impl FnMut() -> Result<Paced, StageError>,
) -> Result<(), StageError> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        let began = Instant::now();
        if look()? == Paced::Enough {
            break;
        }
        std::thread::sleep(period.saturating_sub(began.elapsed()));
    }
    Ok(())
}
