//! A body into rows: bounded while it grows, and one record that cannot be read is refused alone.

use std::borrow::Cow;
use std::io::Read;

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tickbird_shared::batch::{Inventory, Loss, Open, Record, Recording, Summary};
use tickbird_shared::levels::Levels;
use tickbird_shared::protocol::{
    MAX_DECOMPRESSED_BYTES, MAX_FIRING, MAX_KEY_BYTES, MAX_LABEL_BYTES, MAX_RECORDS, MAX_WINDOW_LOG, PROTOCOL,
};
use tickbird_shared::{Batch, Finding, Fingerprint, Timestamp};

use crate::ledger::{AgentKey, Content, Incoming, Numbered};
use crate::store::{FindingRow, LevelsRow, LossRow};

use super::IngestError;

/// Most checks of one open list, and most targets of one inventory: what one agent may have.
const MAX_NAMES: usize = 2_000;
/// Largest recording, in bytes of JSON: five minutes of some hundred measures.
const MAX_RECORDING_BYTES: usize = 512 << 10;
/// Highest sequence: the store's integers are signed.
const MAX_SEQUENCE: u64 = i64::MAX as u64 - 1;

/// How a body came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Plain,
    Zstd,
}

/// The text of a body of at most `limit` bytes; never more than that is kept while finding that it is too large.
pub(super) fn decompress(body: &[u8], encoding: Encoding, limit: usize) -> Result<Cow<'_, [u8]>, IngestError> {
    if encoding == Encoding::Plain {
        return if body.len() > limit { Err(IngestError::TooLarge) } else { Ok(Cow::Borrowed(body)) };
    }
    let mut decoder = zstd::stream::read::Decoder::with_buffer(body).map_err(|_| IngestError::Zstd)?;
    decoder.window_log_max(MAX_WINDOW_LOG).map_err(|_| IngestError::Zstd)?;
    let mut text = Vec::with_capacity((body.len() * 8).min(limit));
    decoder.take(limit as u64 + 1).read_to_end(&mut text).map_err(|_| IngestError::Zstd)?;
    if text.len() > limit { Err(IngestError::TooLarge) } else { Ok(Cow::Owned(text)) }
}

/// A batch in rows.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) incoming: Incoming,
    /// The place of each summary in the batch, and the name of its series.
    pub(super) series: Vec<(usize, u64)>,
}

/// The rows of a batch, its sequences counted out. `agent` is the certificate's; the body names nobody. `limit` bounds
/// the text as [`decompress`] does. `series` names the series of a target and a measure.
pub(super) fn decode(
    agent: &AgentKey,
    body: &[u8],
    encoding: Encoding,
    limit: usize,
    received_at: Timestamp,
    series: impl Fn(&str, &str) -> u64,
) -> Result<Decoded, IngestError> {
    let text = decompress(body, encoding, limit)?;
    let batch: Batch<'_> = serde_json::from_slice(&text).map_err(|e| IngestError::Malformed(e.to_string()))?;
    if batch.protocol != PROTOCOL {
        return Err(IngestError::Protocol(batch.protocol));
    }
    if batch.records.len() > MAX_RECORDS {
        return Err(IngestError::TooManyRecords);
    }
    if batch.first == 0 || batch.first > MAX_SEQUENCE {
        return Err(IngestError::Malformed("`first` counts from 1".into()));
    }
    if batch.start.as_ref().is_some_and(|start| !start.is_sound()) {
        return Err(IngestError::Malformed("`start` has a number out of its bounds".into()));
    }
    let (reader, mut named) = (Reader { agent, batch: &batch, received_at }, Vec::new());
    let (mut seq, mut digest, mut keep_body) = (batch.first, Sha256::new(), false);
    let mut records: Vec<Numbered> = Vec::with_capacity(batch.records.len());
    for raw in &batch.records {
        digest.update(raw.get());
        digest.update([0]);
        let mut name = |summary: &Summary<'_>| {
            named.push((records.len(), series(&summary.target, &summary.measure)));
        };
        let content = reader.read(raw, seq, &mut name).unwrap_or_else(Content::Refused);
        let width = match &content {
            Content::Loss(loss) => loss.to - loss.from + 1,
            _ => 1,
        };
        keep_body |= matches!(content, Content::InBody);
        records.push(Numbered { seq, width, content });
        seq = seq
            .checked_add(width)
            .filter(|next| *next <= MAX_SEQUENCE)
            .ok_or_else(|| IngestError::Malformed("the sequences run over their end".into()))?;
    }
    let text_bytes = text.len();
    let Batch { epoch, lane, first, sent_at, goodbye, start, .. } = batch;
    let body = match (keep_body, encoding) {
        (false, _) => Vec::new(),
        (true, Encoding::Zstd) => body.to_vec(),
        (true, Encoding::Plain) => zstd::bulk::compress(&text, 1).map_err(|_| IngestError::Zstd)?,
    };
    let incoming = Incoming {
        tenant: agent.tenant.as_ref().to_owned(),
        agent: agent.id.as_ref().to_owned(),
        epoch,
        lane,
        first,
        sent_at,
        goodbye,
        start,
        received_at,
        records,
        digest: digest.finalize().into(),
        body,
        text_bytes,
    };
    Ok(Decoded { incoming, series: named })
}

/// A body as it is stored, without the records at these places: nothing is in their stead, so that the others keep theirs.
pub(super) fn blank(body: &[u8], places: &[usize]) -> Result<Vec<u8>, IngestError> {
    let text = decompress(body, Encoding::Zstd, MAX_DECOMPRESSED_BYTES)?;
    let unreadable = |error: serde_json::Error| IngestError::Malformed(error.to_string());
    let mut batch: Batch<'_> = serde_json::from_slice(&text).map_err(unreadable)?;
    let nothing: &RawValue = serde_json::from_str("null").map_err(unreadable)?;
    for place in places {
        if let Some(record) = batch.records.get_mut(*place) {
            *record = nothing;
        }
    }
    let text = serde_json::to_vec(&batch).map_err(unreadable)?;
    zstd::bulk::compress(&text, 1).map_err(|_| IngestError::Zstd)
}

/// What one record of a batch is read against.
struct Reader<'a> {
    agent: &'a AgentKey,
    batch: &'a Batch<'a>,
    received_at: Timestamp,
}

impl Reader<'_> {
    /// What a record says, or the code that refuses it. Every type of record bounds its own depth, and evidence is
    /// looked into by [`Finding::fault`].
    fn read(&self, raw: &RawValue, seq: u64, name: &mut impl FnMut(&Summary<'_>)) -> Result<Content, &'static str> {
        match serde_json::from_str(raw.get()).map_err(|_| "malformed")? {
            Record::Finding(finding) => self.finding(finding),
            Record::Open(open) => of_open(open),
            Record::Loss(loss) => self.loss(loss, seq),
            Record::Summary(summary) => of_summary(&summary).inspect(|_| name(&summary)),
            Record::Inventory(inventory) => of_inventory(inventory),
            Record::Recording(recording) => of_recording(&recording, raw.get().len()),
            Record::Levels(levels) => self.levels(levels),
        }
    }

    fn finding(&self, it: Finding<'_>) -> Result<Content, &'static str> {
        if let Some(code) = it.fault() {
            return Err(code);
        }
        let agent = self.agent;
        let expected = Fingerprint::of(&agent.tenant, &agent.id, &it.check, &it.target, it.sub_key.as_deref());
        if it.fingerprint != expected {
            return Err("fingerprint_mismatch");
        }
        Ok(Content::Finding(Box::new(FindingRow {
            id: 0,
            tenant: agent.tenant.as_ref().to_owned(),
            agent: agent.id.as_ref().to_owned(),
            fingerprint: it.fingerprint,
            check: it.check.into_owned(),
            target: it.target.into_owned(),
            sub_key: it.sub_key.map(Cow::into_owned),
            status: it.status,
            severity: it.severity,
            change: it.change,
            summary: it.summary.into_owned(),
            reason: it.reason.into_owned(),
            advice: it.advice.map(Cow::into_owned),
            evidence: it.evidence.get().to_owned(),
            since: it.since,
            observed_at: it.observed_at,
            received_at: self.received_at,
            incident: None,
        })))
    }

    fn levels(&self, levels: Levels) -> Result<Content, &'static str> {
        if let Some(code) = levels.fault() {
            return Err(code);
        }
        Ok(Content::Levels(Box::new(LevelsRow {
            tenant: self.agent.tenant.as_ref().to_owned(),
            agent: self.agent.id.as_ref().to_owned(),
            epoch: self.batch.epoch.clone(),
            seen_at: self.received_at,
            received_at: self.received_at,
            levels,
        })))
    }

    fn loss(&self, loss: Loss, seq: u64) -> Result<Content, &'static str> {
        let fits = loss.lane == self.batch.lane && loss.from == seq && (seq..=MAX_SEQUENCE).contains(&loss.to);
        if !fits || loss.count > loss.to - loss.from + 1 {
            return Err("loss_mismatch");
        }
        Ok(Content::Loss(LossRow {
            tenant: self.agent.tenant.as_ref().to_owned(),
            agent: self.agent.id.as_ref().to_owned(),
            epoch: self.batch.epoch.clone(),
            lane: loss.lane,
            from: loss.from,
            to: loss.to,
            count: loss.count,
            outcome: match loss.outcome {
                tickbird_shared::batch::LossOutcome::Evicted => "evicted".into(),
                tickbird_shared::batch::LossOutcome::Quarantined => "quarantined".into(),
            },
            received_at: self.received_at,
        }))
    }
}

fn of_open(open: Open) -> Result<Content, &'static str> {
    if open.checks.len() > MAX_NAMES || open.firing.len() > MAX_FIRING {
        return Err("too_many");
    }
    within(MAX_KEY_BYTES, open.checks.iter())?;
    Ok(Content::Open(open))
}

fn of_summary(summary: &Summary<'_>) -> Result<Content, &'static str> {
    within(MAX_KEY_BYTES, [&summary.measure, &summary.unit, &summary.target])?;
    Ok(Content::InBody)
}

fn of_inventory(inventory: Inventory) -> Result<Content, &'static str> {
    if inventory.targets.len() > MAX_NAMES {
        return Err("too_many");
    }
    within(MAX_KEY_BYTES, inventory.targets.iter())?;
    within(MAX_LABEL_BYTES, [&inventory.version, &inventory.host, &inventory.system])?;
    Ok(Content::Inventory(Box::new(inventory)))
}

fn of_recording(recording: &Recording<'_>, bytes: usize) -> Result<Content, &'static str> {
    if bytes > MAX_RECORDING_BYTES {
        return Err("recording_too_large");
    }
    within(MAX_KEY_BYTES, [&recording.target])?;
    Ok(Content::InBody)
}

fn within<T: AsRef<str>>(limit: usize, texts: impl IntoIterator<Item = T>) -> Result<(), &'static str> {
    if texts.into_iter().any(|text| text.as_ref().len() > limit) { Err("key_too_long") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tickbird_shared::Lane;

    const RECORDED: &str = include_str!("../../../shared/testdata/wire/protocol-1.json");

    fn agent() -> AgentKey {
        AgentKey::new("default", "a-1")
    }

    fn plain(text: &str) -> Result<Incoming, IngestError> {
        read(text.as_bytes(), Encoding::Plain).map(|decoded| decoded.incoming)
    }

    fn read(bytes: &[u8], encoding: Encoding) -> Result<Decoded, IngestError> {
        let length = |target: &str, measure: &str| (target.len() + measure.len()) as u64;
        decode(&agent(), bytes, encoding, MAX_DECOMPRESSED_BYTES, Timestamp::UNIX_EPOCH, length)
    }

    fn batch(records: &str) -> String {
        let envelope = r#""protocol":1,"epoch":"01JD7Z5W0000000000000000AA","lane":"urgent","first":7,"sent_at":"2026-11-20T10:00:05Z""#;
        format!("{{{envelope},\"records\":[{records}]}}")
    }

    fn finding(evidence: &str) -> String {
        let fingerprint = Fingerprint::of("default", "a-1", "pool.leak", "shop", None);
        format!(
            r#"{{"finding":{{"fingerprint":"{fingerprint}","check":"pool.leak","target":"shop","status":"firing","severity":"warning","change":"began","summary":"s","reason":"r","evidence":{evidence},"since":"2026-11-20T10:00:00Z","observed_at":"2026-11-20T10:00:00Z"}}}}"#
        )
    }

    fn codes(incoming: &Incoming) -> Vec<(u64, &'static str)> {
        let code = |record: &Numbered| match &record.content {
            Content::Refused(code) => (record.seq, *code),
            Content::Finding(_) => (record.seq, "finding"),
            Content::Loss(_) => (record.seq, "loss"),
            Content::Open(_) => (record.seq, "open"),
            Content::Inventory(_) => (record.seq, "inventory"),
            Content::InBody => (record.seq, "in body"),
            Content::Levels(_) => (record.seq, "levels"),
        };
        incoming.records.iter().map(code).collect()
    }

    #[test]
    fn the_recorded_batch_is_read_and_the_finding_of_another_agent_in_it_refused() {
        let incoming = plain(RECORDED).expect("reads");
        let expected = [
            (4711, "fingerprint_mismatch"),
            (4712, "open"),
            (4713, "loss"),
            (4813, "in body"),
            (4814, "inventory"),
            (4815, "in body"),
        ];
        assert_eq!(codes(&incoming), expected);
        let kept = decompress(&incoming.body, Encoding::Zstd, MAX_DECOMPRESSED_BYTES).expect("the kept body is zstd");
        assert_eq!(kept.as_ref(), RECORDED.as_bytes());
    }

    #[test]
    fn a_series_over_the_bound_is_not_in_what_is_stored() {
        let decoded = read(RECORDED.as_bytes(), Encoding::Plain).expect("reads");
        let [(place, _)] = decoded.series[..] else { panic!("one summary: {:?}", decoded.series) };
        assert_eq!(place, 3);
        let kept = blank(&decoded.incoming.body, &[place]).expect("is zstd");
        let text = decompress(&kept, Encoding::Zstd, MAX_DECOMPRESSED_BYTES).expect("is zstd");
        let (before, after): (Batch<'_>, Batch<'_>) =
            (serde_json::from_str(RECORDED).expect("reads"), serde_json::from_slice(&text).expect("reads"));
        assert_eq!(before.records.len(), after.records.len());
        for (index, (before, after)) in before.records.iter().zip(&after.records).enumerate() {
            assert_eq!(after.get(), if index == place { "null" } else { before.get() });
        }
    }

    #[test]
    fn levels_are_read_and_those_of_a_later_form_refused() {
        let recorded = include_str!("../../../shared/testdata/wire/protocol-1-levels.json");
        assert_eq!(codes(&plain(recorded).expect("reads")), [(9001, "levels")]);
        let later = recorded.replace("\"form\":1", "\"form\":2");
        assert_eq!(codes(&plain(&later).expect("reads")), [(9001, "unknown_form")]);
    }

    #[test]
    fn one_poisoned_record_is_refused_alone() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(40), "]".repeat(40));
        let large = format!("{{\"a\":\"{}\"}}", "x".repeat(9_000));
        let poison = [r#"{"finding":{}}"#, "7", r#"{"later":{}}"#, &finding(&deep), &finding(&large), &finding("[]")];
        let records = [&finding("{}")[..], &poison.join(","), &finding("{\"pid\":1}")].join(",");
        let expected = [
            (7, "finding"),
            (8, "malformed"),
            (9, "malformed"),
            (10, "malformed"),
            (11, "evidence_not_an_object"),
            (12, "evidence_too_large"),
            (13, "evidence_not_an_object"),
            (14, "finding"),
        ];
        assert_eq!(codes(&plain(&batch(&records)).expect("reads")), expected);
    }

    #[test]
    fn a_loss_takes_its_range_and_one_that_lies_takes_one_sequence() {
        let loss = |lane: &str, from: u64, to: u64, count: u64| {
            format!(r#"{{"loss":{{"lane":"{lane}","from":{from},"to":{to},"count":{count},"outcome":"evicted"}}}}"#)
        };
        let records = [
            loss("urgent", 7, 9, 3),
            loss("bulk", 10, 12, 3),
            loss("urgent", 11, 5, 1),
            loss("urgent", 12, 13, 9),
            loss("urgent", 13, u64::MAX, 1),
        ];
        let expected =
            [(7, "loss"), (10, "loss_mismatch"), (11, "loss_mismatch"), (12, "loss_mismatch"), (13, "loss_mismatch")];
        let incoming = plain(&batch(&records.join(","))).expect("reads");
        assert_eq!(codes(&incoming), expected);
        assert_eq!(incoming.lane, Lane::Urgent);
    }

    #[test]
    fn a_bomb_is_refused_while_it_grows() {
        let bomb = zstd::bulk::compress(&vec![b' '; MAX_DECOMPRESSED_BYTES + 1], 1).expect("compresses");
        assert!(bomb.len() < 10_000);
        assert_eq!(decompress(&bomb, Encoding::Zstd, MAX_DECOMPRESSED_BYTES), Err(IngestError::TooLarge));
        let fits = zstd::bulk::compress(&vec![b' '; MAX_DECOMPRESSED_BYTES], 1).expect("compresses");
        assert_eq!(
            decompress(&fits, Encoding::Zstd, MAX_DECOMPRESSED_BYTES).map(|text| text.len()),
            Ok(MAX_DECOMPRESSED_BYTES)
        );
    }

    #[test]
    fn a_window_over_the_bound_is_refused() {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).expect("makes one");
        encoder.window_log(MAX_WINDOW_LOG + 2).expect("a legal window");
        std::io::Write::write_all(&mut encoder, &vec![b' '; 64 << 20]).expect("compresses");
        let body = encoder.finish().expect("compresses");
        assert_eq!(decompress(&body, Encoding::Zstd, MAX_DECOMPRESSED_BYTES), Err(IngestError::Zstd));
    }

    #[test]
    fn the_envelope_is_refused_as_a_whole() {
        let too_many = batch(&vec!["1"; MAX_RECORDS + 1].join(","));
        assert_eq!(plain(&too_many).map(drop), Err(IngestError::TooManyRecords));
        let protocol = batch("").replace("\"protocol\":1", "\"protocol\":9");
        assert_eq!(plain(&protocol).map(drop), Err(IngestError::Protocol(9)));
        for (from, to) in
            [("\"first\":7", "\"first\":0"), ("\"first\":7", "\"first\":9223372036854775807"), ("lane", "lain")]
        {
            assert!(matches!(plain(&batch("1").replace(from, to)), Err(IngestError::Malformed(_))), "{to}");
        }
        assert!(matches!(plain(&"[".repeat(100_000)), Err(IngestError::Malformed(_))));
    }

    #[test]
    fn a_start_is_read_and_one_out_of_its_bounds_is_malformed() {
        let with = |number: u64, word: &str, opened: u64, earlier: usize| {
            let before = vec![r#"{"word":"60303ae22b998861","opened":4}"#; earlier].join(",");
            let start = format!(r#"{{"number":{number},"word":"{word}","opened":{opened},"before":[{before}]}}"#);
            plain(&batch("1").replace("\"first\":7", &format!("\"first\":7,\"start\":{start}")))
        };
        let word = "9f86d081884c7d65";
        let start = with(3, word, 6, 16).expect("reads").start.expect("is named");
        assert_eq!((start.number, start.word.to_string().as_str(), start.before.len()), (3, word, 16));
        assert_eq!(plain(&batch("1")).expect("reads").start, None);
        let wrong = [
            with(0, word, 6, 1),
            with(i64::MAX as u64, word, 6, 1),
            with(3, word, i64::MAX as u64, 1),
            with(3, word, 6, 17),
            with(3, "9F86D081884C7D65", 6, 1),
            with(3, "9f86", 6, 1),
        ];
        assert!(wrong.iter().all(|it| matches!(it, Err(IngestError::Malformed(_)))), "{wrong:?}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), zstd in any::<bool>()) {
            let encoding = if zstd { Encoding::Zstd } else { Encoding::Plain };
            let _ = read(&bytes, encoding);
        }

        #[test]
        fn no_damage_to_a_good_batch_panics(at in 0_usize..2_000, with in any::<u8>(), cut in 0_usize..2_000) {
            let mut bytes = RECORDED.as_bytes().to_vec();
            let (length, index) = (bytes.len(), at % bytes.len());
            bytes[index] = with;
            bytes.truncate(length - cut % length);
            let _ = read(&bytes, Encoding::Plain);
        }
    }
}
