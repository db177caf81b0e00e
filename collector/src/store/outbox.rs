//! Messages on their way to receivers.

use std::collections::BTreeMap;
use std::time::Duration;

use rusqlite::{OptionalExtension, Row, named_params};
use tickbird_shared::{Status, Timestamp};

use super::column::{At, Json, Seq};
use super::{DecisionRow, MessageState, OutboxRow, Rows, StoreError, Transaction, sums};

/// Whether a message of this kind says that what was told before is over.
fn is_end(kind: &str) -> bool {
    kind.ends_with(".resolved")
}

/// Lines of what was heard of a message's attempts.
const LINES: usize = 8;
/// Letters of one of them.
const LONGEST_LINE: usize = 300;

impl OutboxRow {
    /// Adds what came of one more attempt.
    pub fn hears(&mut self, words: &str) {
        let words: String = words.chars().map(|it| if it.is_control() { ' ' } else { it }).take(LONGEST_LINE).collect();
        let mut lines: Vec<_> = self.said.iter().flat_map(|it| it.lines()).map(str::to_owned).collect();
        match lines.last_mut() {
            Some(last) if apart(last).0 == words => {
                *last = format!("{words} ({} times)", apart(last).1.saturating_add(1));
            }
            Some(_) | None => lines.push(words),
        }
        let old = lines.len().saturating_sub(LINES);
        self.said = Some(lines[old..].join("\n"));
    }

    fn lines(&self) -> Vec<&str> {
        self.said.iter().flat_map(|it| it.lines()).collect()
    }

    /// The receiver's yes, where it is known.
    pub fn answer(&self) -> Option<&str> {
        self.lines().last().copied().filter(|_| self.state == MessageState::Delivered)
    }

    /// What the attempts that failed came to, the newest last.
    pub fn failures(&self) -> Vec<&str> {
        let mut lines = self.lines();
        if self.state == MessageState::Delivered {
            lines.pop();
        }
        lines
    }

    /// What the last attempt came to, of one that was not delivered.
    pub fn last_error(&self) -> Option<&str> {
        let last = self.lines().last().copied().filter(|_| self.state != MessageState::Delivered)?;
        Some(apart(last).0)
    }
}

/// The words of a line, and how often they were heard in a row.
fn apart(line: &str) -> (&str, u32) {
    let counted = line.strip_suffix(" times)").and_then(|it| it.rsplit_once(" ("));
    let counted = counted.and_then(|(words, times)| Some((words, times.parse().ok()?)));
    counted.unwrap_or((line, 1))
}

impl MessageState {
    /// The word in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delivered => "delivered",
            Self::Superseded => "superseded",
            Self::Dead => "dead",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::Waiting, Self::Delivered, Self::Superseded, Self::Dead].into_iter().find(|it| it.as_str() == word)
    }
}

impl Rows<'_> {
    /// What may be sent to one receiver now: waiting, due, and with no older message of its incident waiting before it,
    /// so that a receiver hears of one incident in order. In order of decision. What was never tried is due, whatever the
    /// clock said when it was decided; so is what waits for longer than `longest`, for no wait is: a clock that was ahead said
    /// so. What some of those behind the receiver have, by the ids `partly`, holds up only what they have, too.
    pub fn outbox_due(
        &self,
        receiver: &str,
        now: Timestamp,
        longest: Duration,
        limit: u32,
        partly: &[String],
    ) -> Result<Vec<OutboxRow>, StoreError> {
        let mut query = self.0.prepare_cached(
            "SELECT * FROM outbox AS it WHERE state = 'waiting' AND receiver = ?1 \
                 AND (attempts = 0 OR next_attempt_at <= ?2 OR next_attempt_at > ?4) \
                 AND NOT EXISTS (SELECT 1 FROM outbox AS older WHERE older.state = 'waiting' \
                     AND older.tenant = it.tenant AND older.receiver = it.receiver \
                     AND older.incident = it.incident AND older.id < it.id \
                     AND (older.id NOT IN (SELECT value FROM json_each(?5)) OR it.id IN (SELECT value FROM json_each(?5)))) \
             ORDER BY id LIMIT ?3",
        )?;
        let parameters = (receiver, At(now), limit, At(latest(now, longest)), Json(partly));
        Ok(query.query_map(parameters, read)?.collect::<Result<_, _>>()?)
    }

    /// Those of some messages, by their ids, that wait for a receiver.
    pub fn outbox_waits(&self, receiver: &str, ids: &[String]) -> Result<Vec<String>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut query = self.0.prepare_cached(
            "SELECT id FROM outbox WHERE receiver = ?1 AND state = 'waiting' AND id IN (SELECT value FROM json_each(?2))",
        )?;
        Ok(query.query_map((receiver, Json(ids)), |row| row.get(0))?.collect::<Result<_, _>>()?)
    }

    /// When the next message to one receiver falls due after `now`, if one waits.
    pub fn outbox_next_at(&self, receiver: &str, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        let mut query = self.0.prepare_cached(
            "SELECT min(next_attempt_at) FROM outbox \
             WHERE state = 'waiting' AND receiver = ?1 AND attempts > 0 AND next_attempt_at > ?2",
        )?;
        Ok(query.query_row((receiver, At(now)), |row| row.get::<_, Option<At>>(0))?.map(|at| at.0))
    }

    /// Messages decided before a moment that wait for receivers which are none of `configured`.
    pub fn outbox_strays(
        &self,
        configured: &[String],
        decided_before: Timestamp,
        limit: u32,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        let mut query = self.0.prepare_cached(
            "SELECT * FROM outbox WHERE state = 'waiting' AND decided_at < ?2 \
                 AND receiver NOT IN (SELECT value FROM json_each(?1)) ORDER BY id LIMIT ?3",
        )?;
        Ok(query.query_map((Json(configured), At(decided_before), limit), read)?.collect::<Result<_, _>>()?)
    }

    /// How many messages wait for one receiver, and when the oldest of them was decided.
    pub fn outbox_backlog(&self, receiver: &str) -> Result<(u64, Option<Timestamp>), StoreError> {
        let mut query = self
            .0
            .prepare_cached("SELECT count(*), min(decided_at) FROM outbox WHERE state = 'waiting' AND receiver = ?1")?;
        Ok(query
            .query_row([receiver], |row| Ok((row.get::<_, Seq>(0)?.0, row.get::<_, Option<At>>(1)?.map(|at| at.0))))?)
    }

    /// How many messages to one receiver were given up.
    pub fn outbox_dead(&self, receiver: &str) -> Result<u64, StoreError> {
        let mut query = self.0.prepare_cached("SELECT count(*) FROM outbox WHERE state = 'dead' AND receiver = ?1")?;
        Ok(query.query_row([receiver], |row| row.get::<_, Seq>(0))?.0)
    }

    /// All that wait, of every tenant, in order of decision.
    pub fn outbox_waiting(&self) -> Result<Vec<OutboxRow>, StoreError> {
        let mut query = self.0.prepare_cached("SELECT * FROM outbox WHERE state = 'waiting' ORDER BY id")?;
        Ok(query.query_map([], read)?.collect::<Result<_, _>>()?)
    }

    /// The greatest id of all messages that are kept, of every tenant.
    pub fn newest_message(&self) -> Result<Option<String>, StoreError> {
        Ok(self.0.query_row("SELECT max(id) FROM outbox", [], |row| row.get(0))?)
    }

    /// The messages of some decisions that are still kept, by their ids.
    pub fn messages_of(&self, decisions: &[DecisionRow]) -> Result<BTreeMap<String, OutboxRow>, StoreError> {
        let mut found = BTreeMap::new();
        for (tenant, id) in decisions.iter().filter_map(|it| Some((&it.tenant, it.message.as_ref()?))) {
            found.extend(self.message(tenant, id)?.map(|row| (id.clone(), row)));
        }
        Ok(found)
    }

    /// Messages of a tenant that were given up, of one receiver or of all, in order of decision.
    pub fn dead_letters(&self, tenant: &str, receiver: Option<&str>, limit: u32) -> Result<Vec<OutboxRow>, StoreError> {
        let mut query = self.0.prepare_cached(
            "SELECT * FROM outbox WHERE tenant = ?1 AND state = 'dead' AND (?2 IS NULL OR receiver = ?2) ORDER BY id LIMIT ?3",
        )?;
        Ok(query.query_map((tenant, receiver, limit), read)?.collect::<Result<_, _>>()?)
    }

    /// One message, if it is there.
    pub fn message(&self, tenant: &str, id: &str) -> Result<Option<OutboxRow>, StoreError> {
        let mut query = self.0.prepare_cached("SELECT * FROM outbox WHERE tenant = ?1 AND id = ?2")?;
        Ok(query.query_row([tenant, id], read).optional()?)
    }
}

/// What became of the wish to send a message again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resent {
    /// It waits.
    Waits,
    /// There is none of that id.
    Unknown,
    /// It was not given up.
    NotDead(MessageState),
    /// The receiver was told something newer of the same incident, or is about to be.
    Followed(String),
    /// What it says is true no more. The message that says so, where it was given up as well.
    Outdated(Option<String>),
}

/// What is due later was never decided by a clock that goes as this one.
fn latest(now: Timestamp, longest: Duration) -> Timestamp {
    now.saturating_add(longest).unwrap_or(Timestamp::MAX)
}

impl Transaction<'_> {
    /// Queues a message.
    pub fn add_message(&self, message: &OutboxRow) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached(
                "INSERT INTO outbox (tenant, id, receiver, incident, kind, form, body, decided_at, state, attempts, \
                 uncertain, next_attempt_at, settled_at, last_error) \
                 VALUES (:tenant, :id, :receiver, :incident, :kind, :form, :body, :decided_at, :state, :attempts, \
                 :uncertain, :next_attempt_at, :settled_at, :last_error)",
            )?
            .execute(named_params! {
                ":tenant": message.tenant,
                ":id": message.id,
                ":receiver": message.receiver,
                ":incident": message.incident,
                ":kind": message.kind,
                ":form": message.form,
                ":body": message.body,
                ":decided_at": At(message.decided_at),
                ":state": message.state.as_str(),
                ":attempts": message.attempts,
                ":uncertain": message.uncertain,
                ":next_attempt_at": At(message.next_attempt_at),
                ":settled_at": message.settled_at.map(At),
                ":last_error": message.said,
            })?;
        Ok(())
    }

    /// Writes what an attempt changed; the bytes of a message never change.
    pub fn update_message(&self, message: &OutboxRow) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached(
                "UPDATE outbox SET state = :state, attempts = :attempts, uncertain = :uncertain, \
                 next_attempt_at = :next_attempt_at, settled_at = :settled_at, last_error = :last_error \
                 WHERE tenant = :tenant AND id = :id",
            )?
            .execute(named_params! {
                ":tenant": message.tenant,
                ":id": message.id,
                ":state": message.state.as_str(),
                ":attempts": message.attempts,
                ":uncertain": message.uncertain,
                ":next_attempt_at": At(message.next_attempt_at),
                ":settled_at": message.settled_at.map(At),
                ":last_error": message.said,
            })?;
        Ok(())
    }

    /// Lets a message wait again that was given up; its id and its bytes stay.
    pub fn resend(&self, tenant: &str, id: &str, now: Timestamp) -> Result<Resent, StoreError> {
        let Some(mut message) = self.rows().message(tenant, id)? else { return Ok(Resent::Unknown) };
        if message.state != MessageState::Dead {
            return Ok(Resent::NotDead(message.state));
        }
        let mut newer = self.connection().prepare_cached(
            "SELECT id FROM outbox WHERE tenant = ?1 AND receiver = ?2 AND incident = ?3 AND id > ?4 \
                 AND state IN ('delivered', 'waiting') ORDER BY id LIMIT 1",
        )?;
        let key = (tenant, &message.receiver, &message.incident, id);
        if let Some(newer) = newer.query_row(key, |row| row.get(0)).optional()? {
            return Ok(Resent::Followed(newer));
        }
        let mut newest = self.connection().prepare_cached(
            "SELECT id, kind FROM outbox WHERE tenant = ?1 AND receiver = ?2 AND incident = ?3 AND id > ?4 \
                 AND state = 'dead' ORDER BY id DESC LIMIT 1",
        )?;
        let newest = newest.query_row(key, |row| Ok((row.get(0)?, row.get::<_, String>(1)?))).optional()?;
        if let Some((newest, _)) = newest.filter(|(_, kind)| is_end(kind) != is_end(&message.kind)) {
            return Ok(Resent::Outdated(Some(newest)));
        }
        let incident = self.rows().incident(tenant, &message.incident)?;
        if incident.is_some_and(|it| (it.status == Status::Resolved) != is_end(&message.kind)) {
            return Ok(Resent::Outdated(None));
        }
        // A group is there while something of it fires, or waits to be told.
        let is_of_group = message.kind.starts_with("group.") && !is_end(&message.kind);
        if is_of_group && self.rows().group(tenant, &message.incident)?.is_none() {
            return Ok(Resent::Outdated(None));
        }
        message.state = MessageState::Waiting;
        message.next_attempt_at = now;
        message.settled_at = None;
        self.update_message(&message)?;
        Ok(Resent::Waits)
    }

    /// Marks a message that was never attempted as superseded; false when it was attempted or has ended.
    pub fn supersede_message(&self, tenant: &str, id: &str, now: Timestamp) -> Result<bool, StoreError> {
        let changed = self
            .connection()
            .prepare_cached(
                "UPDATE outbox SET state = 'superseded', settled_at = ?3 \
                 WHERE tenant = ?1 AND id = ?2 AND state = 'waiting' AND uncertain = 0",
            )?
            .execute((tenant, id, At(now)))?;
        Ok(changed > 0)
    }
}

impl Transaction<'_> {
    /// Takes out what waits about no incident but always about this same thing: of a tenant, or of all. Also what may have been heard: it is
    /// told anew with the next one.
    pub fn supersede_all_of(&self, tenant: Option<&str>, incident: &str, now: Timestamp) -> Result<(), StoreError> {
        let all = "UPDATE outbox SET state = 'superseded', settled_at = ?1 WHERE state = 'waiting' AND incident = ?2";
        match tenant {
            None => self.connection().prepare_cached(all)?.execute((At(now), incident))?,
            Some(tenant) => {
                let statement = format!("{all} AND tenant = ?3");
                self.connection().prepare_cached(&statement)?.execute((At(now), incident, tenant))?
            }
        };
        Ok(())
    }

    /// Deletes a message that does not wait.
    pub fn delete_message(&self, tenant: &str, id: &str) -> Result<(), StoreError> {
        let mut delete = self
            .connection()
            .prepare_cached("DELETE FROM outbox WHERE tenant = ?1 AND id = ?2 AND state <> 'waiting'")?;
        delete.execute((tenant, id))?;
        Ok(())
    }
}

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<OutboxRow> {
    sums::check("outbox", row)?;
    let state: String = row.get("state")?;
    let state = MessageState::from_word(&state).ok_or_else(|| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, "not a state of a message".into())
    })?;
    Ok(OutboxRow {
        tenant: row.get("tenant")?,
        id: row.get("id")?,
        receiver: row.get("receiver")?,
        incident: row.get("incident")?,
        kind: row.get("kind")?,
        // An older schema has no such column.
        form: if row.as_ref().column_index("form").is_ok() { row.get("form")? } else { None },
        body: row.get("body")?,
        decided_at: row.get::<_, At>("decided_at")?.0,
        state,
        attempts: row.get("attempts")?,
        uncertain: row.get("uncertain")?,
        next_attempt_at: row.get::<_, At>("next_attempt_at")?.0,
        settled_at: row.get::<_, Option<At>>("settled_at")?.map(|at| at.0),
        said: row.get("last_error")?,
    })
}
