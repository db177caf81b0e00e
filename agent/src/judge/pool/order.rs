//! In which order a pool hands out its idle connections: the longest idle first (rotating), or the last used (a stack).
//!
//! Between two dumps 30 ms apart a connection that sends something was just handed out. Where it stood among the idle
//! ones, sorted by their last use, tells the order after some twenty such events.
//!
//! Threads that have a connection each look nearly like a queue: who comes back with a beat of his own has mostly
//! waited for longer than others have. But such a one jumps the queue: an older one that was passed over is used soon
//! afterwards, which in a queue only one does that somebody held.

use std::collections::VecDeque;
use std::time::Duration;

/// Events that are kept.
const WINDOW: usize = 60;
/// Fewer say nothing.
const ENOUGH: usize = 20;
/// Fewer idle connections have no halves.
const LEAST_IDLE: usize = 3;
/// Share of events in the oldest half, from which a pool rotates.
const ROTATING: f64 = 0.85;
/// And down to which it is a stack.
const STACK: f64 = 0.25;
/// A class once known stays down to, or up to, these: near its bound a share of sixty events swings by a few. An order
/// of chance is at a half.
const STILL_ROTATING: f64 = 0.7;
const STILL_STACK: f64 = 0.4;
/// One that was passed over and is used within this time stood in no queue.
const JUMPED: Duration = Duration::from_secs(10);
/// So many of those that one passed over are remembered.
const PASSED: usize = 8;
/// A tick of a kernel that has a hundred in a second: of those used so near to one another nobody knows who came first.
const GRAIN: Duration = Duration::from_millis(10);
/// Idle connections that were all used within this time of one another have no order that can be told.
const LEAST_SPREAD: Duration = Duration::from_millis(80);
/// Beyond twenty events so many allow for one jump: a queue shows none or a few, threads a third and more.
const EVENTS_FOR_A_JUMP: usize = 6;
/// A pool once known to rotate may show this share.
const STILL_IN_TURN: f64 = 0.3;
/// Once the window is full it is asked this often.
const PAUSE: Duration = Duration::from_secs(60);
/// And no more once the class has been the same for so long.
const SETTLED: Duration = Duration::from_secs(3600);

/// How a pool hands out its idle connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Discipline {
    /// The longest idle first.
    Rotating,
    /// The last used first.
    Stack,
    /// Neither, or not enough seen.
    #[default]
    Unknown,
}

impl Discipline {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Rotating => "rotating",
            Self::Stack => "stack",
            Self::Unknown => "unknown",
        }
    }
}

/// An idle connection, used lately, at the first of two dumps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) cookie: u64,
    pub(super) used_at: Duration,
    /// It sent something before the second dump.
    pub(super) picked: bool,
    /// It is quiet for longer than it ever is between two uses: somebody may hold it.
    pub(super) rests: bool,
}

/// A connection was handed out.
#[derive(Debug)]
struct Event {
    at: Duration,
    /// Whether it stood in the oldest half; the middle of an odd number stands in neither.
    oldest: Option<bool>,
    /// The idle ones that had waited for longer.
    passed: Vec<u64>,
    /// One of these was used soon afterwards.
    jumped: bool,
}

/// What was seen of one pool's order.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// Those of which it is not known yet whether they jumped the queue. Were the others counted first, doubts would come late, and chance
    /// would pass for an order.
    waiting: VecDeque<Event>,
    /// Of the others: whether each stood in the oldest half, and whether it jumped.
    events: VecDeque<(Option<bool>, bool)>,
    class: Discipline,
    /// Since when the class is what it is.
    since: Duration,
    asked_at: Option<Duration>,
}

impl Order {
    /// Takes one second dump in: the idle connections used lately, the longest idle first.
    pub(super) fn take(&mut self, idle: &[Asked], now: Duration) {
        self.asked_at = Some(now);
        while let Some(it) = self.waiting.pop_front_if(|it| now.saturating_sub(it.at) >= JUMPED) {
            self.events.push_back((it.oldest, it.jumped));
        }
        let picked = idle.iter().filter(|it| it.picked).count();
        let oldest = idle.iter().find(|it| !it.rests);
        let spread = idle.last().zip(oldest).map(|(last, oldest)| last.used_at.saturating_sub(oldest.used_at));
        if idle.len() >= LEAST_IDLE && picked <= idle.len() / 2 && spread >= Some(LEAST_SPREAD) {
            for (index, it) in idle.iter().enumerate().filter(|(_, it)| it.picked) {
                let is_passed = |other: &&Asked| !other.picked && !other.rests && other.used_at + GRAIN < it.used_at;
                self.waiting.push_back(Event {
                    at: now,
                    oldest: (2 * index + 1 != idle.len()).then_some(2 * index < idle.len()),
                    passed: idle[..index].iter().filter(is_passed).map(|it| it.cookie).take(PASSED).collect(),
                    jumped: false,
                });
            }
        }
        self.events.drain(..self.events.len().saturating_sub(WINDOW));
        self.waiting.truncate(WINDOW);
        let class = self.classify();
        if class != self.class {
            (self.class, self.since) = (class, now);
        }
    }

    /// A connection is seen to have been used at `at`.
    pub(super) fn used(&mut self, cookie: u64, at: Duration) {
        for event in self.waiting.iter_mut().rev().take_while(|it| it.at + JUMPED >= at) {
            event.jumped |= event.at < at && event.passed.contains(&cookie);
        }
    }

    fn classify(&self) -> Discipline {
        let halves = self.events.iter().filter(|it| it.0.is_some()).count();
        let oldest = self.events.iter().filter(|it| it.0 == Some(true)).count();
        let (jumps, events) = (self.events.iter().filter(|it| it.1).count(), self.events.len());
        if halves < ENOUGH {
            return Discipline::Unknown;
        }
        let share = oldest as f64 / halves as f64;
        let is_in_turn = jumps <= (events - ENOUGH) / EVENTS_FOR_A_JUMP;
        let is_still_in_turn = jumps as f64 <= STILL_IN_TURN * events as f64;
        match (share, self.class) {
            (ROTATING.., _) if is_in_turn => Discipline::Rotating,
            (STILL_ROTATING.., Discipline::Rotating) if is_still_in_turn => Discipline::Rotating,
            (..=STACK, _) | (..=STILL_STACK, Discipline::Stack) => Discipline::Stack,
            _ => Discipline::Unknown,
        }
    }

    pub(super) const fn discipline(&self) -> Discipline {
        self.class
    }

    /// Whether a second dump at the next look would say something new.
    pub(super) fn wants(&self, now: Duration) -> bool {
        if self.events.len() < WINDOW {
            return true;
        }
        let is_settled = self.class != Discipline::Unknown && now.saturating_sub(self.since) >= SETTLED;
        !is_settled && self.asked_at.is_none_or(|at| now.saturating_sub(at) >= PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Idle connections, the longest idle first; those passed over are not used again soon.
    fn row(idle: usize, picked: impl Fn(usize) -> bool) -> Vec<Asked> {
        let used_at = |index: usize| Duration::from_millis(100 * index as u64);
        let asked =
            |index| Asked { cookie: index as u64, used_at: used_at(index), picked: picked(index), rests: false };
        (0..idle).map(asked).collect()
    }

    fn after(picks: &[usize], idle: usize) -> Order {
        let mut order = Order::default();
        for pick in picks {
            order.take(&row(idle, |index| index == *pick), Duration::from_secs(1));
        }
        // Nothing is picked, and what was passed over has had its time.
        order.take(&row(idle, |_| false), Duration::from_secs(1) + JUMPED);
        order
    }

    #[test]
    fn the_half_in_which_picks_stand_tells_the_order() {
        assert_eq!(after(&[0; 20], 6).discipline(), Discipline::Rotating);
        assert_eq!(after(&[5; 20], 6).discipline(), Discipline::Stack);
        let mixed: Vec<usize> = (0..30).map(|index| index % 6).collect();
        assert_eq!(after(&mixed, 6).discipline(), Discipline::Unknown);
    }

    #[test]
    fn a_class_stays_while_its_share_swings_near_the_bound_and_ends_with_the_order() {
        let mut order = after(&[0; 60], 6);
        let take = |order: &mut Order, pick: usize, times: usize| {
            let row = row(6, |index| index == pick);
            (0..times).for_each(|_| order.take(&row, Duration::from_secs(1)));
            order.take(&[], Duration::from_secs(1) + JUMPED);
            order.discipline()
        };
        assert_eq!(take(&mut order, 5, 16), Discipline::Rotating, "44 of 60");
        assert_eq!(take(&mut order, 5, 4), Discipline::Unknown, "40 of 60");
        assert_eq!(take(&mut order, 0, 10), Discipline::Unknown, "50 of 60 make no new class");
        let mixed: Vec<usize> = (0..60).map(|index| if index % 4 == 0 { 5 } else { 0 }).collect();
        assert_eq!(after(&mixed, 6).discipline(), Discipline::Unknown, "45 of 60 from the first");
    }

    #[test]
    fn too_few_events_or_idle_connections_or_too_many_picks_say_nothing() {
        assert_eq!(after(&[0; 19], 6).discipline(), Discipline::Unknown);
        assert_eq!(after(&[0; 60], 2).discipline(), Discipline::Unknown);
        assert_eq!(after(&[1; 60], 3).discipline(), Discipline::Unknown, "the middle one stands in neither half");
        let mut order = Order::default();
        (0..60).for_each(|_| order.take(&row(4, |index| index < 3), Duration::ZERO));
        assert_eq!(order.discipline(), Discipline::Unknown);
    }

    /// So many events, each picking the third oldest of eight, and so many of them jumped one that was used afterwards.
    fn jumped(times: usize, jumps: usize) -> Order {
        let mut order = Order::default();
        for event in 0..times as u64 {
            let at = Duration::from_secs(20 * event);
            order.take(&row(8, |index| index == 2), at);
            let soon = if event < jumps as u64 { Duration::from_secs(1) } else { JUMPED + Duration::from_secs(1) };
            order.used(0, at + soon);
        }
        order.take(&[], Duration::from_secs(20 * times as u64));
        order
    }

    #[test]
    fn who_passes_over_others_that_come_soon_afterwards_stands_in_no_queue() {
        assert_eq!(jumped(20, 0).discipline(), Discipline::Rotating, "what was passed over is held");
        assert_eq!(jumped(20, 1).discipline(), Discipline::Unknown);
        assert_eq!(jumped(60, 6).discipline(), Discipline::Rotating, "a queue's few");
        assert_eq!(jumped(60, 20).discipline(), Discipline::Unknown, "as threads with a connection each do");
    }

    #[test]
    fn a_jump_is_known_once_its_time_is_over_and_one_that_rests_or_was_used_at_the_same_moment_is_none() {
        let mut order = Order::default();
        (0..60).for_each(|_| order.take(&row(8, |index| index == 2), Duration::ZERO));
        assert_eq!(order.discipline(), Discipline::Unknown, "what was passed over may come yet");
        let take = |change: fn(&mut Asked)| {
            let mut order = Order::default();
            let mut idle = row(8, |index| index == 2);
            idle[..2].iter_mut().for_each(change);
            (0..60).for_each(|_| order.take(&idle, Duration::from_secs(1)));
            order.used(0, Duration::from_secs(2));
            order.take(&[], Duration::from_secs(1) + JUMPED);
            order.discipline()
        };
        assert_eq!(take(|_| ()), Discipline::Unknown);
        assert_eq!(take(|it| it.rests = true), Discipline::Rotating);
        assert_eq!(take(|it| it.used_at = Duration::from_millis(190)), Discipline::Rotating);
    }

    #[test]
    fn a_full_window_is_asked_once_a_minute_until_the_class_has_stood_for_an_hour() {
        let order = after(&[0; 60], 6);
        assert!(!order.wants(Duration::from_secs(40)));
        assert!(order.wants(Duration::from_secs(72)));
        assert!(!order.wants(Duration::from_secs(3612)));
        assert!(after(&[0; 59], 6).wants(Duration::from_secs(3611)));
    }
}
