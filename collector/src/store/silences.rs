//! Silences, and what they hold back.

use rusqlite::{Row, named_params};
use tickbird_shared::Timestamp;

use super::column::{At, Json};
use super::{Rows, StoreError, Transaction, sums};

/// Silences of one tenant that hold or are to come. Each is asked of each incident that changes.
pub const MAX_SILENCES: u32 = 1_000;

/// A silence as somebody asked for it. Only its end changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SilenceRow {
    /// Tenant whose incidents it is about.
    pub tenant: String,
    /// `sil_` and a ULID.
    pub id: String,
    /// As somebody wrote them; all have to match.
    pub matchers: Vec<String>,
    /// Who asked for it.
    pub author: String,
    /// Why, in their words.
    pub reason: String,
    /// When they asked.
    pub created_at: Timestamp,
    /// From when on it holds.
    pub starts_at: Timestamp,
    /// Until when; the moment itself is free.
    pub ends_at: Timestamp,
    /// When its end was noticed, and what it had held back was decided anew.
    pub over_at: Option<Timestamp>,
}

/// What a receiver would have been told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WithheldRow {
    /// Tenant of the incident.
    pub tenant: String,
    /// An incident that fires.
    pub incident: String,
    /// Who would have heard.
    pub receiver: String,
    /// `incident.firing` and so on: the gravest of what was held back.
    pub kind: String,
    /// Id of the silence.
    pub held_by: String,
}

impl SilenceRow {
    /// `to come`, `holds` or `ended`.
    pub fn state(&self, now: Timestamp) -> &'static str {
        if self.over_at.is_some() || self.ends_at <= now {
            "ended"
        } else if self.starts_at > now {
            "to come"
        } else {
            "holds"
        }
    }
}

impl Rows<'_> {
    /// Silences of one tenant, newest first and below the id `before`: those to come and those that hold, or with `ended` all that
    /// are kept.
    pub fn silences(
        &self,
        tenant: &str,
        ended: bool,
        now: Timestamp,
        before: Option<&str>,
        limit: u32,
    ) -> Result<Vec<SilenceRow>, StoreError> {
        let mut query = self.0.prepare_cached(
            "SELECT * FROM silences WHERE tenant = ?1 AND (?2 OR (ends_at > ?3 AND over_at IS NULL)) \
                 AND (?4 IS NULL OR id < ?4) ORDER BY id DESC LIMIT ?5",
        )?;
        Ok(query.query_map((tenant, ended, At(now), before, limit), read)?.collect::<Result<_, _>>()?)
    }

    /// Of every tenant those whose end was not noticed yet.
    pub fn live_silences(&self) -> Result<Vec<SilenceRow>, StoreError> {
        let mut query = self.0.prepare_cached("SELECT * FROM silences WHERE over_at IS NULL ORDER BY tenant, id")?;
        Ok(query.query_map([], read)?.collect::<Result<_, _>>()?)
    }

    /// Those of a tenant that held at some time from `since` on, the oldest first; the newest `limit` of them.
    pub fn silences_since(&self, tenant: &str, since: Timestamp, limit: u32) -> Result<Vec<SilenceRow>, StoreError> {
        let mut query = self.0.prepare_cached(
            "SELECT * FROM silences WHERE tenant = ?1 AND ends_at > ?2 AND starts_at < ends_at ORDER BY id DESC LIMIT ?3",
        )?;
        let mut found = query.query_map((tenant, At(since), limit), read)?.collect::<Result<Vec<_>, _>>()?;
        found.reverse();
        Ok(found)
    }

    /// All that is held back, of every tenant.
    pub fn withheld(&self) -> Result<Vec<WithheldRow>, StoreError> {
        let mut query = self.0.prepare_cached("SELECT * FROM withheld ORDER BY tenant, incident, receiver")?;
        Ok(query.query_map([], read_withheld)?.collect::<Result<_, _>>()?)
    }
}

impl Transaction<'_> {
    /// Keeps a new silence; false when the tenant has as many as it may that have not ended.
    pub fn add_silence(&self, silence: &SilenceRow) -> Result<bool, StoreError> {
        let mut live =
            self.connection().prepare_cached("SELECT count(*) FROM silences WHERE tenant = ?1 AND over_at IS NULL")?;
        if live.query_row([&silence.tenant], |row| row.get::<_, u32>(0))? >= MAX_SILENCES {
            return Ok(false);
        }
        self.connection()
            .prepare_cached(
                "INSERT INTO silences (tenant, id, matchers, author, reason, created_at, starts_at, ends_at, over_at) \
                 VALUES (:tenant, :id, :matchers, :author, :reason, :created_at, :starts_at, :ends_at, :over_at)",
            )?
            .execute(named_params! {
                ":tenant": silence.tenant,
                ":id": silence.id,
                ":matchers": Json(&silence.matchers),
                ":author": silence.author,
                ":reason": silence.reason,
                ":created_at": At(silence.created_at),
                ":starts_at": At(silence.starts_at),
                ":ends_at": At(silence.ends_at),
                ":over_at": silence.over_at.map(At),
            })?;
        Ok(true)
    }

    /// Ends a silence now; false when there is none of that id that still holds or is to come.
    pub fn end_silence(&self, tenant: &str, id: &str, now: Timestamp) -> Result<bool, StoreError> {
        let changed = self
            .connection()
            .prepare_cached(
                "UPDATE silences SET ends_at = ?3 WHERE tenant = ?1 AND id = ?2 AND ends_at > ?3 AND over_at IS NULL",
            )?
            .execute((tenant, id, At(now)))?;
        Ok(changed > 0)
    }

    /// Writes that the end of a silence was noticed.
    pub fn silence_over(&self, tenant: &str, id: &str, now: Timestamp) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached("UPDATE silences SET over_at = ?3 WHERE tenant = ?1 AND id = ?2")?
            .execute((tenant, id, At(now)))?;
        Ok(())
    }

    /// Writes what is held back from a receiver, in place of what was.
    pub fn put_withheld(&self, row: &WithheldRow) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached(
                "INSERT INTO withheld (tenant, incident, receiver, kind, held_by) \
                 VALUES (:tenant, :incident, :receiver, :kind, :held_by) \
                 ON CONFLICT DO UPDATE SET kind = excluded.kind, held_by = excluded.held_by",
            )?
            .execute(named_params! {
                ":tenant": row.tenant,
                ":incident": row.incident,
                ":receiver": row.receiver,
                ":kind": row.kind,
                ":held_by": row.held_by,
            })?;
        Ok(())
    }

    /// Nothing of an incident is held back any more.
    pub fn delete_all_withheld(&self, tenant: &str, incident: &str) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached("DELETE FROM withheld WHERE tenant = ?1 AND incident = ?2")?
            .execute((tenant, incident))?;
        Ok(())
    }

    /// Nothing is held back from a receiver any more.
    pub fn delete_withheld(&self, tenant: &str, incident: &str, receiver: &str) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached("DELETE FROM withheld WHERE tenant = ?1 AND incident = ?2 AND receiver = ?3")?
            .execute((tenant, incident, receiver))?;
        Ok(())
    }
}

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<SilenceRow> {
    sums::check("silences", row)?;
    Ok(SilenceRow {
        tenant: row.get("tenant")?,
        id: row.get("id")?,
        matchers: row.get::<_, Json<_>>("matchers")?.0,
        author: row.get("author")?,
        reason: row.get("reason")?,
        created_at: row.get::<_, At>("created_at")?.0,
        starts_at: row.get::<_, At>("starts_at")?.0,
        ends_at: row.get::<_, At>("ends_at")?.0,
        over_at: row.get::<_, Option<At>>("over_at")?.map(|at| at.0),
    })
}

pub(super) fn read_withheld(row: &Row<'_>) -> rusqlite::Result<WithheldRow> {
    sums::check("withheld", row)?;
    Ok(WithheldRow {
        tenant: row.get("tenant")?,
        incident: row.get("incident")?,
        receiver: row.get("receiver")?,
        kind: row.get("kind")?,
        held_by: row.get("held_by")?,
    })
}
