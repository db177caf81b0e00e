//! Who owns an incident, and until when.

use rusqlite::{OptionalExtension, Row, named_params};
use tickbird_shared::{Severity, Timestamp};

use super::column::{At, Word};
use super::{Rows, StoreError, Transaction, sums};

/// Somebody's word that an incident is theirs for a while. One of an incident holds at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcknowledgementRow {
    /// Tenant of the incident.
    pub tenant: String,
    /// The incident.
    pub incident: String,
    /// `ack_` and a ULID.
    pub id: String,
    /// Who owns it.
    pub owner: String,
    /// What they want to say.
    pub note: Option<String>,
    /// How bad it was then: what gets worse than that is not what they have seen.
    pub severity: Severity,
    /// When they said so.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub ends_at: Timestamp,
    /// When the ledger wrote it down for everybody who was told of the incident.
    pub taken_at: Option<Timestamp>,
    /// Why it ended before its time, if somebody or something ended it.
    pub over_why: Option<String>,
    /// When the end was noticed: whoever was told of the incident was told again, if it still fired.
    pub over_at: Option<Timestamp>,
}

impl Rows<'_> {
    /// Those whose end was not noticed yet, of every tenant.
    pub fn live_acknowledgements(&self) -> Result<Vec<AcknowledgementRow>, StoreError> {
        let mut query = self.0.prepare_cached(
            "SELECT * FROM acknowledgements INDEXED BY acknowledgements_live WHERE over_at IS NULL \
             ORDER BY tenant, incident, id",
        )?;
        Ok(query.query_map([], read)?.collect::<Result<_, _>>()?)
    }

    /// The one of an incident that holds now.
    pub fn acknowledgement(
        &self,
        tenant: &str,
        incident: &str,
        now: Timestamp,
    ) -> Result<Option<AcknowledgementRow>, StoreError> {
        let mut query = self.0.prepare_cached(
            "SELECT * FROM acknowledgements WHERE tenant = ?1 AND incident = ?2 AND over_at IS NULL AND ends_at > ?3 \
             ORDER BY id DESC LIMIT 1",
        )?;
        Ok(query.query_row((tenant, incident, At(now)), read).optional()?)
    }

    /// The newest of an incident, at most so many, the oldest of them first.
    pub fn acknowledgements_of(
        &self,
        tenant: &str,
        incident: &str,
        limit: u32,
    ) -> Result<Vec<AcknowledgementRow>, StoreError> {
        let mut query = self.0.prepare_cached(
            "SELECT * FROM acknowledgements WHERE tenant = ?1 AND incident = ?2 ORDER BY created_at DESC, id DESC LIMIT ?3",
        )?;
        let mut found: Vec<_> = query.query_map((tenant, incident, limit), read)?.collect::<Result<_, _>>()?;
        found.reverse();
        Ok(found)
    }
}

impl Transaction<'_> {
    /// Writes a new one in the place of whichever the incident has.
    pub fn acknowledge(&self, row: &AcknowledgementRow) -> Result<(), StoreError> {
        let why = format!("{} took it over", row.owner);
        self.connection()
            .prepare_cached(
                "UPDATE acknowledgements SET over_at = ?3, over_why = coalesce(over_why, ?4) \
                 WHERE tenant = ?1 AND incident = ?2 AND over_at IS NULL",
            )?
            .execute((&row.tenant, &row.incident, At(row.created_at), why))?;
        self.connection()
            .prepare_cached(
                "INSERT INTO acknowledgements (tenant, incident, id, owner, note, severity, created_at, ends_at, \
                 taken_at, over_why, over_at) \
                 VALUES (:tenant, :incident, :id, :owner, :note, :severity, :created_at, :ends_at, :taken_at, \
                 :over_why, :over_at)",
            )?
            .execute(named_params! {
                ":tenant": row.tenant,
                ":incident": row.incident,
                ":id": row.id,
                ":owner": row.owner,
                ":note": row.note,
                ":severity": row.severity.as_str(),
                ":created_at": At(row.created_at),
                ":ends_at": At(row.ends_at),
                ":taken_at": row.taken_at.map(At),
                ":over_why": row.over_why,
                ":over_at": row.over_at.map(At),
            })?;
        Ok(())
    }

    /// Ends the one of an incident now; false when none holds.
    pub fn end_acknowledgement(
        &self,
        tenant: &str,
        incident: &str,
        why: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let changed = self
            .connection()
            .prepare_cached(
                "UPDATE acknowledgements SET ends_at = ?3, over_why = ?4 \
                 WHERE tenant = ?1 AND incident = ?2 AND ends_at > ?3 AND over_at IS NULL",
            )?
            .execute((tenant, incident, At(now), why))?;
        Ok(changed > 0)
    }

    /// Writes that one was taken over by the ledger, or that its end was noticed.
    pub fn mark_acknowledgement(&self, row: &AcknowledgementRow) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached(
                "UPDATE acknowledgements SET taken_at = ?4, over_why = ?5, over_at = ?6 \
                 WHERE tenant = ?1 AND incident = ?2 AND id = ?3",
            )?
            .execute((&row.tenant, &row.incident, &row.id, row.taken_at.map(At), &row.over_why, row.over_at.map(At)))?;
        Ok(())
    }
}

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<AcknowledgementRow> {
    sums::check("acknowledgements", row)?;
    Ok(AcknowledgementRow {
        tenant: row.get("tenant")?,
        incident: row.get("incident")?,
        id: row.get("id")?,
        owner: row.get("owner")?,
        note: row.get("note")?,
        severity: row.get::<_, Word<_>>("severity")?.0,
        created_at: row.get::<_, At>("created_at")?.0,
        ends_at: row.get::<_, At>("ends_at")?.0,
        taken_at: row.get::<_, Option<At>>("taken_at")?.map(|at| at.0),
        over_why: row.get("over_why")?,
        over_at: row.get::<_, Option<At>>("over_at")?.map(|at| at.0),
    })
}
