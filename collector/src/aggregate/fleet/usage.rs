//! How many connections each application really had leased, day by day: what a suggested size is made of.
//!
//! A histogram with steps of one up to 64 and of a sixteenth of a doubling beyond, so that a day of an application
//! is at most some hundred numbers, whatever it did.

use std::collections::{BTreeMap, BTreeSet};

use tickbird_shared::Timestamp;

use crate::store::UseRow;

/// Days that are looked back over.
pub(super) const DAYS: i64 = 7;
/// Looks before a size is suggested: ten minutes.
const ENOUGH: u64 = 60;
/// Most applications (times servers) whose use is kept; what comes beyond gets no suggestion.
const MOST: usize = 20_000;
/// Steps of one below this value.
const EXACT: u32 = 64;
const SECONDS_OF_DAY: i64 = 24 * 3600;

/// Tenant, server and application.
type Who = (String, String, String);

/// What was used over the last days.
#[derive(Debug, Default)]
pub(super) struct Usage {
    days: BTreeMap<Who, BTreeMap<i64, Day>>,
    unsaved: BTreeSet<(Who, i64)>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Day {
    samples: u64,
    peak: u32,
    peak_open: u32,
    counts: BTreeMap<u16, u32>,
}

/// What the days say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// How often it was looked at.
    pub samples: u64,
    /// Most connections certainly leased at one look.
    pub peak: u32,
    /// Most connections open at one look.
    pub peak_open: u32,
    /// So many, or fewer, were certainly leased at 95 of 100 looks.
    pub p95: u32,
    /// The size that would have been enough, with a quarter to spare; none before ten minutes of looks.
    pub suggested: Option<u32>,
}

impl Usage {
    pub(super) fn load(rows: Vec<UseRow>) -> Self {
        let mut usage = Self::default();
        for row in rows {
            let day = Day {
                samples: row.samples,
                peak: row.peak,
                peak_open: row.peak_open,
                counts: row.counts.into_iter().collect(),
            };
            let who = (row.tenant, row.server, row.application);
            usage.days.entry(who).or_default().insert(number(row.day), day);
        }
        usage
    }

    /// Takes one look at an application in.
    pub(super) fn add(&mut self, who: Who, leased: u32, open: u32, now: Timestamp) {
        if !self.days.contains_key(&who) && self.days.len() >= MOST {
            return;
        }
        let today = number(now);
        let days = self.days.entry(who.clone()).or_default();
        days.entry(today).or_default().add(leased, open);
        days.retain(|day, _| today - DAYS < *day && *day <= today);
        self.unsaved.insert((who, today));
    }

    /// What was used over the last days; none when it was never looked at.
    pub(super) fn of(&self, who: &Who) -> Option<Used> {
        used(self.days.get(who)?.values())
    }

    /// What changed since it was asked last.
    pub(super) fn take_unsaved(&mut self) -> Vec<UseRow> {
        let unsaved = std::mem::take(&mut self.unsaved);
        let row = |((who, day), it): ((Who, i64), Day)| {
            let (tenant, server, application) = who;
            let day = Timestamp::from_second(day * SECONDS_OF_DAY).unwrap_or(Timestamp::UNIX_EPOCH);
            let counts = it.counts.into_iter().collect();
            let Day { samples, peak, peak_open, .. } = it;
            UseRow { tenant, server, application, day, samples, peak, peak_open, counts }
        };
        let found = |key: (Who, i64)| Some((key.clone(), self.days.get(&key.0)?.get(&key.1)?.clone()));
        unsaved.into_iter().filter_map(found).map(row).collect()
    }

    /// Forgets applications that were not looked at for as long as is looked back.
    pub(super) fn forget(&mut self, now: Timestamp) {
        let today = number(now);
        self.days.retain(|_, days| days.last_key_value().is_some_and(|(day, _)| today - DAYS < *day));
    }
}

impl Day {
    fn add(&mut self, leased: u32, open: u32) {
        self.samples += 1;
        self.peak = self.peak.max(leased);
        self.peak_open = self.peak_open.max(open);
        let count = self.counts.entry(step(leased)).or_default();
        *count = count.saturating_add(1);
    }
}

/// What rows of several days, of one application or several, say together.
pub fn of_rows<'a>(rows: impl Iterator<Item = &'a UseRow>) -> Option<Used> {
    let days: Vec<Day> = rows
        .map(|row| Day {
            samples: row.samples,
            peak: row.peak,
            peak_open: row.peak_open,
            counts: row.counts.iter().copied().collect(),
        })
        .collect();
    used(days.iter())
}

fn used<'a>(days: impl Iterator<Item = &'a Day>) -> Option<Used> {
    let mut all = Day::default();
    let mut counts: BTreeMap<u16, u64> = BTreeMap::new();
    for day in days {
        all.samples += day.samples;
        all.peak = all.peak.max(day.peak);
        all.peak_open = all.peak_open.max(day.peak_open);
        for (step, count) in &day.counts {
            *counts.entry(*step).or_default() += u64::from(*count);
        }
    }
    let total: u64 = counts.values().sum();
    let mut left = total.checked_sub(1)? * 95 / 100 + 1;
    let mut p95 = all.peak;
    for (step, count) in counts {
        if count >= left {
            p95 = greatest(step).min(all.peak);
            break;
        }
        left -= count;
    }
    let suggested = (all.samples >= ENOUGH).then(|| p95.saturating_add(p95.div_ceil(4)).max(2));
    Some(Used { samples: all.samples, peak: all.peak, peak_open: all.peak_open, p95, suggested })
}

/// The day of a time, counted from 1970.
fn number(at: Timestamp) -> i64 {
    at.as_second().div_euclid(SECONDS_OF_DAY)
}

/// The step that a value falls into.
fn step(value: u32) -> u16 {
    if value < EXACT {
        return value as u16;
    }
    // 16 steps for each doubling: the four bits after the leading one.
    let doubling = value.ilog2();
    let fraction = (value >> (doubling - 4)) & 0xf;
    (EXACT + (doubling - 6) * 16 + fraction) as u16
}

/// The greatest value of a step.
fn greatest(step: u16) -> u32 {
    let step = u32::from(step);
    if step < EXACT {
        return step;
    }
    let (doubling, fraction) = ((step - EXACT) / 16 + 6, (step - EXACT) % 16);
    let next = (17 + u64::from(fraction)) << doubling.min(31).saturating_sub(4);
    u32::try_from(next - 1).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).expect("in range")
    }

    fn who() -> Who {
        ("default".into(), "system/7".into(), "shop".into())
    }

    #[test]
    fn the_95th_of_a_hundred_looks_is_suggested_with_a_quarter_to_spare() {
        let mut usage = Usage::default();
        for look in 0..100 {
            usage.add(who(), if look < 95 { 8 } else { 40 }, 50, at(look * 10));
        }
        let used = usage.of(&who()).expect("was looked at");
        assert_eq!((used.samples, used.peak, used.peak_open, used.p95, used.suggested), (100, 40, 50, 8, Some(10)));
    }

    #[test]
    fn nothing_is_suggested_of_a_few_looks() {
        let mut usage = Usage::default();
        assert_eq!(usage.of(&who()), None);
        for look in 0..ENOUGH as i64 - 1 {
            usage.add(who(), 3, 3, at(look));
        }
        assert_eq!(usage.of(&who()).map(|it| it.suggested), Some(None));
        usage.add(who(), 3, 3, at(100));
        assert_eq!(usage.of(&who()).map(|it| it.suggested), Some(Some(4)));
    }

    #[test]
    fn what_is_saved_is_loaded_and_a_week_is_looked_back_over() {
        let mut usage = Usage::default();
        for day in 0..10 {
            usage.add(who(), day as u32, 0, at(day * SECONDS_OF_DAY));
        }
        let saved = usage.take_unsaved();
        assert!(usage.take_unsaved().is_empty());
        assert_eq!(saved.len(), DAYS as usize, "days that went before they were saved are not needed any more");
        let mut loaded = Usage::load(saved);
        assert_eq!(loaded.of(&who()), usage.of(&who()));
        assert_eq!(loaded.of(&who()).map(|it| it.samples), Some(7));
        loaded.forget(at(20 * SECONDS_OF_DAY));
        assert_eq!(loaded.of(&who()), None);
    }

    proptest! {
        #[test]
        fn a_step_is_at_most_a_sixteenth_above_what_it_holds(value in 0_u32..4_000_000_000) {
            let top = greatest(step(value));
            prop_assert!(top >= value, "{top}");
            prop_assert!(u64::from(top) <= u64::from(value) + u64::from(value) / 16 + 1, "{top}");
            prop_assert!(step(value) <= step(value.saturating_add(1)));
        }

        #[test]
        fn no_rows_panic(counts in proptest::collection::vec((any::<u16>(), any::<u32>()), 0..20), peak in any::<u32>()) {
            let row = UseRow {
                tenant: String::new(), server: String::new(), application: String::new(), day: at(0),
                samples: 1, peak, peak_open: 0, counts,
            };
            let _ = of_rows([&row, &row].into_iter());
        }
    }
}
