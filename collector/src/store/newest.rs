//! The newest findings or incidents that fit some filters, read from the ends of ranges of indexes.
//!
//! SQLite answers a list from one index. Where the filters leave a hole before the key that orders the list (a check of
//! whatever severity), it reads all that the index has of the rest and sorts it: millions of rows for a page of fifty. So the
//! holes are filled here. Severities and statuses are few, and so are the checks of one agent: each combination is one range
//! of an index, in order, and a page is the newest of the ends of all of them. What that costs depends on the page and on
//! the number of combinations, and on the number of rows only as a search in a tree does.

use rusqlite::types::{FromSql, ToSql};
use rusqlite::{Connection, OptionalExtension, ffi};
use tickbird_shared::{Severity, Status};

use super::StoreError;

const SEVERITIES: [Severity; 3] = [Severity::Info, Severity::Warning, Severity::Critical];
const STATUSES: [Status; 2] = [Status::Firing, Status::Resolved];

/// What the rows have in common, in one tenant.
pub(super) struct Filter<'a> {
    pub(super) tenant: &'a str,
    pub(super) agent: Option<&'a str>,
    pub(super) check: Option<&'a str>,
    pub(super) severity: Option<Severity>,
    pub(super) status: Option<Status>,
}

/// Ids between two others, without them.
pub(super) struct Between<K> {
    pub(super) after: K,
    pub(super) before: K,
}

/// The highest ids in `table` of rows that fit, highest first, at most `limit`.
pub(super) fn ids<K: FromSql + ToSql + Ord + Clone>(
    connection: &Connection,
    table: &str,
    filter: &Filter<'_>,
    mut between: Between<K>,
    limit: u32,
) -> Result<Vec<K>, StoreError> {
    let mut newest = Vec::new();
    let checks = match (filter.agent, filter.check) {
        (Some(agent), None) => checks(connection, table, filter.tenant, agent)?.into_iter().map(Some).collect(),
        (_, check) => vec![check.map(str::to_owned)],
    };
    let mut query = connection.prepare_cached(&range(table, filter.agent.is_some(), checks != [None]))?;
    for check in &checks {
        for severity in SEVERITIES.into_iter().filter(|it| filter.severity.is_none_or(|wanted| wanted == *it)) {
            for status in STATUSES.into_iter().filter(|it| filter.status.is_none_or(|wanted| wanted == *it)) {
                let (severity, status) = (severity.as_str(), status.as_str());
                let agent = filter.agent.as_ref().map(|it| it as &dyn ToSql);
                let check = check.as_ref().map(|it| it as &dyn ToSql);
                let filters = [Some(&filter.tenant as &dyn ToSql), agent, check, Some(&severity), Some(&status)];
                let bounds: [&dyn ToSql; 3] = [&between.after, &between.before, &limit];
                let values: Vec<&dyn ToSql> = filters.into_iter().flatten().chain(bounds).collect();
                let found = query.query_map(&*values, |row| row.get(0))?;
                newest.extend(found.collect::<Result<Vec<K>, _>>()?);
                newest.sort_by(|one, other| other.cmp(one));
                newest.truncate(limit as usize);
                // From now on only what is newer than the last of a full page can be on it.
                if let Some(last) = newest.last().filter(|_| newest.len() == limit as usize) {
                    between.after = last.clone();
                }
            }
        }
    }
    Ok(newest)
}

/// The query of one range: all that stands before the id in one of the indexes is bound.
fn range(table: &str, is_of_agent: bool, is_of_check: bool) -> String {
    let agent = if is_of_agent { "AND agent = ? " } else { "" };
    let check = if is_of_check { "AND check_id = ? " } else { "" };
    format!(
        "SELECT id FROM {table} WHERE tenant = ? {agent}{check}AND severity = ? AND status = ? AND id > ? AND id < ? \
         ORDER BY id DESC LIMIT ?"
    )
}

/// The checks of an agent's rows, by one search in the index for each.
fn checks(connection: &Connection, table: &str, tenant: &str, agent: &str) -> Result<Vec<String>, StoreError> {
    let mut checks: Vec<String> = Vec::new();
    loop {
        let from = checks.last().map_or(("", ">="), |last| (last, ">"));
        let mut query = connection.prepare_cached(&next_check(table, from.1))?;
        match query.query_row((tenant, agent, from.0), |row| row.get(0)).optional()? {
            Some(next) => checks.push(next),
            None => return Ok(checks),
        }
    }
}

fn next_check(table: &str, sign: &str) -> String {
    format!(
        "SELECT check_id FROM {table} WHERE tenant = ? AND agent = ? AND check_id {sign} ? ORDER BY check_id LIMIT 1"
    )
}

/// The row of an id that an index gave. That there is none is damage, and not an empty answer.
pub(super) fn row<T>(found: rusqlite::Result<T>) -> Result<T, StoreError> {
    match found {
        Err(rusqlite::Error::QueryReturnedNoRows) => {
            let said = "an index names a row that is not there".to_owned();
            Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(said)).into())
        }
        found => Ok(found?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{migrate, sums};

    const TABLES: [&str; 2] = ["findings", "incidents"];

    fn store() -> Connection {
        let mut connection = Connection::open_in_memory().expect("memory is there");
        sums::provide(&connection).expect("provides");
        migrate::migrate(&mut connection).expect("a store");
        connection
    }

    #[test]
    fn each_range_is_read_in_the_order_of_an_index_and_from_nothing_else() {
        let connection = store();
        let plan = |sql: &str| -> Vec<String> {
            let mut query = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("a query");
            let nothing = vec![None::<i64>; query.parameter_count()];
            let rows = query.query_map(rusqlite::params_from_iter(nothing), |row| row.get(3)).expect("a plan");
            rows.collect::<Result<_, _>>().expect("a plan")
        };
        for table in TABLES {
            let of = |is_of_agent, is_of_check| range(table, is_of_agent, is_of_check);
            let checks = [">=", ">"].map(|sign| next_check(table, sign));
            for sql in [of(true, true), of(false, true), of(false, false)].into_iter().chain(checks) {
                let plan = plan(&sql);
                assert!(plan.len() == 1 && plan[0].contains("USING COVERING INDEX"), "{sql}: {plan:?}");
                let bound = sql.matches(" = ?").count();
                assert_eq!(plan[0].matches("=?").count(), bound, "{sql}: {plan:?}");
            }
        }
    }

    /// The numbers below 600 as ids, spread over everything that can be asked for.
    fn fits(id: i64, filter: &Filter<'_>) -> bool {
        let (tenant, agent, check, severity, status) = of_id(id);
        tenant == filter.tenant
            && filter.agent.is_none_or(|it| it == agent)
            && filter.check.is_none_or(|it| it == check)
            && filter.severity.is_none_or(|it| it == severity)
            && filter.status.is_none_or(|it| it == status)
    }

    fn of_id(id: i64) -> (&'static str, &'static str, &'static str, Severity, Status) {
        let spread = |by: i64, choices: i64| ((id * 7919 + id / by) / by % choices) as usize;
        let check = ["", "http.status", "pool.leak", "proc.gone"][spread(5, 4)];
        let (tenant, agent) = (["default", "other"][spread(3, 2)], ["a-1", "a-2", "b"][spread(2, 3)]);
        (tenant, agent, check, SEVERITIES[spread(7, 3)], STATUSES[spread(11, 2)])
    }

    #[test]
    fn pages_of_any_filters_hold_what_fits_newest_first_and_nothing_twice() {
        let connection = store();
        for id in 1..600 {
            let (tenant, agent, check, severity, status) = of_id(id);
            let word = format!("{id:04}");
            let keys = (tenant, agent, check, severity.as_str(), status.as_str());
            let rest = "zeroblob(16), 't', 's', '{}', 0";
            let finding = format!(
                "INSERT INTO findings (id, tenant, agent, check_id, severity, status, fingerprint, target, summary, \
                 evidence, since, change, reason, observed_at, received_at) \
                 VALUES ({id}, ?, ?, ?, ?, ?, {rest}, 'began', 'r', 0, 0)"
            );
            connection.execute(&finding, keys).expect("writes");
            let incident = format!(
                "INSERT INTO incidents (id, tenant, agent, check_id, severity, status, fingerprint, target, summary, \
                 evidence, since, evidence_lost, opened_at, updated_at, occurrences, state_epoch, state_since, seen_at) \
                 VALUES ('{word}', ?, ?, ?, ?, ?, {rest}, 0, 0, 0, 1, 1, 0, 0)"
            );
            connection.execute(&incident, keys).expect("writes");
        }
        let severities = SEVERITIES.map(Some).into_iter().chain([None]);
        let mut lists = 0;
        for severity in severities {
            for status in [None, Some(Status::Firing), Some(Status::Resolved)] {
                for agent in [None, Some("a-1"), Some("b"), Some("nobody")] {
                    for check in [None, Some(""), Some("pool.leak"), Some("none")] {
                        let filter = Filter { tenant: "default", agent, check, severity, status };
                        let expected: Vec<i64> = (1..600).rev().filter(|id| fits(*id, &filter)).collect();
                        lists += usize::from(expected.len() > 7);
                        let findings = pages(|before| {
                            let between = Between { after: 0, before: before.unwrap_or(i64::MAX) };
                            ids(&connection, "findings", &filter, between, 7).expect("reads")
                        });
                        assert_eq!(findings, expected);
                        let incidents = pages(|before| {
                            let between = Between { after: String::new(), before: before.unwrap_or("~".to_owned()) };
                            ids(&connection, "incidents", &filter, between, 7).expect("reads")
                        });
                        assert_eq!(incidents, expected.iter().map(|id| format!("{id:04}")).collect::<Vec<_>>());
                    }
                }
            }
        }
        assert!(lists > 50, "{lists} lists have more than one page");
    }

    fn pages<K: Clone>(page: impl Fn(Option<K>) -> Vec<K>) -> Vec<K> {
        let mut all = Vec::new();
        loop {
            let next = page(all.last().cloned());
            if next.is_empty() {
                return all;
            }
            all.extend(next);
        }
    }

    #[test]
    fn a_row_that_only_an_index_knows_is_damage() {
        let error = row::<i64>(Err(rusqlite::Error::QueryReturnedNoRows)).expect_err("there is none");
        assert!(error.is_damage(), "{error:?}");
        assert_eq!(row(Ok(7)).expect("is there"), 7);
    }
}
