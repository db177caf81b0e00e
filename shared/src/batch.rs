//! What one request carries, and the collector's answer.
//!
//! Sequences are gapless per (agent, epoch, lane). A record takes one sequence; a loss takes the whole range it
//! replaces, so a lane that lost something still has no gap.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::finding::Finding;
use crate::fingerprint::Fingerprint;
use crate::labels::Labels;
use crate::levels::Levels;
use crate::protocol::MAX_RECORDS;
use crate::start::Start;

/// Which of the agent's two queues a record waits in. Urgent is always drained first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Findings, open lists, losses.
    Urgent,
    /// Summaries, levels, inventory, recordings.
    Bulk,
}

impl Lane {
    /// Both, in the order they are drained.
    pub const ALL: [Self; 2] = [Self::Urgent, Self::Bulk];

    /// `urgent` or `bulk`, as on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Urgent => "urgent",
            Self::Bulk => "bulk",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Name of one life of an agent's buffer: a ULID, new for each buffer created, restored or held in memory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Epoch(String);

/// A text that is not 26 characters of Crockford's base 32.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an epoch is 26 upper-case letters and digits (a ULID)")]
pub struct NotAnEpoch;

impl Epoch {
    /// The 26 characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Epoch {
    type Error = NotAnEpoch;

    fn try_from(text: String) -> Result<Self, NotAnEpoch> {
        let is_ulid = text.len() == 26 && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
        is_ulid.then_some(Self(text)).ok_or(NotAnEpoch)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One request's body. Empty `records` are a heartbeat.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch<'a> {
    /// [`crate::protocol::PROTOCOL`].
    pub protocol: u32,
    /// Life of the buffer these sequences count in.
    pub epoch: Epoch,
    /// The queue these records come from.
    pub lane: Lane,
    /// Sequence of the first record; of a heartbeat, the sequence the next record will have.
    pub first: u64,
    /// The agent's wall clock as the request left.
    pub sent_at: Timestamp,
    /// The agent ends on purpose: its presence becomes `stopped`, not `missing`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub goodbye: bool,
    /// The start of the buffer that it comes from; nothing where it is held in memory, and from agents before this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
    /// Each record as its own JSON text, so that one that cannot be read is refused alone. Reading stops keeping them
    /// one after [`MAX_RECORDS`]: a body of millions of empty records costs no memory, and the excess shows.
    #[serde(borrow, deserialize_with = "at_most_one_too_many")]
    pub records: Vec<&'a RawValue>,
}

fn at_most_one_too_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<&'de RawValue>, D::Error> {
    struct Bounded;
    impl<'de> Visitor<'de> for Bounded {
        type Value = Vec<&'de RawValue>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array of records")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
            let mut records = Vec::new();
            while records.len() <= MAX_RECORDS {
                let Some(record) = array.next_element()? else { return Ok(records) };
                records.push(record);
            }
            while array.next_element::<IgnoredAny>()?.is_some() {}
            Ok(records)
        }
    }
    deserializer.deserialize_seq(Bounded)
}

/// One record: `{"finding": {…}}`, `{"open": {…}}` and so on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record<'a> {
    /// A judged change.
    #[serde(borrow)]
    Finding(Finding<'a>),
    /// What is firing, per check that ran.
    Open(Open),
    /// What the buffer had to give up.
    Loss(Loss),
    /// One minute of one measure.
    #[serde(borrow)]
    Summary(Summary<'a>),
    /// Who the agent is and what it watches.
    Inventory(Inventory),
    /// The last minutes of a target, second by second.
    #[serde(borrow)]
    Recording(Recording<'a>),
    /// How full pools and servers are now.
    Levels(Levels),
}

impl Record<'_> {
    /// How many sequences it takes.
    pub const fn width(&self) -> u64 {
        match self {
            Self::Loss(loss) => loss.to - loss.from + 1,
            _ => 1,
        }
    }
}

/// The level behind the edges: what fires now, for each check that ran and could see.
///
/// The collector resolves its incidents of this agent and these checks that are not listed. A check that was
/// blind or did not run is not in `checks`, so nothing of it is resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Open {
    /// Ids of the checks that ran and could see all of their targets.
    pub checks: Vec<String>,
    /// What fires, of all checks, and what was not seen often enough to say that it does not.
    pub firing: Vec<Fingerprint>,
    /// When this was true, by the agent's wall clock.
    pub observed_at: Timestamp,
}

/// A range of sequences that was evicted or set aside and will not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loss {
    /// The lane it happened in, which is also the lane this record is in.
    pub lane: Lane,
    /// First sequence lost.
    pub from: u64,
    /// Last sequence lost; not less than `from`.
    pub to: u64,
    /// Records lost; at most the width of the range.
    pub count: u64,
    /// `evicted` (the buffer was full) or `quarantined` (could not be read).
    pub outcome: LossOutcome,
}

/// Why a range is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossOutcome {
    /// The buffer reached its bound.
    Evicted,
    /// The bytes could not be read back and were moved aside.
    Quarantined,
}

/// One measure of one target over one minute. Findings leave at once, numbers leave as these.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary<'a> {
    /// Name of the measure: `pool.open`.
    #[serde(borrow)]
    pub measure: Cow<'a, str>,
    /// Unit of the measure: `count`, `bytes`, `seconds`, `ratio`, `per_second`.
    #[serde(borrow)]
    pub unit: Cow<'a, str>,
    /// Stable key of the target.
    #[serde(borrow)]
    pub target: Cow<'a, str>,
    /// Start of the minute, UTC.
    pub minute: Timestamp,
    /// Least known value.
    pub min: f64,
    /// Greatest known value.
    pub max: f64,
    /// Sum of the known values.
    pub sum: f64,
    /// Number of known values; looks that saw nothing are not in it.
    pub count: u32,
    /// The last known value.
    pub last: f64,
}

/// Who the agent is and what it watches; sent at start and when it changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    /// The agent's version.
    pub version: String,
    /// Host name.
    pub host: String,
    /// Operating system and kernel.
    pub system: String,
    /// Labels of the agent's own file; the enrolment token's win over them.
    pub labels: Labels,
    /// Stable keys of the targets.
    pub targets: Vec<String>,
    /// When this was true, by the agent's wall clock.
    pub observed_at: Timestamp,
}

/// The last five minutes of a target at one-second resolution, attached to a finding that turned critical.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recording<'a> {
    /// The finding it belongs to.
    pub fingerprint: Fingerprint,
    /// Stable key of the target.
    #[serde(borrow)]
    pub target: Cow<'a, str>,
    /// Wall time of the first second.
    pub from: Timestamp,
    /// Per measure one value a second; `null` where it was not known.
    pub measures: std::collections::BTreeMap<String, Vec<Option<f64>>>,
}

/// The collector's answer: everything up to `through` in that lane is on its disk, or refused for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    /// Last sequence that is settled; `first - 1` of the lane's first batch when nothing is.
    pub through: u64,
    /// What was refused, each with a stable code.
    #[serde(default)]
    pub refused: Vec<Refused>,
}

/// One record that will never be stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its sequence.
    pub seq: u64,
    /// Why: `malformed`, `fingerprint_mismatch`, `evidence_too_large`, …
    pub code: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = include_str!("../testdata/wire/protocol-1.json");
    const WITH_START: &str = include_str!("../testdata/wire/protocol-1-start.json");

    /// Every released form stays readable: this file is never edited, later ones join it.
    #[test]
    fn reads_the_recorded_batch_of_protocol_1() {
        let batch: Batch<'_> = serde_json::from_str(BODY).expect("the envelope reads");
        let records: Vec<Record<'_>> =
            batch.records.iter().map(|raw| serde_json::from_str(raw.get()).expect("the record reads")).collect();
        let kinds: Vec<_> = records.iter().map(kind).collect();
        assert_eq!(kinds, ["finding", "open", "loss", "summary", "inventory", "recording"]);
        let through = batch.first + records.iter().map(Record::width).sum::<u64>() - 1;
        assert_eq!(through, 4711 + 5 + 100 - 1, "the loss takes its whole range");
    }

    #[test]
    fn reads_the_recorded_batch_that_names_its_start() {
        let batch: Batch<'_> = serde_json::from_str(WITH_START).expect("the envelope reads");
        let start = batch.start.clone().expect("it is named");
        assert!(start.is_sound());
        assert_eq!((start.number, start.opened, start.before.len()), (3, 4710, 2));
        assert_eq!(start.holds_of(start.before[1].word), Some(4650));
        let written = serde_json::to_string(&batch).expect("written");
        let again: Batch<'_> = serde_json::from_str(&written).expect("the envelope reads");
        assert_eq!(again.start, batch.start);
        assert_eq!(serde_json::from_str::<Batch<'_>>(BODY).expect("the envelope reads").start, None);
    }

    fn kind(record: &Record<'_>) -> &'static str {
        match record {
            Record::Finding(_) => "finding",
            Record::Open(_) => "open",
            Record::Loss(_) => "loss",
            Record::Summary(_) => "summary",
            Record::Inventory(_) => "inventory",
            Record::Recording(_) => "recording",
            Record::Levels(_) => "levels",
        }
    }

    #[test]
    fn millions_of_records_are_seen_to_be_too_many_and_not_kept() {
        let body = |count: usize| {
            let (head, _) = BODY.split_once('[').expect("has records");
            format!("{head}[{}]}}", vec!["1"; count].join(","))
        };
        let kept = |count| serde_json::from_str::<Batch<'_>>(&body(count)).expect("the envelope reads").records.len();
        assert_eq!((kept(MAX_RECORDS), kept(MAX_RECORDS + 1)), (MAX_RECORDS, MAX_RECORDS + 1));
        assert_eq!(kept(3 * MAX_RECORDS), MAX_RECORDS + 1);
    }

    #[test]
    fn an_unknown_key_or_a_malformed_epoch_is_an_error_that_names_it() {
        let unknown = BODY.replacen("\"lane\"", "\"lain\"", 1);
        let error = serde_json::from_str::<Batch<'_>>(&unknown).expect_err("must be refused").to_string();
        assert!(error.contains("lain"), "{error}");
        assert!(Epoch::try_from("short".to_owned()).is_err());
    }
}
