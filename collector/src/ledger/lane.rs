//! What of a batch is new: sequences are gapless, a repeat changes nothing, other content under the same numbers is a clone.
//!
//! What a lane was received up to is known of one start of the agent's buffer. A batch of another start is taken only when
//! that one's buffer holds all of it: else the same numbers mean other records there, which would be answered as repeats
//! and be lost. An agent that hears so begins an epoch of its own, in which nothing was received yet.

use tickbird_shared::Start;

use crate::store::LaneRow;

use super::{Content, Incoming};

/// What is to be done with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Everything after `through` is new; `through` itself was settled before.
    Take {
        /// Last sequence that was settled before this batch.
        after: u64,
        /// Last sequence of this batch.
        through: u64,
    },
    /// Nothing is new, or nothing is in it.
    Repeat {
        /// Last sequence settled.
        through: u64,
    },
    /// Sequences before the batch never came.
    Gap {
        /// Last sequence settled.
        through: u64,
    },
    /// The newest batch came again with other content: two agents speak under one name.
    Cloned {
        /// Last sequence settled.
        through: u64,
    },
    /// The epoch of the buffer that it comes from goes on elsewhere.
    OtherStart(Elsewhere),
}

/// Why the epoch of a buffer goes on elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Elsewhere {
    /// It started later than the one that the lane goes by, from a state before that one's last word, or from a copy.
    Behind,
    /// Another start took its place: its process is over, or its buffer was copied.
    Superseded,
}

impl Elsewhere {
    /// As a word for the log.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Behind => "behind",
            Self::Superseded => "superseded",
        }
    }
}

/// Decides by the mark of the lane. A lane never heard of begins wherever the agent says.
pub(super) fn admit(mark: Option<&LaneRow>, batch: &Incoming) -> Admission {
    if let Some(why) = mark.zip(batch.start.as_ref()).and_then(|(mark, start)| elsewhere(mark, start)) {
        return Admission::OtherStart(why);
    }
    let before = batch.first.saturating_sub(1);
    let settled = mark.map_or(before, |mark| mark.through);
    let Some(last) = batch.records.last() else {
        return Admission::Repeat { through: settled };
    };
    let end = last.seq + (last.width - 1);
    if before > settled {
        return Admission::Gap { through: settled };
    }
    if end > settled {
        return Admission::Take { after: settled, through: end };
    }
    let is_newest = |mark: &LaneRow| mark.last_first == batch.first && mark.through == end;
    let differs = mark.is_some_and(|mark| is_newest(mark) && mark.last_digest != batch.digest);
    // A frame whose acknowledgement was lost may be evicted: then its range comes back as a loss, from the same agent.
    let became_a_loss = batch.records.iter().any(|record| matches!(record.content, Content::Loss(_)));
    if differs && !became_a_loss {
        Admission::Cloned { through: settled }
    } else {
        Admission::Repeat { through: settled }
    }
}

/// Why the buffer of this start does not hold all that the lane was received up to; nothing when it does.
fn elsewhere(mark: &LaneRow, start: &Start) -> Option<Elsewhere> {
    // What was received without the name of a start came before agents had one: from this buffer, as far as it knows of it.
    let holds = mark.start.map_or(Some(start.opened), |known| start.holds_of(known.word));
    if holds.is_some_and(|holds| mark.through <= holds) {
        return None;
    }
    let is_later = mark.start.is_none_or(|known| start.number > known.number);
    Some(if is_later { Elsewhere::Behind } else { Elsewhere::Superseded })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Numbered;
    use proptest::prelude::*;
    use tickbird_shared::{Epoch, Lane, Timestamp};

    pub(super) fn batch(first: u64, count: u64, digest: u8) -> Incoming {
        let records = (first..first + count).map(|seq| Numbered { seq, width: 1, content: Content::InBody });
        Incoming {
            tenant: "default".into(),
            agent: "a-1".into(),
            epoch: Epoch::try_from("01JD7Z5W0000000000000000AA".to_owned()).expect("a ULID"),
            lane: Lane::Bulk,
            first,
            sent_at: Timestamp::UNIX_EPOCH,
            goodbye: false,
            start: None,
            received_at: Timestamp::UNIX_EPOCH,
            records: records.collect(),
            digest: [digest; 32],
            body: Vec::new(),
            text_bytes: 0,
        }
    }

    pub(super) fn mark(last_first: u64, through: u64, digest: u8) -> LaneRow {
        let of = batch(1, 0, 0);
        LaneRow {
            tenant: of.tenant,
            agent: of.agent,
            epoch: of.epoch,
            lane: of.lane,
            through,
            last_first,
            last_digest: [digest; 32],
            start: None,
            updated_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_lane_begins_anywhere_and_goes_on_without_a_gap() {
        assert_eq!(admit(None, &batch(5, 3, 1)), Admission::Take { after: 4, through: 7 });
        let mark = mark(5, 7, 1);
        assert_eq!(admit(Some(&mark), &batch(8, 1, 1)), Admission::Take { after: 7, through: 8 });
        assert_eq!(admit(Some(&mark), &batch(9, 1, 1)), Admission::Gap { through: 7 });
    }

    #[test]
    fn a_repeat_changes_nothing_and_an_overlap_brings_only_its_end() {
        let mark = mark(5, 7, 1);
        assert_eq!(admit(Some(&mark), &batch(5, 3, 1)), Admission::Repeat { through: 7 });
        assert_eq!(admit(Some(&mark), &batch(1, 2, 9)), Admission::Repeat { through: 7 });
        assert_eq!(admit(Some(&mark), &batch(6, 4, 9)), Admission::Take { after: 7, through: 9 });
        assert_eq!(admit(Some(&mark), &batch(100, 0, 9)), Admission::Repeat { through: 7 }, "a heartbeat");
    }

    #[test]
    fn the_same_numbers_with_other_content_are_a_clone_unless_they_became_a_loss() {
        let mark = mark(5, 7, 1);
        assert_eq!(admit(Some(&mark), &batch(5, 3, 2)), Admission::Cloned { through: 7 });
        let mut lost = batch(5, 1, 2);
        lost.records[0].width = 3;
        lost.records[0].content = Content::Loss(crate::store::LossRow {
            tenant: lost.tenant.clone(),
            agent: lost.agent.clone(),
            epoch: lost.epoch.clone(),
            lane: lost.lane,
            from: 5,
            to: 7,
            count: 3,
            outcome: "evicted".into(),
            received_at: Timestamp::UNIX_EPOCH,
        });
        assert_eq!(admit(Some(&mark), &lost), Admission::Repeat { through: 7 });
    }

    proptest! {
        /// Whatever an agent repeats, splits or merges: each sequence is taken once, in order.
        #[test]
        fn every_sequence_is_taken_once(cuts in proptest::collection::vec((0_u64..40, 1_u64..12), 1..60)) {
            let mut lane: Option<LaneRow> = None;
            let mut taken = 0_u64;
            for (back, count) in cuts {
                let first = (taken + 1).saturating_sub(back).max(1);
                match admit(lane.as_ref(), &batch(first, count, 0)) {
                    Admission::Take { after, through } => {
                        prop_assert_eq!(after, taken);
                        taken = through;
                        lane = Some(mark(first, through, 0));
                    }
                    Admission::Repeat { through } => prop_assert_eq!(through, taken),
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }
    }
}

#[cfg(test)]
mod copies;
