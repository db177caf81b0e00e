//! What is held in memory while the disk takes nothing: a bounded queue in an epoch of its own.
//!
//! It ends with the process, and whoever reads a finding that was held here is told so. Nothing in it is moved to the
//! disk later: a batch of it may be at the collector already, and under other numbers it would count twice.

use std::collections::VecDeque;

use tickbird_shared::batch::Refused;
use tickbird_shared::{Epoch, Lane, Timestamp};

use super::manifest::Life;
use super::stat::VolatileStat;
use super::{Item, MAX_VOLATILE_RECORDS, Stored};

/// See the module. Its lane is [`Lane::Urgent`].
pub(super) struct Volatile {
    epoch: Epoch,
    waiting: VecDeque<Vec<u8>>,
    /// Last sequence that is settled.
    through: u64,
    acknowledged: u64,
    refused: u64,
}

impl Volatile {
    /// An empty one. Its epoch is known to nobody before it sends something.
    pub(super) fn begin(now: Timestamp) -> Self {
        let epoch = Life::begin(now).epoch;
        Self { epoch, waiting: VecDeque::new(), through: 0, acknowledged: 0, refused: 0 }
    }

    pub(super) const fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Sequence after the last settled one.
    pub(super) const fn first(&self) -> u64 {
        self.through + 1
    }

    /// Takes records as long as there is room; answers how many.
    pub(super) fn hold(&mut self, records: Vec<Vec<u8>>) -> u64 {
        let room = MAX_VOLATILE_RECORDS.saturating_sub(self.waiting.len());
        let count = records.len().min(room);
        self.waiting.extend(records.into_iter().take(room));
        count as u64
    }

    /// The oldest that wait: at most `max_records`, and no more than `max_raw_bytes` unless the first alone is larger.
    pub(super) fn next(&self, max_records: usize, max_raw_bytes: usize) -> Option<Stored> {
        let mut bytes = 0;
        let fits = |(at, record): &(usize, &Vec<u8>)| {
            bytes += record.len();
            *at == 0 || bytes <= max_raw_bytes
        };
        let waiting = self.waiting.iter().take(max_records).enumerate();
        let items: Vec<_> = waiting.take_while(fits).map(|(_, record)| Item::Record(record.clone())).collect();
        let (epoch, first) = (self.epoch.clone(), self.first());
        (!items.is_empty()).then_some(Stored {
            epoch,
            start: None,
            lane: Lane::Urgent,
            first,
            items,
            is_volatile: true,
        })
    }

    /// Everything up to `through` is settled, `refused` of it refused. Answers how many were acknowledged by it.
    pub(super) fn settle(&mut self, through: u64, refused: &[Refused]) -> u64 {
        let through = through.min(self.through + self.waiting.len() as u64);
        let Some(width) = through.checked_sub(self.through) else { return 0 };
        let mut numbers: Vec<u64> =
            refused.iter().map(|it| it.seq).filter(|seq| (self.through + 1..=through).contains(seq)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        self.waiting.drain(..usize::try_from(width).unwrap_or(usize::MAX).min(self.waiting.len()));
        self.through = through;
        self.refused += numbers.len() as u64;
        let taken = width - numbers.len() as u64;
        self.acknowledged += taken;
        taken
    }

    pub(super) fn stat(&self) -> VolatileStat {
        let backlog = self.waiting.len() as u64;
        let (acknowledged, refused) = (self.acknowledged, self.refused);
        VolatileStat { held: self.through + backlog, acknowledged, refused, backlog }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).expect("a time")
    }

    fn refuse(seq: u64) -> Refused {
        Refused { seq, code: "malformed".into() }
    }

    #[test]
    fn holds_a_thousand_and_gives_them_once_in_order() {
        let mut volatile = Volatile::begin(now());
        let records = |count: usize| (0..count).map(|n| n.to_string().into_bytes()).collect::<Vec<_>>();
        assert_eq!(volatile.hold(records(MAX_VOLATILE_RECORDS - 1)), MAX_VOLATILE_RECORDS as u64 - 1);
        assert_eq!(volatile.hold(records(5)), 1, "no more than it may");
        let stored = volatile.next(3, 1 << 20).expect("some");
        assert!(stored.is_volatile && stored.first == 1 && stored.through() == 3);
        assert_eq!(volatile.next(3, 1).expect("one at least").items.len(), 1);
        assert_eq!(volatile.settle(3, &[refuse(2), refuse(2), refuse(9)]), 2);
        assert_eq!(volatile.settle(1, &[]), 0, "an old word changes nothing");
        assert_eq!(volatile.next(1, 1 << 20).expect("some").items, [Item::Record(b"3".to_vec())]);
        assert_eq!(volatile.settle(u64::MAX, &[]), MAX_VOLATILE_RECORDS as u64 - 3);
        assert_eq!((volatile.next(9, 9), volatile.first()), (None, MAX_VOLATILE_RECORDS as u64 + 1));
    }

    proptest! {
        #[test]
        fn its_sum_is_whole_whatever_is_settled(steps in proptest::collection::vec((0_usize..400, 0_u64..900, 0_u64..900), 1..20)) {
            let mut volatile = Volatile::begin(now());
            let mut held = 0;
            for (count, through, seq) in steps {
                held += volatile.hold(vec![Vec::new(); count]);
                volatile.settle(through, &[refuse(seq)]);
                let stat = volatile.stat();
                prop_assert!(stat.is_whole() && stat.held == held, "{:?} of {}", stat, held);
            }
        }
    }
}
