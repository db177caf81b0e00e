//! One value against its bounds: which bound it has certainly crossed, and which it has certainly come back from.

use tickbird_shared::Severity;

use crate::inspect::Value;

/// A fault clears once the value is this far inside its bound.
pub const CLEARING_RATIO: f64 = 0.9;

/// On which side of a bound the fault lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The bound or more is a fault.
    Above,
    /// The bound or less is a fault.
    Below,
    /// The value is 1 while it is so and 0 while it is not; there is no distance to clear by.
    Event,
}

/// The bounds of a check, in the unit of its value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Which side is the fault's.
    pub direction: Direction,
    /// From here on it is worth recording; nobody is told.
    pub info: Option<f64>,
    /// From here on it is a warning.
    pub warning: Option<f64>,
    /// From here on it is critical.
    pub critical: Option<f64>,
}

/// What a look saw of one check on one target.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seen {
    /// The number that stands against the bounds.
    pub(super) value: Value,
    /// `false` while a condition beside the number is missing: nothing begins then, and nothing clears by it.
    pub(super) qualifies: bool,
    /// A second sign says the same; without it a check of medium or high false-alarm risk stays a warning.
    pub(super) corroborated: bool,
    /// A fault that is no number, such as a refusal.
    pub(super) forced: Option<Severity>,
    /// How to say the value, where the number alone does not: `refused: too many clients`.
    pub(super) words: Option<String>,
}

impl Seen {
    /// A bare value.
    pub(super) const fn value(value: Value) -> Self {
        Self { value, qualifies: true, corroborated: false, forced: None, words: None }
    }

    /// An exactly known value.
    pub(super) const fn known(value: f64) -> Self {
        Self::value(Value::Known(value))
    }
}

/// A look in the terms that the hold counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// Exactly known. `over`: the highest severity whose bound is crossed. `stays`: the highest one that the value has
    /// not come back from, never less than `over`.
    Known { over: Option<Severity>, stays: Option<Severity> },
    /// A range. `over`: what its certain end has crossed, at most a warning.
    Between { over: Option<Severity> },
    /// Not enough seen yet.
    NotYet,
    /// Cannot be seen.
    Blind,
}

impl Sight {
    /// The severity that is certain at this look.
    pub(super) const fn over(self) -> Option<Severity> {
        match self {
            Self::Known { over, .. } | Self::Between { over } => over,
            Self::NotYet | Self::Blind => None,
        }
    }
}

impl Bounds {
    /// Bounds above which a value is a fault.
    pub const fn above(warning: Option<f64>, critical: Option<f64>) -> Self {
        Self { direction: Direction::Above, info: None, warning, critical }
    }

    /// Bounds under which a value is a fault.
    pub const fn below(warning: Option<f64>, critical: Option<f64>) -> Self {
        Self { direction: Direction::Below, info: None, warning, critical }
    }

    /// An event, which has one of these severities while it is so.
    pub const fn event(warning: bool, critical: bool) -> Self {
        const IS_SO: f64 = 1.0;
        let warning = if warning { Some(IS_SO) } else { None };
        Self { direction: Direction::Event, info: None, warning, critical: if critical { Some(IS_SO) } else { None } }
    }

    /// The same bounds, and one from which a value is worth recording.
    #[must_use]
    pub const fn recorded_from(mut self, info: f64) -> Self {
        self.info = Some(info);
        self
    }

    /// The bound of a severity.
    pub const fn of(&self, severity: Severity) -> Option<f64> {
        match severity {
            Severity::Critical => self.critical,
            Severity::Warning => self.warning,
            Severity::Info => self.info,
        }
    }

    /// Where a fault of this bound ends.
    pub fn clearing(&self, bound: f64) -> f64 {
        match self.direction {
            Direction::Above => bound * CLEARING_RATIO,
            Direction::Below => bound * (2.0 - CLEARING_RATIO),
            Direction::Event => bound,
        }
    }

    /// What a look at this value says. `most` is the highest severity that this check may reach at this look.
    pub(super) fn sight(&self, seen: &Seen, most: Severity) -> Sight {
        let (value, is_range) = match &seen.value {
            Value::Unknown(reason) if reason.is_blind() => return Sight::Blind,
            Value::Unknown(_) => return Sight::NotYet,
            Value::Known(value) => (*value, false),
            Value::Between(low, high) => (if self.direction == Direction::Below { *high } else { *low }, true),
        };
        if value.is_nan() {
            return Sight::NotYet;
        }
        let most = if is_range { most.min(Severity::Warning) } else { most };
        let crossed = seen.forced.or_else(|| self.highest(|bound| self.is_crossed(value, bound)));
        let over = crossed.filter(|_| seen.qualifies).map(|it| it.min(most));
        if is_range {
            return Sight::Between { over };
        }
        Sight::Known { over, stays: seen.forced.or_else(|| self.highest(|bound| !self.is_cleared(value, bound))) }
    }

    fn highest(&self, holds: impl Fn(f64) -> bool) -> Option<Severity> {
        [Severity::Critical, Severity::Warning, Severity::Info].into_iter().find(|it| self.of(*it).is_some_and(&holds))
    }

    fn is_crossed(&self, value: f64, bound: f64) -> bool {
        if self.direction == Direction::Below { value <= bound } else { value >= bound }
    }

    /// Whether a value lies beyond the clearing bound, on the healthy side.
    pub(super) fn is_cleared(&self, value: f64, bound: f64) -> bool {
        let clearing = self.clearing(bound);
        if self.direction == Direction::Below { value > clearing } else { value < clearing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::Reason;
    use Severity::{Critical, Warning};

    const AGE: Bounds = Bounds::above(Some(30.0), Some(300.0));
    const LEFT: Bounds = Bounds::below(Some(14.0), Some(3.0));

    fn sight(bounds: Bounds, value: Value) -> Sight {
        bounds.sight(&Seen::value(value), Critical)
    }

    fn known(over: Option<Severity>, stays: Option<Severity>) -> Sight {
        Sight::Known { over, stays }
    }

    #[test]
    fn a_known_value_crosses_at_its_bound_and_clears_at_nine_tenths_of_it() {
        for (value, over, stays) in [
            (26.9, None, None),
            (27.0, None, Some(Warning)),
            (30.0, Some(Warning), Some(Warning)),
            (270.0, Some(Warning), Some(Critical)),
            (300.0, Some(Critical), Some(Critical)),
        ] {
            assert_eq!(sight(AGE, Value::Known(value)), known(over, stays), "{value}");
        }
    }

    #[test]
    fn below_is_the_same_on_the_other_side() {
        for (value, over, stays) in [
            (15.5, None, None),
            (15.0, None, Some(Warning)),
            (14.0, Some(Warning), Some(Warning)),
            (3.2, Some(Warning), Some(Critical)),
            (2.0, Some(Critical), Some(Critical)),
        ] {
            assert_eq!(sight(LEFT, Value::Known(value)), known(over, stays), "{value}");
        }
    }

    #[test]
    fn a_range_crosses_by_its_certain_end_and_stays_a_warning() {
        let over = |value| sight(AGE, value);
        assert_eq!(over(Value::Between(0.0, 500.0)), Sight::Between { over: None });
        assert_eq!(over(Value::Between(31.0, f64::INFINITY)), Sight::Between { over: Some(Warning) });
        assert_eq!(over(Value::Between(400.0, 500.0)), Sight::Between { over: Some(Warning) });
        assert_eq!(sight(LEFT, Value::Between(1.0, 20.0)), Sight::Between { over: None });
    }

    #[test]
    fn what_is_not_known_is_never_well() {
        assert_eq!(sight(AGE, Value::Unknown(Reason::Denied("x".into()))), Sight::Blind);
        assert_eq!(sight(AGE, Value::Unknown(Reason::NotYet("x"))), Sight::NotYet);
        assert_eq!(sight(AGE, Value::Known(f64::NAN)), Sight::NotYet);
    }

    #[test]
    fn what_is_only_recorded_stands_below_a_warning() {
        let bounds = AGE.recorded_from(5.0);
        let info = Some(Severity::Info);
        assert_eq!(sight(bounds, Value::Known(5.0)), known(info, info));
        assert_eq!(sight(bounds, Value::Known(30.0)), known(Some(Warning), Some(Warning)));
        assert_eq!(sight(bounds, Value::Known(4.0)), known(None, None));
    }

    #[test]
    fn a_missing_condition_neither_begins_nor_clears() {
        let seen = Seen { qualifies: false, ..Seen::known(500.0) };
        assert_eq!(AGE.sight(&seen, Critical), known(None, Some(Critical)));
    }

    #[test]
    fn one_sign_may_be_held_to_a_warning() {
        assert_eq!(AGE.sight(&Seen::known(500.0), Warning), known(Some(Warning), Some(Critical)));
    }
}
