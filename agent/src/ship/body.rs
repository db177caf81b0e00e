//! From stored records to the bytes of a request.

use serde_json::value::{RawValue, to_raw_value};
use tickbird_shared::batch::{Batch, Record};
use tickbird_shared::protocol::{MAX_COMPRESSED_BYTES, PROTOCOL};
use tickbird_shared::{Lane, Timestamp};

use crate::buffer::{Item, Standing, Stored};

/// What cannot be sent as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsendable {
    /// This item is not JSON: something else than this agent wrote it.
    NotJson {
        /// Which one.
        sequence: u64,
    },
    /// Together they are larger than a request may be.
    TooLarge,
}

/// A request without records: a heartbeat, or the agent's goodbye.
pub fn empty(standing: &Standing, lane: Lane, sent_at: Timestamp, goodbye: bool) -> Vec<u8> {
    let (epoch, start, first) = (standing.epoch.clone(), standing.start.clone(), standing.first);
    compress(&Batch { protocol: PROTOCOL, epoch, lane, first, sent_at, goodbye, start, records: Vec::new() })
}

/// A request that carries records.
pub fn full(stored: &Stored, sent_at: Timestamp) -> Result<Vec<u8>, Unsendable> {
    let mut losses = Vec::new();
    for item in &stored.items {
        if let Item::Loss(loss) = item {
            losses.push(to_raw_value(&Record::Loss(*loss)).expect("numbers and words are JSON"));
        }
    }
    let mut losses = losses.iter();
    let mut records: Vec<&RawValue> = Vec::with_capacity(stored.items.len());
    let mut sequence = stored.first;
    for item in &stored.items {
        records.push(match item {
            Item::Record(bytes) => serde_json::from_slice(bytes).map_err(|_| Unsendable::NotJson { sequence })?,
            Item::Loss(_) => losses.next().expect("one was made for each above"),
        });
        sequence += item.width();
    }
    let (epoch, start, lane, first) = (stored.epoch.clone(), stored.start.clone(), stored.lane, stored.first);
    let body = compress(&Batch { protocol: PROTOCOL, epoch, lane, first, sent_at, goodbye: false, start, records });
    if body.len() > MAX_COMPRESSED_BYTES { Err(Unsendable::TooLarge) } else { Ok(body) }
}

fn compress(batch: &Batch<'_>) -> Vec<u8> {
    let text = serde_json::to_vec(batch).expect("a batch has no key that is not a text");
    zstd::bulk::compress(&text, 1).expect("zstd fails for want of memory only")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tickbird_shared::batch::{Loss, LossOutcome};
    use tickbird_shared::start::{EarlierStart, MAX_EARLIER};
    use tickbird_shared::{Epoch, Start, StartWord};

    fn epoch() -> Epoch {
        Epoch::try_from("01JD7Z5W0000000000000000AA".to_owned()).expect("a ULID")
    }

    fn text(body: &[u8]) -> String {
        String::from_utf8(zstd::bulk::decompress(body, 1 << 20).expect("zstd")).expect("text")
    }

    #[test]
    fn records_stay_as_they_are_and_losses_take_their_place() {
        let loss = Loss { lane: Lane::Bulk, from: 6, to: 9, count: 4, outcome: LossOutcome::Evicted };
        let items =
            vec![Item::Record(br#"{"summary":{"x": 1e3}}"#.to_vec()), Item::Loss(loss), Item::Record(b"{}".to_vec())];
        let stored = Stored { epoch: epoch(), start: None, lane: Lane::Bulk, first: 5, items, is_volatile: false };
        assert_eq!(stored.through(), 10);
        let body = full(&stored, Timestamp::UNIX_EPOCH).expect("sendable");
        let expected = r#""records":[{"summary":{"x": 1e3}},{"loss":{"lane":"bulk","from":6,"to":9,"count":4,"outcome":"evicted"}},{}]}"#;
        assert!(text(&body).ends_with(expected), "{}", text(&body));
    }

    #[test]
    fn what_is_not_json_is_named_by_its_sequence() {
        let loss = Loss { lane: Lane::Bulk, from: 5, to: 9, count: 5, outcome: LossOutcome::Evicted };
        let stored = Stored {
            epoch: epoch(),
            start: None,
            lane: Lane::Bulk,
            first: 5,
            items: vec![Item::Loss(loss), Item::Record(b"{".to_vec())],
            is_volatile: false,
        };
        assert_eq!(full(&stored, Timestamp::UNIX_EPOCH), Err(Unsendable::NotJson { sequence: 10 }));
    }

    #[test]
    fn a_heartbeat_is_small_and_a_goodbye_says_so() {
        let random = |n: u64| StartWord::new((n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let before = (0..MAX_EARLIER as u64).map(|n| EarlierStart { word: random(n), opened: 90_000 - 2_345 * n });
        let start = Start { number: 100, word: random(99), opened: 99_999, before: before.collect() };
        let standing = |start| Standing { epoch: epoch(), start, first: 100_007, is_volatile: false };
        let sent = |start, goodbye| empty(&standing(start), Lane::Urgent, Timestamp::UNIX_EPOCH, goodbye);
        let heartbeat = sent(None, false);
        assert!(heartbeat.len() < 200 && !text(&heartbeat).contains("goodbye"));
        let with_start = sent(Some(start), false);
        assert!(with_start.len() < 600, "{}", with_start.len());
        assert!(text(&sent(None, true)).contains(r#""goodbye":true"#));
    }
}
