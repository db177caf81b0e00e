//! What became of the records of each tenant's agents, ever.

use rusqlite::{Row, named_params};

use super::column::Seq;
use super::{Rows, StoreError, Tally, Transaction, sums};

impl Rows<'_> {
    /// The sum over all tenants.
    pub fn tally(&self) -> Result<Tally, StoreError> {
        let mut query = self.0.prepare_cached("SELECT * FROM tallies")?;
        let mut sum = Tally::default();
        for tally in query.query_map([], read)? {
            sum += tally?;
        }
        Ok(sum)
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

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Tally> {
    sums::check("tallies", row)?;
    let of = |column: &str| row.get::<_, Seq>(column).map(|it| it.0);
    Ok(Tally {
        received: of("received")?,
        committed: of("committed")?,
        duplicate: of("duplicate")?,
        refused: of("refused")?,
        lost: of("lost")?,
    })
}
