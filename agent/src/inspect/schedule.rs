//! When each inspector looks: at its own interval, from a jittered start, never overlapping itself.
//!
//! A look that takes longer than its interval makes the next one late; what was missed is counted and told, never
//! caught up with: two looks in a hurry would say less than one on time.

use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::inspect::{Inspector, Look, Reading};

/// The agent's monotonic clock: `Duration` since the agent started. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Since the start.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

/// What the scheduler tells after each turn of an inspector.
#[derive(Debug)]
pub struct Looked {
    /// Which inspector: [`Inspector::name`].
    pub inspector: String,
    /// When the look began.
    pub at: Duration,
    /// How long it took.
    pub took: Duration,
    /// Turns left out since the one before, because a look was still running.
    pub skipped: u32,
    /// What was seen.
    pub reading: Result<Reading, Unseen>,
}

/// Why a look gave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unseen {
    /// It did not end in time and was given up.
    TimedOut,
    /// It panicked; a fault of this program, whose next look may be better.
    Panicked,
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TimedOut => "a look did not end in time",
            Self::Panicked => "a look ended in a panic",
        })
    }
}

/// A look to its end; a panic in it is the end of this look and of no other.
async fn caught(mut look: Look<'_>) -> Result<Reading, Unseen> {
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| look.as_mut().poll(context))) {
        Ok(poll) => poll.map(Ok),
        Err(_) => Poll::Ready(Err(Unseen::Panicked)),
    })
    .await
}

/// Runs `inspector` until `out` closes. `pace` is the interval and may change while it runs: a server is asked more
/// often while a pool of it is suspect. `place` is where in a second its looks begin. When `hurry` is notified the next
/// look comes at once, and the following ones an interval apart from it, at its place again.
pub async fn run(
    mut inspector: Box<dyn Inspector>,
    mut pace: watch::Receiver<Duration>,
    hurry: Arc<Notify>,
    limit: Duration,
    place: Place,
    clock: Clock,
    out: mpsc::Sender<Looked>,
) {
    let mut every = *pace.borrow_and_update();
    let mut turn = place.first(every);
    let mut skipped = 0;
    loop {
        tokio::select! {
            () = sleep_until(turn) => {
                let (at, began) = (clock.now(), Instant::now());
                let reading = timeout(limit, caught(inspector.inspect(at))).await.unwrap_or(Err(Unseen::TimedOut));
                let looked = Looked { inspector: inspector.name(), at, took: began.elapsed(), skipped, reading };
                if out.send(looked).await.is_err() {
                    return;
                }
                skipped = 0;
                turn = place.again(turn + every, every);
                while turn < Instant::now() {
                    turn += every;
                    skipped += 1;
                }
            }
            changed = pace.changed() => {
                if changed.is_err() {
                    return;
                }
                let wanted = *pace.borrow_and_update();
                // The next turn moves to where the new pace, counted from the last look, puts it.
                turn = (turn + wanted).checked_sub(every).unwrap_or(turn).max(Instant::now());
                every = wanted;
            }
            () = hurry.notified() => turn = Instant::now(),
            () = out.closed() => return,
        }
    }
}

/// Looks begin at multiples of this, counted from when the inspectors began: those that fall together cost one wake of
/// the core, and find what they need in its caches.
const GRID: Duration = Duration::from_millis(125);

/// The points of the grid come again after this: most intervals are whole multiples of it.
const ROUND: Duration = Duration::from_secs(1);

/// Where in a second the looks of an inspector begin.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    begun: Instant,
    /// 0.0 to 1.0, or the first point of the grid, which is nobody else's.
    jitter: Option<f64>,
}

impl Place {
    /// At `begun`, and where no other inspector begins: connections that checks of this agent have open while they ask
    /// are then rarely among what a look at the host finds (a dump of sockets is spared when none was born).
    pub fn alone(begun: Instant) -> Self {
        Self { begun, jitter: None }
    }

    /// At any other point of the grid: `jitter` (0.0 to 1.0) chooses, so that a hundred checks of one host do not fire
    /// in step.
    pub fn among(begun: Instant, jitter: f64) -> Self {
        Self { begun, jitter: Some(jitter.clamp(0.0, 1.0)) }
    }

    /// When the first look begins: within the first interval, and within a second.
    fn first(self, every: Duration) -> Instant {
        let others = (every.min(ROUND).as_millis() / GRID.as_millis()).saturating_sub(1);
        match self.jitter {
            Some(jitter) if others > 0 => {
                let others = u32::try_from(others).unwrap_or(u32::MAX);
                // The least of the points that `jitter` has not passed; 1.0 is the last one.
                let point = (1..=others).find(|it| jitter * f64::from(others) < f64::from(*it)).unwrap_or(others);
                self.begun + GRID * point
            }
            _ => self.begun,
        }
    }

    /// `turn`, or the first moment after it that is at this place, if it was left for a look at once. Looks whose
    /// interval is no whole number of seconds have no place of their own for longer than a turn.
    fn again(self, turn: Instant, every: Duration) -> Instant {
        let round = ROUND.as_nanos();
        if !every.as_nanos().is_multiple_of(round) {
            return turn;
        }
        let past = turn.saturating_duration_since(self.first(every)).as_nanos() % round;
        let left = (round - past) % round;
        turn + Duration::from_nanos(u64::try_from(left).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::{About, HostLook, Look, Rows};

    static ABOUT: About = About { name: "slow", source: "", needs: "", cost: "", measures: &[] };

    struct Slow(Vec<Duration>);

    const PANICS: Duration = Duration::from_millis(13);

    impl Inspector for Slow {
        fn about(&self) -> &'static About {
            &ABOUT
        }

        fn name(&self) -> String {
            "slow".into()
        }

        fn inspect<'a>(&'a mut self, _now: Duration) -> Look<'a> {
            let takes = if self.0.is_empty() { Duration::ZERO } else { self.0.remove(0) };
            Box::pin(async move {
                tokio::time::sleep(takes).await;
                assert!(takes != PANICS, "as it was told to");
                Reading { rows: Rows::Host(HostLook::default()), observations: Vec::new() }
            })
        }
    }

    async fn looks(takes: &[u64], count: usize) -> Vec<(u64, u32, Option<Unseen>)> {
        let (pace, receiver) = watch::channel(Duration::from_secs(1));
        let (out, mut looked) = mpsc::channel(64);
        let takes = takes.iter().map(|ms| Duration::from_millis(*ms)).collect();
        let limit = Duration::from_millis(3_500);
        tokio::spawn(run(
            Box::new(Slow(takes)),
            receiver,
            Arc::default(),
            limit,
            Place::alone(Instant::now()),
            Clock::start(),
            out,
        ));
        let mut seen = Vec::new();
        while seen.len() < count {
            let look = looked.recv().await.expect("the schedule runs");
            seen.push((look.at.as_millis() as u64, look.skipped, look.reading.err()));
        }
        drop(pace);
        seen
    }

    #[tokio::test(start_paused = true)]
    async fn looks_on_time_when_looks_are_quick() {
        assert_eq!(looks(&[], 3).await, [(0, 0, None), (1_000, 0, None), (2_000, 0, None)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_look_skips_turns_counts_them_and_never_overlaps() {
        assert_eq!(looks(&[2_500], 3).await, [(0, 0, None), (3_000, 2, None), (4_000, 0, None)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_over_its_time_is_given_up_and_told() {
        assert_eq!(looks(&[60_000], 2).await, [(0, 0, Some(Unseen::TimedOut)), (4_000, 3, None)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_panics_is_told_and_the_next_one_comes() {
        assert_eq!(looks(&[13, 0], 2).await, [(0, 0, Some(Unseen::Panicked)), (1_000, 0, None)]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_inspector_has_a_point_of_the_second_for_itself_and_the_others_fall_together_on_the_rest() {
        let begun = Instant::now();
        let first = |place: Place, every: u64| (place.first(Duration::from_millis(every)) - begun).as_millis();
        assert_eq!([1_000, 10_000, 100].map(|every| first(Place::alone(begun), every)), [0; 3]);
        let others = |every| [0.0, 0.142, 0.143, 0.5, 0.99, 1.0].map(|it| first(Place::among(begun, it), every));
        assert_eq!(others(1_000), [125, 125, 250, 500, 875, 875]);
        assert_eq!(others(60_000), others(1_000), "within a second, whatever the interval");
        assert_eq!(others(500), [125, 125, 125, 250, 375, 375], "never where a whole second begins");
        assert_eq!(others(100), [0; 6], "there is no room for a place");
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_at_once_is_followed_by_one_at_the_place_it_left() {
        let (_pace, receiver) = watch::channel(Duration::from_secs(2));
        let (out, mut looked) = mpsc::channel(64);
        let hurry = Arc::<Notify>::default();
        let (clock, place) = (Clock::start(), Place::among(Instant::now(), 0.0));
        tokio::spawn(run(
            Box::new(Slow(Vec::new())),
            receiver,
            hurry.clone(),
            Duration::from_secs(4),
            place,
            clock,
            out,
        ));
        let mut at = Vec::new();
        for _ in 0..2 {
            at.push(looked.recv().await.expect("on time").at.as_millis());
        }
        tokio::time::advance(Duration::from_millis(300)).await;
        hurry.notify_one();
        for _ in 0..3 {
            at.push(looked.recv().await.expect("at once, and then on time").at.as_millis());
        }
        assert_eq!(at, [125, 2_125, 2_425, 5_125, 7_125]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_pace_can_quicken() {
        let (pace, receiver) = watch::channel(Duration::from_secs(5));
        let (out, mut looked) = mpsc::channel(64);
        tokio::spawn(run(
            Box::new(Slow(Vec::new())),
            receiver,
            Arc::default(),
            Duration::from_secs(4),
            Place::alone(Instant::now()),
            Clock::start(),
            out,
        ));
        assert_eq!(looked.recv().await.expect("first").at, Duration::ZERO);
        pace.send(Duration::from_secs(2)).expect("the schedule listens");
        let at: Vec<_> = [looked.recv().await, looked.recv().await].map(|it| it.expect("more").at.as_secs()).into();
        assert_eq!(at, [2, 4]);
    }
}
