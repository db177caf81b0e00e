//! PostgreSQL's further facts, through the same one connection, each as seldom as it may be.
//!
//! Functions are asked where a view would join tables of the catalogue: a lock on those blinds what needs names and
//! nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::{Row, Statement};

use super::activity::{Activity, MAX_NAME, Micros, Server, field};
use super::connection::Connection;
use crate::inspect::Reason;
use crate::inspect::server::kept::AskError;
use crate::inspect::server::{Blocked, Counters, Facts, Limit, LimitOf, Replica, Session, SessionState, Standing};
use crate::scrub;

/// Between two questions for standing and counters: several within each bound of the checks on them.
const OFTEN: Duration = Duration::from_secs(10);
/// Between two questions for what people change.
const SELDOM: Duration = Duration::from_secs(60);
/// A session that is idle for less is asked no more of.
const RESTS: Duration = Duration::from_secs(5);
/// Most sessions that are asked whom they wait for at one look: the question takes every lock of the lock table.
const MAX_BLOCKED: usize = 20;
/// The first version whose `pg_locks` tells since when a lock is waited for.
const TELLS_WAIT_START: i32 = 140_000;

/// One row: in recovery, fed, caught up, age of the last change, then five counters of the database $1.
const STANDING: &str = "/* tickbird */ \
SELECT pg_is_in_recovery(), \
       EXISTS (SELECT FROM pg_stat_get_wal_receiver() WHERE pid IS NOT NULL), \
       CASE WHEN pg_is_in_recovery() \
            THEN coalesce(pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn(), false) END, \
       CASE WHEN pg_is_in_recovery() THEN pg_last_xact_replay_timestamp() END, \
       statement_timestamp(), \
       pg_stat_get_db_xact_commit($1), pg_stat_get_db_xact_rollback($1), \
       pg_stat_get_db_deadlocks($1), pg_stat_get_db_conflict_all($1), \
       pg_stat_get_db_tuples_returned($1)";

/// One row for each replica of a primary: its process, its lag, what it lacks, its name.
const REPLICAS: &str = "/* tickbird */ \
SELECT (extract(epoch FROM replay_lag) * 1000000)::int8, \
       greatest(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn), 0)::int8, \
       coalesce((SELECT application_name FROM pg_stat_get_activity(s.pid)), '') \
  FROM pg_stat_get_wal_senders() s WHERE replay_lsn IS NOT NULL LIMIT 100";

/// One row for each waiting session of $1, the longest wait first.
const BLOCKED: &str = "/* tickbird */ \
SELECT pid, waitstart, statement_timestamp(), pg_blocking_pids(pid) FROM pg_locks \
 WHERE NOT granted AND pid = ANY($1) ORDER BY waitstart NULLS LAST";

/// The same where the server does not tell since when.
const BLOCKED_BEFORE_14: &str = "/* tickbird */ \
SELECT pid, NULL::timestamptz, statement_timestamp(), pg_blocking_pids(pid) FROM unnest($1) AS pid";

/// Who of $1 holds an advisory lock. Those of a transaction end with it and are left out by asking only idle sessions.
const LOCKS: &str = "/* tickbird */ \
SELECT DISTINCT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = ANY($1)";

const IDENTIFIER: &str = "/* tickbird */ SELECT system_identifier::text FROM pg_control_system()";

/// Limits of roles and databases; superusers have none, whatever is written.
const LIMITS: &str = "/* tickbird */ \
(SELECT true, datname::text, datconnlimit FROM pg_database WHERE datconnlimit >= 0 LIMIT 200) \
UNION ALL \
(SELECT false, rolname::text, rolconnlimit FROM pg_roles WHERE rolconnlimit >= 0 AND NOT rolsuper LIMIT 200)";

/// What was asked on one connection, and what is prepared on it.
#[derive(Default)]
pub(super) struct Asked {
    standing: Slow,
    replicas: Option<Statement>,
    blocked: Option<Statement>,
    identifier: Slow,
    limits: Slow,
    locks: Slow,
    /// Sessions that held an advisory lock when that was asked last.
    holders: BTreeSet<u64>,
    /// Limits as they are written, without what is used of them.
    written: Vec<(LimitOf, u32)>,
    facts: Facts,
}

/// A question with an interval of its own.
#[derive(Default)]
struct Slow {
    statement: Option<Statement>,
    asked_at: Option<Duration>,
}

impl Slow {
    fn is_due(&self, every: Duration, now: Duration) -> bool {
        self.asked_at.is_none_or(|at| now.saturating_sub(at) >= every)
    }
}

/// The facts of a server whose sessions could not be seen for this reason.
pub(super) fn unknown(reason: &Reason) -> Facts {
    Facts {
        identifier: Some(Err(reason.clone())),
        standing: Some(Err(reason.clone())),
        counters: Some(Err(reason.clone())),
        blocked: Some(Err(reason.clone())),
        limits: Some(Err(reason.clone())),
    }
}

/// An error that ends the session, or a fact that could not be read.
type Answer<T> = Result<Result<T, Reason>, AskError>;

/// A refusal of one question is the reason of its fact; the session goes on.
fn settled<T>(answer: Result<T, AskError>, address: &str) -> Answer<T> {
    match answer {
        Ok(it) => Ok(Ok(it)),
        Err(error) if error.keeps_session() => Ok(Err(error.reason(address))),
        Err(error) => Err(error),
    }
}

impl Asked {
    /// The facts of this look, asked where they are due. An error ends the session.
    pub(super) async fn ask(
        &mut self,
        connection: &Connection,
        server: &Server,
        activity: &Activity,
        address: &str,
        now: Duration,
    ) -> Result<Facts, AskError> {
        if self.identifier.is_due(SELDOM, now) {
            self.identifier.asked_at = Some(now);
            let rows = asked(connection, &mut self.identifier.statement, IDENTIFIER, &[]).await;
            self.facts.identifier = Some(settled(rows, address)?.and_then(|rows| identifier(&rows)));
        }
        if self.standing.is_due(OFTEN, now) {
            self.standing.asked_at = Some(now);
            let rows = asked(connection, &mut self.standing.statement, STANDING, &[&server.database_oid]).await;
            let answer = settled(rows, address)?;
            self.facts.counters = Some(answer.as_ref().map_err(Clone::clone).and_then(|rows| counters(rows, now)));
            let standing = match answer.and_then(|rows| standing(&rows)) {
                Ok(Standing::Primary(_)) => {
                    let rows = asked(connection, &mut self.replicas, REPLICAS, &[]).await;
                    settled(rows, address)?.map(|rows| Standing::Primary(rows.iter().filter_map(replica).collect()))
                }
                other => other,
            };
            self.facts.standing = Some(standing);
        }
        if self.limits.is_due(SELDOM, now) {
            self.limits.asked_at = Some(now);
            let rows = asked(connection, &mut self.limits.statement, LIMITS, &[]).await;
            self.facts.limits = Some(settled(rows, address)?.map(|rows| {
                self.written = rows.iter().filter_map(limit).collect();
                Vec::new()
            }));
        }
        if let Some(Ok(limits)) = &mut self.facts.limits {
            *limits = self.written.iter().map(|(of, most)| used(of, *most, server, activity)).collect();
        }
        self.ask_holders(connection, activity, now).await?;
        self.facts.blocked = Some(self.blocked(connection, server, activity, address).await?);
        Ok(self.facts.clone())
    }

    /// Who holds an advisory lock, of the sessions that have been idle for long enough to look as if they leaked. Where
    /// that may not be asked nobody is known to.
    async fn ask_holders(
        &mut self,
        connection: &Connection,
        activity: &Activity,
        now: Duration,
    ) -> Result<(), AskError> {
        let rests = |it: &&Session| it.state == SessionState::Idle && it.state_age.is_some_and(|age| age >= RESTS);
        let pids: Vec<i32> =
            activity.sessions.iter().filter(rests).filter_map(|it| it.backend.try_into().ok()).collect();
        if pids.is_empty() {
            self.holders.clear();
            return Ok(());
        }
        if self.locks.is_due(OFTEN, now) {
            self.locks.asked_at = Some(now);
            let rows = asked(connection, &mut self.locks.statement, LOCKS, &[&pids]).await;
            let backend = |row: &Row| Some(u64::from(field::<i32>(row, 0)?.unsigned_abs()));
            self.holders = match settled(rows, "")? {
                Ok(rows) => rows.iter().filter_map(backend).collect(),
                Err(_) => BTreeSet::new(),
            };
        }
        Ok(())
    }

    /// Whether this session held an advisory lock when that was asked last.
    pub(super) fn holds_lock(&self, backend: u64) -> bool {
        self.holders.contains(&backend)
    }

    async fn blocked(
        &mut self,
        connection: &Connection,
        server: &Server,
        activity: &Activity,
        address: &str,
    ) -> Answer<Vec<Blocked>> {
        let waits = |event: &Option<Arc<str>>| event.as_deref().is_some_and(|it| it.starts_with("Lock: "));
        let mut waiting: Vec<_> = activity.sessions.iter().filter(|it| waits(&it.waits_for)).collect();
        // The wait is a part of the statement: whose began first has probably waited longest.
        waiting.sort_by_key(|it| std::cmp::Reverse(it.state_age));
        let pids: Vec<i32> = waiting.into_iter().filter_map(|it| i32::try_from(it.backend).ok()).collect();
        if pids.is_empty() {
            return Ok(Ok(Vec::new()));
        }
        let some = &pids[..pids.len().min(MAX_BLOCKED)];
        let text = if server.version_number < TELLS_WAIT_START { BLOCKED_BEFORE_14 } else { BLOCKED };
        let rows = asked(connection, &mut self.blocked, text, &[&some]).await;
        Ok(settled(rows, address)?.map(|rows| rows.iter().filter_map(blocked).collect()))
    }
}

async fn asked(
    connection: &Connection,
    statement: &mut Option<Statement>,
    text: &str,
    parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> Result<Vec<Row>, AskError> {
    let statement = match statement {
        Some(statement) => statement,
        None => statement.insert(connection.prepare(text).await?),
    };
    connection.ask_of(statement, parameters).await
}

fn unclear(what: &str) -> Reason {
    Reason::Malformed(format!("PostgreSQL's {what}"))
}

fn identifier(rows: &[Row]) -> Result<Arc<str>, Reason> {
    let text: &str = rows.first().and_then(|row| field(row, 0)).ok_or_else(|| unclear("system identifier"))?;
    // A number, as long as those that scrubbing takes for secrets; so it is read as one instead.
    let number: u64 = text.parse().map_err(|_| unclear("system identifier"))?;
    Ok(number.to_string().into())
}

fn standing(rows: &[Row]) -> Result<Standing, Reason> {
    let read = |row: &Row| {
        if !field::<bool>(row, 0)? {
            return Some(Standing::Primary(Vec::new()));
        }
        let now: Micros = field(row, 4)?;
        Some(Standing::Replica {
            is_fed: field(row, 1)?,
            is_caught_up: field(row, 2)?,
            last_change_age: field::<Micros>(row, 3).map(|at| now.since(at)),
        })
    };
    rows.first().and_then(read).ok_or_else(|| unclear("standing"))
}

fn counters(rows: &[Row], at: Duration) -> Result<Counters, Reason> {
    let read = |row: &Row| {
        let count = |index| u64::try_from(field::<i64>(row, index)?).ok();
        Some(Counters {
            at,
            commits: count(5)?,
            rollbacks: count(6)?,
            deadlocks: count(7)?,
            conflicts: count(8)?,
            rows_read: count(9)?,
        })
    };
    rows.first().and_then(read).ok_or_else(|| unclear("counters"))
}

fn replica(row: &Row) -> Option<Replica> {
    let micros = |index| field::<i64>(row, index).map(|it| u64::try_from(it).unwrap_or(0));
    Some(Replica {
        name: scrub::text(field::<&str>(row, 2)?, MAX_NAME).into(),
        lag: micros(0).map(Duration::from_micros),
        bytes: micros(1)?,
    })
}

fn blocked(row: &Row) -> Option<Blocked> {
    let now: Micros = field(row, 2)?;
    let by: Vec<i32> = field(row, 3)?;
    let mut by: Vec<u64> = by.into_iter().map(|pid| u64::from(pid.unsigned_abs())).collect();
    by.sort_unstable();
    by.dedup();
    by.truncate(MAX_BLOCKED);
    Some(Blocked {
        backend: u64::from(field::<i32>(row, 0)?.unsigned_abs()),
        waited: field::<Micros>(row, 1).map(|at| now.since(at)),
        by,
    })
}

fn limit(row: &Row) -> Option<(LimitOf, u32)> {
    let name: Arc<str> = scrub::text(field::<&str>(row, 1)?, MAX_NAME).into();
    let of = if field(row, 0)? { LimitOf::Database(name) } else { LimitOf::Role(name) };
    Some((of, u32::try_from(field::<i32>(row, 2)?).ok()?))
}

/// What counts against a limit: sessions of that name, ours included. A hidden one may be a worker, which does not.
fn used(of: &LimitOf, most: u32, server: &Server, activity: &Activity) -> Limit {
    let counts = |database: &str, user: &str| match of {
        LimitOf::Role(name) => **name == *user,
        LimitOf::Database(name) => **name == *database,
    };
    let mut limit = Limit { of: of.clone(), most, used: 0, perhaps: 0 };
    for session in activity.sessions.iter().filter(|it| counts(&it.database, &it.user)) {
        let is_hidden = activity.hidden_backends.contains(&session.backend);
        *(if is_hidden { &mut limit.perhaps } else { &mut limit.used }) += 1;
    }
    limit.used += u32::from(counts(&server.database, &server.role));
    for database in &activity.own_databases {
        limit.used += u32::from(counts(database, &server.role));
    }
    limit
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session of role `web` in database `app`.
    fn session(backend: u64) -> Session {
        Session {
            backend,
            address: None,
            port: None,
            socket_fd: None,
            address_candidates: Vec::new(),
            client_pid: None,
            link: None,
            database: "app".into(),
            user: "web".into(),
            application_name: Arc::default(),
            state: SessionState::Idle,
            state_age: None,
            transaction_age: None,
            session_age: None,
            waits_for: None,
            holds_lock: false,
            statement: None,
        }
    }

    #[test]
    fn our_own_sessions_count_against_a_limit_and_hidden_ones_only_perhaps() {
        let server = Server {
            max_connections: 100,
            slots: 97,
            role: "tickbird".into(),
            role_oid: 16_384,
            database: "app".into(),
            database_oid: 5,
            sees_all: false,
            version: "15".into(),
            version_number: 150_000,
            is_encrypted: false,
        };
        let sessions = vec![session(1), session(2), session(3)];
        let activity = Activity {
            sessions,
            hidden: 1,
            hidden_backends: BTreeSet::from([3]),
            own: 2,
            own_databases: vec!["other".into()],
            own_backends: BTreeSet::from([9]),
        };
        let used = |of| {
            let limit = super::used(&of, 10, &server, &activity);
            (limit.used, limit.perhaps)
        };
        assert_eq!(used(LimitOf::Role("web".into())), (2, 1));
        assert_eq!(used(LimitOf::Database("app".into())), (3, 1), "the session that asks is in it");
        assert_eq!(used(LimitOf::Role("tickbird".into())), (2, 0));
        assert_eq!(used(LimitOf::Database("other".into())), (1, 0));
    }

    #[test]
    fn a_question_is_due_at_once_and_then_after_its_interval() {
        let mut slow = Slow::default();
        assert!(slow.is_due(OFTEN, Duration::ZERO));
        slow.asked_at = Some(Duration::from_secs(5));
        assert!(!slow.is_due(OFTEN, Duration::from_secs(14)) && slow.is_due(OFTEN, Duration::from_secs(15)));
    }

    #[test]
    fn a_dba_finds_every_statement_by_its_beginning() {
        for statement in [STANDING, REPLICAS, BLOCKED, BLOCKED_BEFORE_14, LOCKS, IDENTIFIER, LIMITS] {
            assert!(statement.starts_with("/* tickbird */ "), "{statement}");
        }
    }
}
