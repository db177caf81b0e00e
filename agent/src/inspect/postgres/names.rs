//! Names of databases and roles by their oids: asked once, not at every look.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::{Row, Statement};

use super::activity::{MAX_NAME, field};
use super::connection::Connection;
use crate::inspect::server::kept::AskError;
use crate::scrub;

/// After so long every name is asked again: databases and roles can be renamed.
const NAMES_LAST: Duration = Duration::from_secs(60);

/// Both kinds in one answer; the first column tells them apart.
pub(super) const NAMES: &str = "/* tickbird */ \
SELECT true, oid, datname::text FROM pg_database WHERE oid = ANY($1) \
UNION ALL \
SELECT false, oid, rolname::text FROM pg_roles WHERE oid = ANY($2)";

/// What is known of names on one connection.
#[derive(Default)]
pub(super) struct Names {
    statement: Option<Statement>,
    known: Known,
    asked_at: Duration,
}

/// Names by oid. An oid without a name, of a role that was dropped while its sessions go on, has an empty one.
#[derive(Debug, Default, PartialEq, Eq)]
struct Known {
    databases: HashMap<u32, Arc<str>>,
    roles: HashMap<u32, Arc<str>>,
}

impl Names {
    /// Makes sure that these oids of databases and roles have names. Where one of them cannot be had nothing can be
    /// told of its session, since it would be counted to a pool of another name; old names serve when only their
    /// renewal fails.
    pub(super) async fn learn(
        &mut self,
        oids: impl Iterator<Item = (Option<u32>, Option<u32>)>,
        connection: &Connection,
        now: Duration,
    ) -> Result<(), AskError> {
        let (mut databases, mut roles) = (BTreeSet::new(), BTreeSet::new());
        for (database, role) in oids {
            databases.extend(database);
            roles.extend(role);
        }
        let is_whole = databases.iter().all(|oid| self.known.databases.contains_key(oid))
            && roles.iter().all(|oid| self.known.roles.contains_key(oid));
        if is_whole && now.saturating_sub(self.asked_at) < NAMES_LAST {
            return Ok(());
        }
        self.asked_at = now;
        match self.ask(&databases, &roles, connection).await {
            Ok(known) => self.known = known,
            Err(error) if is_whole && error.keeps_session() => (),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn ask(
        &mut self,
        databases: &BTreeSet<u32>,
        roles: &BTreeSet<u32>,
        connection: &Connection,
    ) -> Result<Known, AskError> {
        let statement = match &self.statement {
            Some(statement) => statement,
            None => self.statement.insert(connection.prepare(NAMES).await?),
        };
        let asked: [Vec<u32>; 2] = [databases, roles].map(|oids| oids.iter().copied().collect());
        let rows = connection.ask_of(statement, &[&asked[0], &asked[1]]).await?;
        let mut known = Known::default();
        known.databases.extend(databases.iter().map(|oid| (*oid, Arc::default())));
        known.roles.extend(roles.iter().map(|oid| (*oid, Arc::default())));
        rows.iter().for_each(|row| known.take(row));
        Ok(known)
    }

    /// The name of a database.
    pub(super) fn database(&self, oid: u32) -> Arc<str> {
        self.known.databases.get(&oid).cloned().unwrap_or_default()
    }

    /// The name of a role.
    pub(super) fn role(&self, oid: u32) -> Arc<str> {
        self.known.roles.get(&oid).cloned().unwrap_or_default()
    }
}

impl Known {
    fn take(&mut self, row: &Row) {
        let (Some(is_database), Some(oid), Some(name)) = (field(row, 0), field(row, 1), field::<&str>(row, 2)) else {
            return;
        };
        let kind = if is_database { &mut self.databases } else { &mut self.roles };
        kind.insert(oid, scrub::text(name, MAX_NAME).into());
    }
}
