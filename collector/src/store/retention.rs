//! How long and how much is kept: slices of the oldest go, so that no commit waits for long.
//!
//! Never deleted: an incident that fires, a message that waits, a silence or an acknowledgement whose end was not noticed, an agent, a token.

use std::time::Duration;

use tickbird_shared::Timestamp;

use super::column::At;
use super::{Rows, StoreError, Transaction};

/// Most rows that one slice deletes: some 10 ms of the writer.
const SLICE: u32 = 5_000;
/// How long a lane that is not used any more is remembered: longer than an expired certificate may still renew.
const LANES: Duration = Duration::from_secs(180 * 24 * 3600);

/// Levels that nobody told anew for so long are of an agent that is gone.
const LEVELS: Duration = Duration::from_secs(24 * 3600);
/// How long the daily use of pools is kept: reports look back a month at most.
const USE: Duration = Duration::from_secs(35 * 24 * 3600);

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Age at which findings, losses and settled messages go.
    pub findings: Duration,
    /// Age, since they were resolved, at which incidents go with their decisions.
    pub incidents: Duration,
    /// Age at which bodies with summaries go.
    pub summaries: Duration,
    /// Bytes in use at which the oldest go before their time: bodies first, then findings, then resolved incidents.
    pub bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 24 * 3600);
        Self { findings: days(30), incidents: days(365), summaries: days(7), bytes: 10 << 30 }
    }
}

/// What one slice did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Rows that went because of their age.
    pub expired: u64,
    /// Rows that went before their time, because of the bound on bytes.
    pub evicted: u64,
    /// There is more to delete.
    pub more: bool,
}

impl Rows<'_> {
    /// Bytes of the file that hold something.
    pub fn bytes_in_use(&self) -> Result<u64, StoreError> {
        let read = |pragma: &str| self.0.query_row(pragma, [], |row| row.get::<_, i64>(0));
        let pages = read("PRAGMA page_count")?.saturating_sub(read("PRAGMA freelist_count")?);
        Ok(pages.saturating_mul(read("PRAGMA page_size")?).unsigned_abs())
    }
}

impl Transaction<'_> {
    /// Deletes at most a slice of each table of what is too old, then, over the bound, a slice of the oldest.
    pub fn keep_within(&self, bounds: &Bounds, now: Timestamp) -> Result<Kept, StoreError> {
        let before = |age: Duration| At(now.saturating_sub(age).unwrap_or(Timestamp::MIN));
        let mut kept = Kept::default();
        let by_age = [
            (BODIES_BEFORE, before(bounds.summaries)),
            (FINDINGS_BEFORE, before(bounds.findings)),
            (LOSSES_BEFORE, before(bounds.findings)),
            (MESSAGES_BEFORE, before(bounds.findings)),
            (DECISIONS_BEFORE, before(bounds.incidents)),
            (WITHHELD_BEFORE, before(bounds.incidents)),
            (LANES_BEFORE, before(LANES)),
            (LEVELS_BEFORE, before(LEVELS)),
            (DEPENDENCIES_BEFORE, before(LEVELS)),
            (USE_BEFORE, before(USE)),
            (SILENCES_BEFORE, before(bounds.incidents)),
            (ACKNOWLEDGEMENTS_BEFORE, before(bounds.incidents)),
        ];
        for (statement, cutoff) in by_age {
            let gone = self.connection().prepare_cached(statement)?.execute((cutoff, SLICE))?;
            kept.expired += gone as u64;
            kept.more |= gone as u32 >= SLICE;
        }
        // Only after its decisions, so that none is left without its incident.
        let incidents =
            self.connection().prepare_cached(INCIDENTS_BEFORE)?.execute((before(bounds.incidents), SLICE))?;
        kept.expired += incidents as u64;
        kept.more |= incidents as u32 >= SLICE;

        if self.rows().bytes_in_use()? > bounds.bytes {
            let oldest = At(Timestamp::MAX);
            for statement in [BODIES_BEFORE, FINDINGS_BEFORE, DECISIONS_BEFORE, INCIDENTS_BEFORE] {
                let gone = self.connection().prepare_cached(statement)?.execute((oldest, SLICE))?;
                kept.evicted += gone as u64;
                if gone > 0 {
                    kept.more = true;
                    break;
                }
            }
        }
        Ok(kept)
    }
}

// Ids count up with the time of receipt, so the oldest are the first rows of the table.
const BODIES_BEFORE: &str =
    "DELETE FROM bodies WHERE id IN (SELECT id FROM bodies ORDER BY id LIMIT ?2) AND received_at < ?1";
const FINDINGS_BEFORE: &str =
    "DELETE FROM findings WHERE id IN (SELECT id FROM findings ORDER BY id LIMIT ?2) AND received_at < ?1";
const LOSSES_BEFORE: &str = "DELETE FROM losses WHERE (tenant, agent, epoch, lane, first) IN \
    (SELECT tenant, agent, epoch, lane, first FROM losses WHERE received_at < ?1 LIMIT ?2)";
const MESSAGES_BEFORE: &str = "DELETE FROM outbox WHERE rowid IN \
    (SELECT rowid FROM outbox WHERE settled_at < ?1 ORDER BY settled_at LIMIT ?2)";
// An incident with a waiting message, or that waits for one of its group, stays, whatever its age.
const DECISIONS_BEFORE: &str = "DELETE FROM decisions WHERE (tenant, incident, receiver, state_epoch) IN \
    (SELECT decisions.tenant, incident, receiver, decisions.state_epoch FROM incidents \
     JOIN decisions ON decisions.tenant = incidents.tenant AND decisions.incident = incidents.id \
     WHERE status = 'resolved' AND resolved_at < ?1 AND NOT EXISTS \
         (SELECT 1 FROM outbox WHERE outbox.tenant = incidents.tenant AND outbox.incident = incidents.id \
          AND outbox.state = 'waiting') \
         AND NOT EXISTS (SELECT 1 FROM decisions AS it \
             JOIN alert_groups ON alert_groups.tenant = it.tenant AND alert_groups.id = it.in_group \
                 AND alert_groups.message = it.message \
             WHERE it.tenant = incidents.tenant AND it.incident = incidents.id) \
     ORDER BY resolved_at LIMIT ?2)";
// Of receivers that were not configured any more when their incident ended.
const WITHHELD_BEFORE: &str = "DELETE FROM withheld WHERE (tenant, incident, receiver) IN \
    (SELECT withheld.tenant, incident, receiver FROM withheld \
     JOIN incidents ON incidents.tenant = withheld.tenant AND incidents.id = withheld.incident \
     WHERE status = 'resolved' AND resolved_at < ?1 LIMIT ?2)";
const INCIDENTS_BEFORE: &str = "DELETE FROM incidents WHERE rowid IN \
    (SELECT incidents.rowid FROM incidents \
     WHERE status = 'resolved' AND resolved_at < ?1 AND NOT EXISTS \
         (SELECT 1 FROM outbox WHERE outbox.tenant = incidents.tenant AND outbox.incident = incidents.id \
          AND outbox.state = 'waiting') \
     AND NOT EXISTS (SELECT 1 FROM decisions WHERE decisions.tenant = incidents.tenant AND decisions.incident = incidents.id) \
     ORDER BY resolved_at LIMIT ?2)";
const LANES_BEFORE: &str = "DELETE FROM lanes WHERE (tenant, agent, epoch, lane) IN \
    (SELECT tenant, agent, epoch, lane FROM lanes WHERE updated_at < ?1 LIMIT ?2)";
const LEVELS_BEFORE: &str = "DELETE FROM levels WHERE (tenant, agent) IN \
    (SELECT tenant, agent FROM levels WHERE received_at < ?1 LIMIT ?2)";
// What is seen still is written anew each hour.
const DEPENDENCIES_BEFORE: &str = "DELETE FROM dependencies WHERE (tenant, agent) IN \
    (SELECT tenant, agent FROM dependencies WHERE seen_at < ?1 LIMIT ?2)";
const USE_BEFORE: &str = "DELETE FROM pool_use WHERE (tenant, server, application, day) IN \
    (SELECT tenant, server, application, day FROM pool_use WHERE day < ?1 LIMIT ?2)";
const SILENCES_BEFORE: &str = "DELETE FROM silences WHERE (tenant, id) IN \
    (SELECT tenant, id FROM silences WHERE over_at < ?1 OR ends_at < ?1 LIMIT ?2)";
const ACKNOWLEDGEMENTS_BEFORE: &str = "DELETE FROM acknowledgements WHERE (tenant, incident, id) IN \
    (SELECT tenant, incident, id FROM acknowledgements WHERE over_at < ?1 ORDER BY over_at LIMIT ?2)";
