//! As what receivers know incidents.

use std::collections::BTreeMap;

use rusqlite::{Row, named_params};

use super::column::Json;
use super::{Rows, StoreError, Transaction, sums};

/// The labels of the alert that a receiver was told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeardRow {
    /// Tenant of the incident.
    pub tenant: String,
    /// The incident.
    pub incident: String,
    /// Who was told.
    pub receiver: String,
    /// By which it knows the alert.
    pub labels: BTreeMap<String, String>,
}

impl Rows<'_> {
    /// Those of every tenant.
    pub fn heard(&self) -> Result<Vec<HeardRow>, StoreError> {
        let mut query = self.0.prepare_cached("SELECT * FROM heard")?;
        Ok(query.query_map([], read)?.collect::<Result<_, _>>()?)
    }

    /// Those of a receiver.
    pub fn heard_by(&self, receiver: &str) -> Result<Vec<HeardRow>, StoreError> {
        let mut query = self.0.prepare_cached("SELECT * FROM heard WHERE receiver = ?1")?;
        Ok(query.query_map([receiver], read)?.collect::<Result<_, _>>()?)
    }
}

impl Transaction<'_> {
    /// Keeps one instead of what was known before.
    pub fn put_heard(&self, row: &HeardRow) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached(
                "INSERT INTO heard (tenant, incident, receiver, labels) VALUES (:tenant, :incident, :receiver, :labels) \
                 ON CONFLICT DO UPDATE SET labels = excluded.labels",
            )?
            .execute(named_params! {
                ":tenant": row.tenant,
                ":incident": row.incident,
                ":receiver": row.receiver,
                ":labels": Json(&row.labels),
            })?;
        Ok(())
    }

    /// Forgets one: its end was told.
    pub fn delete_heard(&self, tenant: &str, incident: &str, receiver: &str) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached("DELETE FROM heard WHERE tenant = ?1 AND incident = ?2 AND receiver = ?3")?
            .execute((tenant, incident, receiver))?;
        Ok(())
    }
}

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<HeardRow> {
    sums::check("heard", row)?;
    Ok(HeardRow {
        tenant: row.get("tenant")?,
        incident: row.get("incident")?,
        receiver: row.get("receiver")?,
        labels: row.get::<_, Json<_>>("labels")?.0,
    })
}
