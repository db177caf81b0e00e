//! Where records go that were decided: to the buffer's disk, and what matters most to its memory when that takes nothing.

use std::borrow::Cow;

use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};
use tickbird_shared::batch::Record;
use tickbird_shared::protocol::MAX_EVIDENCE_BYTES;
use tickbird_shared::{Change, Finding, Lane, Severity};

use super::{AFTER_LOSS, Watcher};
use crate::buffer::BufferError;

/// Findings of one append when all that fire are said again: their evidence may be long, and an append is bounded.
const TOLD_AT_ONCE: usize = 100;

impl Watcher {
    /// Whether they survive this process from now on; without a collector nothing has to.
    pub(super) async fn append(&mut self, lane: Lane, records: impl IntoIterator<Item = Record<'static>>) -> bool {
        let Some(shipping) = &self.shipping else { return true };
        let encoded: Vec<Vec<u8>> = records.into_iter().filter_map(|record| serde_json::to_vec(&record).ok()).collect();
        if encoded.is_empty() {
            return true;
        }
        let count = encoded.len() as u64;
        let appended = shipping.buffer.append(lane, encoded).await;
        let is_loss = lane == Lane::Urgent
            && match &appended {
                Ok(it) => std::mem::replace(&mut self.evicted, it.evicted) < it.evicted,
                Err(_) => true,
            };
        if is_loss {
            self.note_loss();
        }
        if let Err(error) = &appended {
            self.not_taken(error, lane, count);
        }
        appended.is_ok()
    }

    /// Says once more what fires, for whoever has lost it. As a beginning: who knows of it takes that for an agent that
    /// started anew, and tells nobody. What is not taken comes with the next change, or after the next loss.
    pub(super) async fn tell_again(&mut self) {
        let firing = self.judge.firing();
        let Some(shipping) = &self.shipping else { return };
        for some in firing.chunks(TOLD_AT_ONCE) {
            let anew = some.iter().cloned().map(|it| match it.change {
                Change::EvidenceLost => it,
                _ => Finding { change: Change::Began, ..it },
            });
            let encoded = anew.filter_map(|it| serde_json::to_vec(&Record::Finding(it)).ok()).collect();
            if let Err(error) = shipping.buffer.append(Lane::Urgent, encoded).await {
                tracing::warn!(error = error.chain(), "what still fires could not be said again");
                return;
            }
        }
    }

    /// Findings were lost: what still fires, and a list of it, say what holds, once for all that are lost within a minute.
    pub(super) fn note_loss(&mut self) {
        self.has_lost = true;
        self.open_due = self.open_due.min(self.clock.now() + AFTER_LOSS);
    }

    fn not_taken(&mut self, error: &BufferError, lane: Lane, count: u64) {
        self.unbuffered += count;
        let now = self.clock.now();
        // Once a minute: a full disk is not made emptier by a full log.
        if self.refused_said.is_none_or(|said| now >= said + AFTER_LOSS) {
            self.refused_said = Some(now);
            let error = error.chain();
            tracing::error!(error, %lane, count, refused = self.unbuffered, "records could not be buffered");
        }
    }

    /// Keeps critical findings in memory, to be sent from there. The next open list makes up for the rest.
    pub(super) async fn hold(&mut self, findings: Vec<Finding<'static>>) {
        let Some(shipping) = &self.shipping else { return };
        let critical = findings.into_iter().filter(|it| it.severity == Severity::Critical).map(marked);
        let encoded: Vec<_> = critical.filter_map(|it| serde_json::to_vec(&Record::Finding(it)).ok()).collect();
        if encoded.is_empty() {
            return;
        }
        let count = encoded.len() as u64;
        match shipping.buffer.hold(encoded).await {
            Ok(held) => {
                self.held += held;
                if held < count {
                    tracing::error!(lost = count - held, "more critical findings than are held in memory");
                }
            }
            Err(error) => tracing::error!(%error, lost = count, "critical findings could not be held in memory"),
        }
    }
}

/// The finding with `"volatile": true` in its evidence, unless there is no room for a word more.
fn marked(finding: Finding<'static>) -> Finding<'static> {
    match with_mark(&finding.evidence) {
        Some(evidence) => Finding { evidence: Cow::Owned(evidence), ..finding },
        None => finding,
    }
}

fn with_mark(evidence: &RawValue) -> Option<Box<RawValue>> {
    let mut object: Map<String, Value> = serde_json::from_str(evidence.get()).ok()?;
    object.insert("volatile".to_owned(), Value::Bool(true));
    to_raw_value(&object).ok().filter(|it| it.get().len() <= MAX_EVIDENCE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: String) -> Box<RawValue> {
        RawValue::from_string(text).expect("JSON")
    }

    #[test]
    fn evidence_keeps_what_it_says_and_never_outgrows_its_bound() {
        let marked = with_mark(&raw(r#"{"pid":4121,"held":[1,2]}"#.to_owned())).expect("has room");
        let value: Value = serde_json::from_str(marked.get()).expect("JSON");
        assert_eq!(value, serde_json::json!({ "pid": 4121, "held": [1, 2], "volatile": true }));
        let full = format!(r#"{{"text":"{}"}}"#, "a".repeat(MAX_EVIDENCE_BYTES - 11));
        assert_eq!(full.len(), MAX_EVIDENCE_BYTES);
        assert!(with_mark(&raw(full)).is_none());
    }
}
