//! Many values become one, of which it is known what it is at least and at most.
//!
//! A value that is not certain is as it was last told, or not there: each end of what comes out holds for both.

use super::Aggregate;
use super::series::{Series, Span};

/// Values of one group.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// How many there certainly are, and how many may be besides.
    pub(super) certain: u32,
    pub(super) doubtful: u32,
    /// There may be more of which nobody told.
    hides_more: bool,
    sum: Option<Span>,
    /// Of the quantile alone: the ends of every value, and whether it is certain.
    values: Vec<(Span, bool)>,
}

impl Group {
    pub(super) const fn is_empty(&self) -> bool {
        self.certain == 0 && self.doubtful == 0
    }

    pub(super) fn add(&mut self, aggregate: Aggregate, series: &Series<'_>) {
        let Span { low, high } = series.span;
        let is_certain = series.is_certain;
        self.certain += u32::from(is_certain);
        self.doubtful += u32::from(!is_certain);
        self.hides_more |= series.hides_more;
        let before = self.sum;
        self.sum = match aggregate {
            Aggregate::Count => None,
            Aggregate::Sum => {
                let it = before.unwrap_or(Span::known(0.0));
                Some(Span { low: it.low + if is_certain { low } else { 0.0 }, high: it.high + high })
            }
            Aggregate::Max => {
                let it = before.unwrap_or(Span::known(0.0));
                Some(Span { low: if is_certain { it.low.max(low) } else { it.low }, high: it.high.max(high) })
            }
            Aggregate::Min => {
                let it = before.unwrap_or(Span::known(f64::INFINITY));
                Some(Span { low: it.low.min(low), high: if is_certain { it.high.min(high) } else { it.high } })
            }
            Aggregate::Quantile(_) => {
                self.values.push((series.span, is_certain));
                None
            }
        };
    }

    /// What they are together; none of no values.
    pub(super) fn span(&self, aggregate: Aggregate) -> Option<Span> {
        if self.is_empty() {
            return None;
        }
        let (certain, all) = (f64::from(self.certain), f64::from(self.certain + self.doubtful));
        let mut span = match aggregate {
            Aggregate::Count => Span { low: certain, high: all },
            Aggregate::Quantile(part) => Span { low: self.least(part), high: self.most(part) },
            Aggregate::Sum | Aggregate::Max | Aggregate::Min => self.sum.unwrap_or(Span::UNKNOWN),
        };
        if self.hides_more {
            match aggregate {
                Aggregate::Sum | Aggregate::Count | Aggregate::Max => span.high = f64::INFINITY,
                Aggregate::Min => span.low = 0.0,
                Aggregate::Quantile(_) => span = Span::UNKNOWN,
            }
        }
        Some(span)
    }

    /// The least that the quantile can be: doubtful values count where they pull it down.
    fn least(&self, part: f64) -> f64 {
        let mut ends: Vec<(f64, bool)> = self.values.iter().map(|(span, is_certain)| (span.low, *is_certain)).collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (mut under, mut doubtful) = (0, 0);
        for (at, (value, is_certain)) in ends.iter().enumerate() {
            under += 1;
            doubtful += u32::from(!is_certain);
            // All of one value are under it.
            if ends.get(at + 1).is_some_and(|(next, _)| next <= value) {
                continue;
            }
            if under >= rank(part, self.certain + doubtful) {
                return *value;
            }
        }
        ends.last().map_or(0.0, |(value, _)| *value)
    }

    /// The most that it can be: doubtful values count where they push it up.
    fn most(&self, part: f64) -> f64 {
        let mut ends: Vec<(f64, bool)> =
            self.values.iter().map(|(span, is_certain)| (span.high, *is_certain)).collect();
        ends.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (mut certain, mut doubtful) = (0, 0);
        for (at, (value, is_certain)) in ends.iter().enumerate() {
            certain += u32::from(*is_certain);
            doubtful += u32::from(!is_certain);
            if ends.get(at + 1).is_some_and(|(next, _)| next >= value) {
                continue;
            }
            // Fewer are under it than the quantile leaves behind.
            if self.certain - certain < rank(part, self.certain + doubtful) {
                return *value;
            }
        }
        ends.last().map_or(f64::INFINITY, |(value, _)| *value)
    }
}

/// Which of so many values, in order, the quantile is; the first is 1.
fn rank(part: f64, of: u32) -> u32 {
    // 0.07 of 100 are 7, and a little more in binary.
    let rank = (part * f64::from(of) - 1e-9).ceil();
    (rank as u32).clamp(1, of.max(1))
}
