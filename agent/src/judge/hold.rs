//! When a look counts: how long a bound must be crossed before it fires, and how a fault eases, clears or is lost.
//!
//! The state machine of one check on one target. It knows no numbers, only [`Sight`]s and the monotonic clock:
//!
//! - a bound counts after its hold: looks in a row, some of the last looks, or a time. Time in which nothing was seen
//!   is not counted: it is no evidence;
//! - each severity has a hold of its own, so a fault that worsens is held again;
//! - only known values clear, three in a row beyond the clearing bound;
//! - what cannot be seen clears nothing: a firing fault becomes *lost* after three such looks, and *back* once seen;
//! - "not yet" changes nothing at all.

use std::fmt;
use std::time::Duration;

use tickbird_shared::Severity;

use super::threshold::Sight;
use super::words;

/// How long a bound must be crossed before it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// So many looks in a row.
    Looks(u32),
    /// `over` of the last `looks` looks, this one among them; at most 32.
    Of {
        /// Looks over the bound.
        over: u32,
        /// Looks that are remembered.
        looks: u32,
    },
    /// At every look for so long; zero tells at once.
    For(Duration),
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Looks(looks) => f.pad(&words::counted(*looks as usize, "look")),
            Self::Of { over, looks } => f.pad(&format!("{over} of {looks} looks")),
            Self::For(time) => f.pad(&words::duration(*time)),
        }
    }
}

/// The holds of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holds {
    /// Before a warning.
    pub warning: Hold,
    /// Before it is critical.
    pub critical: Hold,
    /// Looks in a row before it clears, eases, or counts as blind.
    pub clearing: u32,
}

impl Holds {
    /// The same hold for both severities, and three looks to clear.
    pub const fn both(hold: Hold) -> Self {
        Self { warning: hold, critical: hold, clearing: 3 }
    }

    /// Every look counts at once.
    pub const NONE: Self = Self { warning: Hold::Looks(1), critical: Hold::Looks(1), clearing: 1 };

    pub(super) const fn of(&self, severity: Severity) -> Hold {
        match severity {
            Severity::Critical => self.critical,
            _ => self.warning,
        }
    }
}

/// What a look changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing worth telling.
    None,
    /// It fires now.
    Began(Severity),
    /// It fires with a higher severity.
    Worsened(Severity),
    /// It fires with a lower severity.
    Eased(Severity),
    /// It no longer fires; with the highest severity it had.
    Cleared(Severity),
    /// It fires and can no longer be seen.
    Lost,
    /// It fires and can be seen again.
    Back,
}

/// Looks over one bound so far.
#[derive(Debug, Clone, Copy, Default)]
struct Streak {
    looks: u32,
    /// One bit for each look, the last one lowest.
    window: u32,
    held: Duration,
    /// The look before, if it was over too and nothing was unseen between.
    last: Option<Duration>,
}

impl Streak {
    fn over(&mut self, now: Duration) {
        self.looks = self.looks.saturating_add(1);
        self.window = self.window << 1 | 1;
        if let Some(last) = self.last {
            self.held += now.saturating_sub(last);
        }
        self.last = Some(now);
    }

    fn broken(&mut self) {
        *self = Self { window: self.window << 1, ..Self::default() };
    }

    fn meets(&self, hold: Hold) -> bool {
        match hold {
            Hold::Looks(looks) => self.looks >= looks.max(1),
            Hold::Of { over, looks } => {
                let remembered = u32::MAX >> (32 - looks.clamp(1, 32));
                self.looks > 0 && (self.window & remembered).count_ones() >= over.max(1)
            }
            Hold::For(time) => self.looks > 0 && self.held >= time,
        }
    }
}

/// State of one check on one target.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Level {
    firing: Option<Severity>,
    highest: Option<Severity>,
    streaks: Each<Streak>,
    /// Looks in a row beyond the clearing bound of each severity.
    back: Each<u32>,
    /// Looks in a row that saw nothing certain.
    unseen: u32,
    is_blind: bool,
    is_lost: bool,
}

/// One thing for each severity.
#[derive(Debug, Clone, Copy, Default)]
struct Each<T>([T; 3]);

const SEVERITIES: [Severity; 3] = [Severity::Info, Severity::Warning, Severity::Critical];

impl<T> Each<T> {
    const fn of(&self, severity: Severity) -> &T {
        &self.0[severity as usize]
    }

    fn all(&mut self) -> impl Iterator<Item = (Severity, &mut T)> {
        SEVERITIES.into_iter().zip(&mut self.0)
    }
}

impl Level {
    /// The severity that fires.
    pub(super) const fn firing(&self) -> Option<Severity> {
        self.firing
    }

    /// Whether it has not been seen for as many looks as count.
    pub(super) const fn is_blind(&self) -> bool {
        self.is_blind
    }

    /// Whether it fires on evidence that can no longer be seen.
    pub(super) const fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Whether a bound is crossed whose hold has not passed.
    pub(super) fn is_pending(&self) -> bool {
        self.pending().is_some()
    }

    /// The highest severity that is crossed but not yet fires.
    pub(super) fn pending(&self) -> Option<Severity> {
        let waits = |severity: &Severity| self.streaks.of(*severity).looks > 0 && self.firing < Some(*severity);
        SEVERITIES.into_iter().rev().find(waits)
    }

    /// How long the bound of `severity` has been crossed, in words: `3 looks`, `3 of the last 5 looks`, `62 s`.
    pub(super) fn held(&self, severity: Severity, hold: Hold) -> String {
        let streak = self.streaks.of(severity);
        match hold {
            Hold::Looks(_) => format!("for {}", words::counted(streak.looks as usize, "look")),
            Hold::Of { looks, .. } => {
                let remembered = u32::MAX >> (32 - looks.clamp(1, 32));
                format!("at {} of the last {looks} looks", (streak.window & remembered).count_ones())
            }
            Hold::For(time) if time.is_zero() => "now".to_owned(),
            Hold::For(_) => format!("for {}", words::duration(streak.held)),
        }
    }

    /// Takes one look in.
    pub(super) fn look(&mut self, sight: Sight, holds: &Holds, now: Duration) -> Step {
        match sight {
            Sight::NotYet => return Step::None,
            Sight::Blind => return self.unseen(holds, true),
            Sight::Between { over: None } => {
                self.break_streaks();
                self.is_blind = false;
                return self.unseen(holds, false);
            }
            Sight::Known { .. } | Sight::Between { .. } => (),
        }
        let was_lost = std::mem::take(&mut self.is_lost);
        (self.unseen, self.is_blind) = (0, false);
        let over = sight.over();
        self.count(over, now);
        let reached = self.reached(over, holds);
        if reached > self.firing {
            let began = self.firing.is_none();
            self.firing = reached;
            self.highest = self.highest.max(reached);
            self.not_back();
            // `reached` is more than something, so it is a severity.
            let severity = reached.unwrap_or(Severity::Warning);
            return if began { Step::Began(severity) } else { Step::Worsened(severity) };
        }
        let step = self.come_back(sight, holds);
        if step == Step::None && was_lost { Step::Back } else { step }
    }

    /// It is over for a reason outside of the looks: it ends without having been seen to clear.
    pub(super) fn end(&mut self) -> Option<Severity> {
        let highest = self.highest;
        *self = Self::default();
        highest
    }

    fn count(&mut self, over: Option<Severity>, now: Duration) {
        for (severity, streak) in self.streaks.all() {
            if over >= Some(severity) {
                streak.over(now);
            } else {
                streak.broken();
            }
        }
    }

    fn break_streaks(&mut self) {
        self.streaks.all().for_each(|(_, streak)| streak.broken());
    }

    /// The highest severity whose hold has passed at this look. A check without a bound for recording counts for it
    /// what it counts for a warning, which is the higher.
    fn reached(&self, over: Option<Severity>, holds: &Holds) -> Option<Severity> {
        let over = over?;
        let has_held = |it: &Severity| *it <= over && self.streaks.of(*it).meets(holds.of(*it));
        SEVERITIES.into_iter().rev().find(has_held)
    }

    fn come_back(&mut self, sight: Sight, holds: &Holds) -> Step {
        let (Some(firing), Sight::Known { stays, .. }) = (self.firing, sight) else {
            self.not_back();
            return Step::None;
        };
        for (severity, looks) in self.back.all() {
            *looks = if stays < Some(severity) { *looks + 1 } else { 0 };
        }
        let enough = holds.clearing.max(1);
        let is_back = |severity| *self.back.of(severity) >= enough;
        if is_back(Severity::Info) {
            return Step::Cleared(self.end().unwrap_or(firing));
        }
        let eased = if is_back(Severity::Warning) { Severity::Info } else { Severity::Warning };
        if firing > eased && is_back(firing) {
            self.firing = Some(eased);
            return Step::Eased(eased);
        }
        Step::None
    }

    fn not_back(&mut self) {
        self.back = Each::default();
    }

    /// A look that saw nothing certain.
    fn unseen(&mut self, holds: &Holds, blind: bool) -> Step {
        self.streaks.all().for_each(|(_, streak)| streak.last = None);
        self.not_back();
        self.unseen = self.unseen.saturating_add(1);
        if self.unseen < holds.clearing.max(1) {
            return Step::None;
        }
        if blind && !self.is_blind {
            self.is_blind = true;
            self.break_streaks();
        }
        if self.firing.is_some() && !self.is_lost {
            self.is_lost = true;
            return Step::Lost;
        }
        Step::None
    }
}

#[cfg(test)]
mod tests;
