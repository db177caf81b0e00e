//! In which order a pool hands out its idle connections: the longest idle first (rotating), or the last used (a stack).
//!
//! Between two dumps 30 ms apart a connection that sends something was just handed out. Where it stood among the idle
//! ones, sorted by their last use, tells the order after some fifteen such events.

use std::collections::VecDeque;
use std::time::Duration;

/// Events that are kept.
const WINDOW: usize = 60;
/// Fewer say nothing.
const ENOUGH: usize = 15;
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

/// What was seen of one pool's order.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// Whether each connection handed out stood in the oldest half.
    events: VecDeque<bool>,
    class: Discipline,
    /// Since when the class is what it is.
    since: Duration,
    asked_at: Option<Duration>,
}

impl Order {
    /// Takes one second dump in: `idle` says of each idle connection used lately whether it was picked, the longest
    /// idle first.
    pub(super) fn take(&mut self, idle: &[bool], now: Duration) {
        self.asked_at = Some(now);
        let picked = idle.iter().filter(|it| **it).count();
        if idle.len() < LEAST_IDLE || picked == 0 || picked > idle.len() / 2 {
            return;
        }
        for (index, _) in idle.iter().enumerate().filter(|(_, picked)| **picked) {
            // The middle of an odd number stands in neither half.
            if 2 * index + 1 != idle.len() {
                self.events.push_back(2 * index < idle.len());
            }
        }
        while self.events.len() > WINDOW {
            self.events.pop_front();
        }
        let class = self.classify();
        if class != self.class {
            (self.class, self.since) = (class, now);
        }
    }

    fn classify(&self) -> Discipline {
        if self.events.len() < ENOUGH {
            return Discipline::Unknown;
        }
        let oldest = self.events.iter().filter(|it| **it).count() as f64 / self.events.len() as f64;
        match (oldest, self.class) {
            (ROTATING.., _) | (STILL_ROTATING.., Discipline::Rotating) => Discipline::Rotating,
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

    fn after(picks: &[usize], idle: usize) -> Order {
        let mut order = Order::default();
        for pick in picks {
            let row: Vec<bool> = (0..idle).map(|index| index == *pick).collect();
            order.take(&row, Duration::from_secs(1));
        }
        order
    }

    #[test]
    fn the_half_in_which_picks_stand_tells_the_order() {
        assert_eq!(after(&[0; 15], 6).discipline(), Discipline::Rotating);
        assert_eq!(after(&[5; 15], 6).discipline(), Discipline::Stack);
        let mixed: Vec<usize> = (0..30).map(|index| index % 6).collect();
        assert_eq!(after(&mixed, 6).discipline(), Discipline::Unknown);
    }

    #[test]
    fn a_class_stays_while_its_share_swings_near_the_bound_and_ends_with_the_order() {
        let mut order = after(&[0; 60], 6);
        let take = |order: &mut Order, pick: usize, times: usize| {
            let row: Vec<bool> = (0..6).map(|index| index == pick).collect();
            (0..times).for_each(|_| order.take(&row, Duration::from_secs(1)));
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
        assert_eq!(after(&[0; 14], 6).discipline(), Discipline::Unknown);
        assert_eq!(after(&[0; 60], 2).discipline(), Discipline::Unknown);
        assert_eq!(after(&[1; 60], 3).discipline(), Discipline::Unknown, "the middle one stands in neither half");
        let mut order = Order::default();
        (0..60).for_each(|_| order.take(&[true, true, true, false], Duration::ZERO));
        assert_eq!(order.discipline(), Discipline::Unknown);
    }

    #[test]
    fn a_full_window_is_asked_once_a_minute_until_the_class_has_stood_for_an_hour() {
        let order = after(&[0; 60], 6);
        assert!(!order.wants(Duration::from_secs(30)));
        assert!(order.wants(Duration::from_secs(61)));
        assert!(!order.wants(Duration::from_secs(3601)));
        assert!(after(&[0; 59], 6).wants(Duration::from_secs(3601)));
    }
}
