//! One minute of each measure in five numbers: what leaves the host instead of every observation.
//!
//! Only exactly known values are summed up; a minute in which nothing was known gives no summary, so that a gap shows
//! as a gap and not as a zero.

use std::collections::BTreeMap;

use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use tickbird_shared::batch::Summary;

use crate::discover::TargetKey;
use crate::inspect::{Measure, Observation};

/// Most series kept at a time; what comes beyond is counted in [`Minutes::refused`]. The collector takes no more of
/// one agent.
const MAX_SERIES: usize = 2_000;

/// The minute that is being summed up.
#[derive(Debug, Default)]
pub struct Minutes {
    minute: Option<Timestamp>,
    series: BTreeMap<(TargetKey, &'static str), Series>,
    /// Observations left out because there were too many series.
    pub refused: u64,
}

#[derive(Debug)]
struct Series {
    measure: &'static Measure,
    min: f64,
    max: f64,
    sum: f64,
    count: u32,
    last: f64,
}

impl Minutes {
    /// Adds what was observed at `wall`; gives the summaries of the minute that ended with it, if one did.
    pub fn add(&mut self, observations: &[Observation], wall: Timestamp) -> Vec<Summary<'static>> {
        let minute = wall.round(TimestampRound::new().smallest(Unit::Minute).mode(RoundMode::Trunc)).unwrap_or(wall);
        // A clock that stepped back also ends the minute: values of two times never share one.
        let ended = if self.minute == Some(minute) { Vec::new() } else { self.close() };
        self.minute = Some(minute);
        for Observation { target, measure, value } in observations {
            let Some(value) = value.known().filter(|it| it.is_finite()) else { continue };
            let key = (target.clone(), measure.name);
            if !self.series.contains_key(&key) && self.series.len() == MAX_SERIES {
                self.refused += 1;
                continue;
            }
            let series = self.series.entry(key).or_insert(Series {
                measure,
                min: value,
                max: value,
                sum: 0.0,
                count: 0,
                last: value,
            });
            series.min = series.min.min(value);
            series.max = series.max.max(value);
            series.sum += value;
            series.count += 1;
            series.last = value;
        }
        ended
    }

    /// Ends the minute early: at shutdown.
    pub fn close(&mut self) -> Vec<Summary<'static>> {
        let Some(minute) = self.minute.take() else { return Vec::new() };
        std::mem::take(&mut self.series)
            .into_iter()
            .map(|((target, _), it)| Summary {
                measure: it.measure.name.into(),
                unit: it.measure.unit.as_str().into(),
                target: target.as_str().to_owned().into(),
                minute,
                min: it.min,
                max: it.max,
                sum: it.sum,
                count: it.count,
                last: it.last,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::{Reason, Value};

    static OPEN: Measure = Measure { name: "pool.open", unit: crate::inspect::Unit::Count, meaning: "" };

    fn seen(value: Value) -> Observation {
        Observation { target: TargetKey::agent(), measure: &OPEN, value }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a timestamp")
    }

    #[test]
    fn a_minute_is_told_when_it_is_over() {
        let mut minutes = Minutes::default();
        assert!(minutes.add(&[seen(Value::Known(3.0))], at("2026-11-20T10:00:01Z")).is_empty());
        assert!(
            minutes.add(&[seen(Value::Known(5.0)), seen(Value::Known(1.0))], at("2026-11-20T10:00:59Z")).is_empty()
        );
        let told = minutes.add(&[seen(Value::Known(9.0))], at("2026-11-20T10:01:00Z"));
        assert_eq!(told.len(), 1);
        let it = &told[0];
        assert_eq!((it.min, it.max, it.sum, it.count, it.last), (1.0, 5.0, 9.0, 3, 1.0));
        assert_eq!(it.minute, at("2026-11-20T10:00:00Z"));
    }

    #[test]
    fn what_is_not_exactly_known_makes_a_gap_not_a_zero() {
        let mut minutes = Minutes::default();
        let vague =
            [seen(Value::Unknown(Reason::NotYet("x"))), seen(Value::Between(1.0, 2.0)), seen(Value::Known(f64::NAN))];
        minutes.add(&vague, at("2026-11-20T10:00:01Z"));
        assert!(minutes.close().is_empty());
    }

    #[test]
    fn a_clock_that_steps_back_does_not_mix_two_times() {
        let mut minutes = Minutes::default();
        minutes.add(&[seen(Value::Known(1.0))], at("2026-11-20T10:05:01Z"));
        let told = minutes.add(&[seen(Value::Known(2.0))], at("2026-11-20T09:05:01Z"));
        assert_eq!((told.len(), told[0].sum), (1, 1.0));
    }

    #[test]
    fn series_are_bounded_and_the_rest_is_counted() {
        let mut minutes = Minutes::default();
        let many: Vec<_> = (0..MAX_SERIES + 5)
            .map(|i| Observation {
                target: TargetKey::endpoint(&i.to_string()),
                measure: &OPEN,
                value: Value::Known(1.0),
            })
            .collect();
        minutes.add(&many, at("2026-11-20T10:00:01Z"));
        assert_eq!((minutes.close().len(), minutes.refused), (MAX_SERIES, 5));
    }
}
