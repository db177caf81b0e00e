//! The ranges of a lane that were given up and are not settled yet: in order, disjoint, ahead of the cursor.

use super::manifest::{Cause, LossMark};

/// What a settled cursor has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Passed {
    /// Sequences that were sent as losses: each has its outcome already.
    pub(super) as_losses: u64,
    /// Sequences that were evicted while the batch that held them was under way, and were delivered after all.
    pub(super) delivered_evicted: u64,
    /// The same, quarantined.
    pub(super) delivered_quarantined: u64,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Losses {
    pending: Vec<Pending>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pending {
    mark: LossMark,
    /// It was in a batch, so the collector may know the range as lost. Before that it can only know the records.
    is_offered: bool,
}

impl LossMark {
    const fn width(self) -> u64 {
        self.to - self.from + 1
    }
}

impl Losses {
    /// Those of a manifest that lie after `through`. Whether they were offered is not kept: assume it.
    pub(super) fn restore(marks: &[LossMark], through: u64) -> Self {
        let ahead = marks.iter().filter(|mark| mark.to > through);
        let cut = |mark: &LossMark| LossMark { from: mark.from.max(through + 1), ..*mark };
        Self { pending: ahead.map(|mark| Pending { mark: cut(mark), is_offered: true }).collect() }
    }

    pub(super) fn marks(&self) -> Vec<LossMark> {
        self.pending.iter().map(|pending| pending.mark).collect()
    }

    /// Sequences that wait as losses.
    pub(super) fn width(&self) -> u64 {
        self.pending.iter().map(|pending| pending.mark.width()).sum()
    }

    /// Gives up what of the range is not given up already; says how many sequences that were.
    pub(super) fn add(&mut self, from: u64, to: u64, cause: Cause) -> u64 {
        let mut added = 0;
        let mut from = from;
        let mut at = self.pending.partition_point(|pending| pending.mark.to < from);
        while from <= to {
            let until = match self.pending.get(at) {
                Some(pending) if pending.mark.from <= from => {
                    from = pending.mark.to + 1;
                    at += 1;
                    continue;
                }
                Some(pending) => to.min(pending.mark.from - 1),
                None => to,
            };
            let mark = LossMark { from, to: until, cause };
            added += mark.width();
            self.pending.insert(at, Pending { mark, is_offered: false });
            from = until + 1;
            at += 1;
        }
        self.merge();
        added
    }

    /// The loss that holds `sequence`, about to be sent; from now on the collector may know of it.
    pub(super) fn offer(&mut self, sequence: u64) -> Option<LossMark> {
        let at = self.pending.partition_point(|pending| pending.mark.to < sequence);
        let pending = self.pending.get_mut(at).filter(|pending| pending.mark.from <= sequence)?;
        pending.is_offered = true;
        let (from, to) = (pending.mark.from, pending.mark.to);
        self.merge();
        let merged = self.pending.iter().find(|pending| pending.mark.from <= from && to <= pending.mark.to)?;
        Some(LossMark { from: sequence, ..merged.mark })
    }

    /// The loss that holds `sequence`, without consequences.
    pub(super) fn covering(&self, sequence: u64) -> Option<LossMark> {
        let at = self.pending.partition_point(|pending| pending.mark.to < sequence);
        self.pending.get(at).map(|pending| pending.mark).filter(|mark| mark.from <= sequence)
    }

    /// Where the first loss after `sequence` begins.
    pub(super) fn next_from(&self, sequence: u64) -> Option<u64> {
        let at = self.pending.partition_point(|pending| pending.mark.from <= sequence);
        self.pending.get(at).map(|pending| pending.mark.from)
    }

    /// The collector's word that everything up to `through` is settled.
    pub(super) fn pass(&mut self, through: u64) -> Passed {
        let mut passed = Passed::default();
        for pending in &self.pending {
            if pending.mark.from > through {
                break;
            }
            let width = pending.mark.to.min(through) - pending.mark.from + 1;
            match pending.mark.cause {
                _ if pending.is_offered => passed.as_losses += width,
                Cause::Evicted => passed.delivered_evicted += width,
                Cause::Quarantined => passed.delivered_quarantined += width,
                // Set aside because it cannot be sent: it was never delivered.
                Cause::Refused => passed.as_losses += width,
            }
        }
        self.pending.retain(|pending| pending.mark.to > through);
        if let Some(first) = self.pending.first_mut() {
            first.mark.from = first.mark.from.max(through + 1);
        }
        passed
    }

    /// Neighbours with one cause and one standing become one, so that a day of evictions is one loss.
    fn merge(&mut self) {
        self.pending.dedup_by(|later, earlier| {
            let is_one = earlier.mark.to + 1 == later.mark.from
                && earlier.mark.cause == later.mark.cause
                && earlier.is_offered == later.is_offered;
            if is_one {
                earlier.mark.to = later.mark.to;
            }
            is_one
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn evictions_while_the_collector_is_away_become_one_loss() {
        let mut losses = Losses::default();
        assert_eq!(losses.add(1, 100, Cause::Evicted), 100);
        assert_eq!(losses.offer(1), Some(LossMark { from: 1, to: 100, cause: Cause::Evicted }));
        assert_eq!(losses.add(101, 200, Cause::Evicted), 100);
        assert_eq!(losses.add(201, 300, Cause::Evicted), 100);
        losses.offer(101);
        assert_eq!(losses.marks(), [LossMark { from: 1, to: 300, cause: Cause::Evicted }]);
        assert_eq!(losses.pass(300), Passed { as_losses: 300, ..Passed::default() });
        assert_eq!(losses, Losses::default());
    }

    #[test]
    fn what_was_evicted_under_way_and_acknowledged_was_delivered() {
        let mut losses = Losses::default();
        losses.add(1, 100, Cause::Evicted);
        assert_eq!(losses.pass(40), Passed { delivered_evicted: 40, ..Passed::default() });
        assert_eq!(losses.marks(), [LossMark { from: 41, to: 100, cause: Cause::Evicted }]);
    }

    proptest! {
        /// Against a map from sequence to cause.
        #[test]
        fn agrees_with_a_map(steps in proptest::collection::vec((0_u64..60, 0_u64..12, 0_u8..4), 0..40)) {
            let causes = [Cause::Evicted, Cause::Quarantined, Cause::Refused];
            let mut losses = Losses::default();
            let mut map: BTreeMap<u64, Cause> = BTreeMap::new();
            let mut through = 0;
            for (from, width, what) in steps {
                if let Some(cause) = causes.get(usize::from(what)) {
                    let from = from.max(through + 1);
                    let before = map.len();
                    (from..=from + width).for_each(|sequence| { map.entry(sequence).or_insert(*cause); });
                    prop_assert_eq!(losses.add(from, from + width, *cause), (map.len() - before) as u64);
                } else {
                    through = through.max(from);
                    let before = map.len();
                    map.retain(|sequence, _| *sequence > through);
                    let passed = losses.pass(through);
                    let sum = passed.as_losses + passed.delivered_evicted + passed.delivered_quarantined;
                    prop_assert_eq!(sum, (before - map.len()) as u64);
                }
                prop_assert_eq!(losses.width(), map.len() as u64);
                for sequence in through + 1..80 {
                    prop_assert_eq!(losses.covering(sequence).map(|mark| mark.cause), map.get(&sequence).copied());
                }
                let marks = losses.marks();
                prop_assert!(marks.windows(2).all(|two| two[0].to < two[1].from));
            }
        }
    }
}
