//! What became of the records of each tenant's agents, ever.

use rusqlite::named_params;

use super::column::Seq;
use super::{Rows, StoreError, Tally, Transaction};

impl Rows<'_> {
    /// The sum over all tenants.
    pub fn tally(&self) -> Result<Tally, StoreError> {
        let mut query = self.0.prepare_cached(
            "SELECT coalesce(sum(received), 0), coalesce(sum(committed), 0), coalesce(sum(duplicate), 0), \
             coalesce(sum(refused), 0), coalesce(sum(lost), 0) FROM tallies",
        )?;
        Ok(query.query_row([], |row| {
            let at = |index| row.get::<_, Seq>(index).map(|it| it.0);
            Ok(Tally { received: at(0)?, committed: at(1)?, duplicate: at(2)?, refused: at(3)?, lost: at(4)? })
        })?)
    }
}

impl Transaction<'_> {
    /// Adds to what is counted for a tenant.
    pub fn add_tally(&self, tenant: &str, tally: Tally) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached(
                "INSERT INTO tallies (tenant, received, committed, duplicate, refused, lost) \
                 VALUES (:tenant, :received, :committed, :duplicate, :refused, :lost) \
                 ON CONFLICT (tenant) DO UPDATE SET received = received + excluded.received, \
                 committed = committed + excluded.committed, duplicate = duplicate + excluded.duplicate, \
                 refused = refused + excluded.refused, lost = lost + excluded.lost",
            )?
            .execute(named_params! {
                ":tenant": tenant,
                ":received": Seq(tally.received),
                ":committed": Seq(tally.committed),
                ":duplicate": Seq(tally.duplicate),
                ":refused": Seq(tally.refused),
                ":lost": Seq(tally.lost),
            })?;
        Ok(())
    }
}
