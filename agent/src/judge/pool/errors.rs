//! When requests of an application failed, by its logs: which error lies near a moment, and how likely one does by chance.
//!
//! The time of an error is a range: a log is read once a second, and a line's own time has a grain. An error is near a
//! moment only if it is so wherever in its range it came.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::SignedDuration;

use super::lines::SLACK;
use crate::discover::TargetKey;
use crate::inspect::Reason;
use crate::inspect::log_tail::{LogLook, Occurrence, Raised, Written};
use crate::judge::Moment;

/// An error that came within this time of a moment is near it.
const NEAR: Duration = Duration::from_secs(1);
/// Errors are remembered for so long,
const KEPT: Duration = Duration::from_secs(900);
/// and at most so many of each log.
const MAX_KEPT: usize = 2_048;
/// How often errors come is judged over this time, up to so long after the moment in question.
const LATELY: Duration = Duration::from_secs(300);
const AFTER: Duration = Duration::from_secs(60);
/// A line may have been buffered for so long before it was written.
const BUFFERED: Duration = Duration::from_secs(60);
/// Zones differ from one another by multiples of this.
const ZONES: i64 = 900;
/// A log that was not looked at for so long is not followed any more.
const LOST: Duration = Duration::from_secs(300);

/// The errors of every application that has a log.
#[derive(Debug, Default)]
pub(super) struct Errors {
    logs: BTreeMap<TargetKey, Log>,
}

#[derive(Debug)]
struct Log {
    application: String,
    /// From here to there every error is known, but for those of the gaps.
    from: Duration,
    until: Duration,
    errors: VecDeque<Timed>,
    /// Times whose errors are not all known.
    gaps: VecDeque<(Duration, Duration)>,
    unread: Option<Reason>,
    seen_at: Duration,
}

/// An error that came somewhere between these times.
#[derive(Debug)]
struct Timed {
    from: Duration,
    until: Duration,
    raised: Raised,
}

/// What is known of errors near a moment.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Near {
    /// This one was within a second; so many seconds after it, or before where negative.
    Error { raised: Box<Raised>, after: f64 },
    /// None that certainly was, but there may have been one.
    Perhaps,
    /// None was.
    Nothing,
}

/// The same, with the share of moments around it that lie as near to an error.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Nearness {
    pub(super) near: Near,
    pub(super) chance: f64,
}

impl Errors {
    /// Takes a look at a log in.
    pub(super) fn look(&mut self, look: &LogLook, now: Moment) {
        let log = self.logs.entry(look.target.clone()).or_insert_with(|| Log {
            application: look.application.to_string(),
            from: Duration::MAX,
            until: Duration::ZERO,
            errors: VecDeque::new(),
            gaps: VecDeque::new(),
            unread: None,
            seen_at: now.mono,
        });
        log.seen_at = now.mono;
        let found = match &look.found {
            Ok(found) => found,
            Err(reason) => {
                log.unread = Some(reason.clone());
                return;
            }
        };
        log.unread = None;
        // The first look finds the file's end.
        let since = found.since.unwrap_or(found.until);
        log.from = log.from.min(found.until);
        log.until = found.until;
        if found.is_lower_bound || found.has_more_errors {
            log.gaps.push_back((since, found.until));
        }
        log.errors.extend(found.errors.iter().map(|it| timed(it, found.until, now)));
        log.forget(now.mono);
    }

    /// Forgets logs that are not followed any more.
    pub(super) fn forget(&mut self, now: Duration) {
        self.logs.retain(|_, log| now.saturating_sub(log.seen_at) < LOST);
    }

    /// Whether a log of the application is followed.
    pub(super) fn follow(&self, application: &str) -> bool {
        self.of(application).next().is_some()
    }

    /// Why a log of the application cannot be read now.
    pub(super) fn unread(&self, application: &str) -> Option<&Reason> {
        self.of(application).find_map(|it| it.unread.as_ref())
    }

    /// The application's error nearest to `at`.
    pub(super) fn near(&self, application: &str, at: Duration) -> Nearness {
        let all = self.of(application).flat_map(|log| &log.errors);
        let distance = |it: &Timed| (it.middle() - at.as_secs_f64()).abs();
        let near = all.filter(|it| it.is_near(at));
        // A traceback says more than the answer that it caused.
        let nearest = near.min_by(|a, b| {
            let answers = a.raised.is_answer().cmp(&b.raised.is_answer());
            answers.then(distance(a).total_cmp(&distance(b)))
        });
        let near = match nearest {
            Some(it) => Near::Error { raised: Box::new(it.raised.clone()), after: it.middle() - at.as_secs_f64() },
            None if self.follow(application) && self.of(application).all(|log| log.knows(at)) => Near::Nothing,
            None => Near::Perhaps,
        };
        Nearness { near, chance: self.chance(application, at) }
    }

    /// The share of the time around `at` whose moments have an error near them.
    fn chance(&self, application: &str, at: Duration) -> f64 {
        let logs = || self.of(application);
        let until = logs().map(|log| log.until).max().unwrap_or_default().min(at + AFTER);
        let from = logs().map(|log| log.from).min().unwrap_or_default().max(until.saturating_sub(LATELY));
        let mut spans: Vec<_> = logs().flat_map(|log| &log.errors).map(Timed::reach).collect();
        // Where some are not known, it is as if each moment had one.
        spans.extend(logs().flat_map(|log| &log.gaps).copied());
        spans.sort_unstable();
        let (mut covered, mut reached) = (Duration::ZERO, from);
        for (begin, end) in spans {
            let (begin, end) = (begin.max(reached), end.min(until));
            covered += end.saturating_sub(begin);
            reached = reached.max(end);
        }
        match until.saturating_sub(from) {
            Duration::ZERO => 1.0,
            whole => covered.as_secs_f64() / whole.as_secs_f64(),
        }
    }

    fn of(&self, application: &str) -> impl Iterator<Item = &Log> {
        self.logs.values().filter(move |it| it.application == application)
    }
}

impl Log {
    fn forget(&mut self, now: Duration) {
        self.from = self.from.max(now.saturating_sub(KEPT));
        while self.errors.len() > MAX_KEPT || self.errors.front().is_some_and(|it| it.until < self.from) {
            // What came before it is not known any more either.
            self.from = self.errors.pop_front().map_or(self.from, |it| self.from.max(it.until));
        }
        while self.gaps.len() > MAX_KEPT || self.gaps.front().is_some_and(|it| it.1 < self.from) {
            self.gaps.pop_front();
        }
    }

    /// Whether every error that may have come near `at` is known, and none of them may have.
    fn knows(&self, at: Duration) -> bool {
        let (begin, end) = (at.saturating_sub(NEAR), at + NEAR);
        let touches = |from: Duration, until: Duration| from <= end && until >= begin;
        self.from <= begin
            && self.until >= end
            && !self.gaps.iter().any(|it| touches(it.0, it.1))
            && !self.errors.iter().any(|it| touches(it.from, it.until))
    }
}

impl Timed {
    /// The moments that it certainly is near to; none where its time is too uncertain.
    fn reach(&self) -> (Duration, Duration) {
        (self.until.saturating_sub(NEAR + SLACK), self.from + NEAR + SLACK)
    }

    fn is_near(&self, at: Duration) -> bool {
        let (begin, end) = self.reach();
        begin <= at && at <= end
    }

    fn middle(&self) -> f64 {
        (self.from.as_secs_f64() + self.until.as_secs_f64()) / 2.0
    }
}

/// When an error came: between two looks at its log, or when the line says, if that may be.
fn timed(it: &Occurrence, until: Duration, now: Moment) -> Timed {
    let read = (it.since.min(until), until);
    let (from, until) = it.written.and_then(|written| own_time(written, read, now)).unwrap_or(read);
    Timed { from, until, raised: it.raised.clone() }
}

/// The line's own time, on the agent's clock. It is believed when it lies where the line was read, or shortly before.
fn own_time(written: Written, read: (Duration, Duration), now: Moment) -> Option<(Duration, Duration)> {
    let mut age = now.wall.duration_since(written.at);
    if !written.is_zoned {
        // Whatever its zone: all have the same minutes within a quarter of an hour.
        let seconds = age.as_secs() - (age.as_secs() + ZONES / 2).div_euclid(ZONES) * ZONES;
        age = SignedDuration::new(seconds, age.subsec_nanos());
    }
    let at = SignedDuration::try_from(read.1).ok()?.checked_sub(age)?;
    let at = Duration::try_from(at).ok()?;
    let end = at + written.grain;
    let is_trusted = end + BUFFERED >= read.0 && at <= read.1 + SLACK;
    let (from, until) = if end + SLACK >= read.0 { (at.max(read.0), end.min(read.1)) } else { (at, end) };
    is_trusted.then_some((from.min(until), until.max(from)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::log_tail::Found;

    const START: &str = "2026-11-21T02:00:00Z";

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn raised(kind: &str) -> Raised {
        Raised { kind: kind.into(), message: "".into(), place: "".into(), fingerprint: "0123456789abcdef".into() }
    }

    /// Looks once a second from 1 s on; each error stands in the log a moment after it came.
    fn seen(until: u32, errors: &[f64], own: impl Fn(f64) -> Option<Written>) -> Errors {
        let mut seen = Errors::default();
        for second in 1..=until {
            let until = f64::from(second);
            let since = until - 1.0;
            let new = errors.iter().filter(|at| **at > since && **at <= until);
            let found = Found {
                errors: new
                    .map(|at| Occurrence { raised: raised("ValueError"), since: seconds(since), written: own(*at) })
                    .collect(),
                since: (second > 1).then(|| seconds(since)),
                until: seconds(until),
                ..Found::default()
            };
            let look = LogLook {
                target: TargetKey::log("shop", "/log"),
                application: "shop".into(),
                path: "/log".into(),
                found: Ok(found),
            };
            let wall: jiff::Timestamp = START.parse().expect("a time");
            seen.look(&look, Moment { mono: seconds(until), wall: wall + SignedDuration::from_secs_f64(until) });
        }
        seen
    }

    fn near(errors: &Errors, at: f64) -> &'static str {
        match errors.near("shop", seconds(at)).near {
            Near::Error { .. } => "error",
            Near::Perhaps => "perhaps",
            Near::Nothing => "nothing",
        }
    }

    #[test]
    fn an_error_of_a_log_read_each_second_is_near_where_it_is_so_whenever_it_came() {
        let errors = seen(60, &[30.5], |_| None);
        let found = [25.0, 28.5, 29.5, 30.0, 30.5, 31.0, 31.5, 32.5].map(|at| near(&errors, at));
        assert_eq!(found, ["nothing", "nothing", "perhaps", "error", "error", "error", "perhaps", "nothing"]);
        assert_eq!(near(&errors, 0.5), "perhaps", "before the log was followed");
        assert_eq!(near(&errors, 59.5), "perhaps", "its second is not over");
        assert!(!errors.follow("other"));
        assert_eq!(errors.near("other", seconds(30.5)).near, Near::Perhaps);
    }

    #[test]
    fn the_lines_own_time_is_believed_in_any_zone_where_it_fits() {
        let at = |at: f64, hours: i64, is_zoned: bool| {
            let start: jiff::Timestamp = START.parse().expect("a time");
            let moved = SignedDuration::from_secs_f64(at) + SignedDuration::from_hours(hours);
            Some(Written { at: start + moved, grain: Duration::from_millis(1), is_zoned })
        };
        for errors in [
            seen(60, &[30.5], |it| at(it, 0, true)),
            seen(60, &[30.5], |it| at(it, 5, false)),
            seen(60, &[30.5], |it| at(it, -8, false)),
        ] {
            let found = [29.4, 29.6, 30.5, 31.4, 31.6].map(|it| near(&errors, it));
            assert_eq!(found, ["nothing", "error", "error", "error", "nothing"]);
        }
        // Written to a buffer, and to the file twenty seconds later.
        let late = seen(60, &[50.5], |it| at(it - 20.0, 0, true));
        assert_eq!(near(&late, 30.5), "error");
        // Of another hour, though it names its zone; or of the future.
        for errors in [seen(60, &[30.5], |it| at(it, 1, true)), seen(60, &[30.5], |it| at(it + 20.0, 0, true))] {
            assert_eq!([29.5, 30.5].map(|it| near(&errors, it)), ["perhaps", "error"], "the time of reading counts");
        }
    }

    #[test]
    fn the_chance_is_the_share_of_time_that_has_an_error_near() {
        let chance = |errors: &[f64], at: f64| seen(400, errors, |_| None).near("shop", seconds(at)).chance;
        assert_eq!(chance(&[], 330.0), 0.0);
        let one = chance(&[330.5], 330.5);
        assert!((0.003..0.005).contains(&one), "{one}");
        let every_third: Vec<f64> = (0..130).map(|it| f64::from(it) * 3.0 + 0.5).collect();
        let some = chance(&every_third, 330.0);
        assert!((0.3..0.5).contains(&some), "{some}");
        let all: Vec<f64> = (0..400).map(|it| f64::from(it) + 0.5).collect();
        assert!(chance(&all, 330.0) > 0.99);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut errors = seen(10, &[], |_| None);
        let log = errors.logs.values_mut().next().expect("a log");
        for index in 0..5_000 {
            let at = seconds(f64::from(index) / 10.0);
            log.errors.push_back(Timed { from: at, until: at, raised: raised("ValueError") });
        }
        log.until = seconds(500.0);
        log.forget(seconds(500.0));
        assert_eq!(log.errors.len(), MAX_KEPT);
        assert_eq!(near(&errors, 100.0), "perhaps", "what was there is forgotten");
    }
}
