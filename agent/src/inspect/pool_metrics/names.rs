//! Which series are a pool's: the names that the libraries' exporters use.

use std::collections::BTreeMap;

use super::Told;
use super::open_metrics::{self, Series};
use super::shape::{self, Numbers, Totals};

/// Most series of pools that are kept of one page.
const MAX_SERIES: usize = 4_096;

/// What a series says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Limit,
    InUse,
    Idle,
    Open,
    Waiting,
    /// Idle or used, as its label of the state says.
    ByState,
    LeastIdle,
    MostIdle,
    Waits,
    WaitSeconds,
    WaitMilliseconds,
    Timeouts,
    Uses,
    UseSeconds,
    UseMilliseconds,
}

/// The names of one exporter.
struct Family {
    by: &'static str,
    names: &'static [(&'static str, Role)],
}

/// Where a name has no unit, OpenTelemetry's new names are in seconds and the old ones in milliseconds.
const FAMILIES: &[Family] = &[
    Family {
        by: "hikaricp_connections_*",
        names: &[
            ("hikaricp_connections_active", Role::InUse),
            ("hikaricp_connections_idle", Role::Idle),
            ("hikaricp_connections_pending", Role::Waiting),
            ("hikaricp_connections_max", Role::Limit),
            ("hikaricp_connections_min", Role::LeastIdle),
            ("hikaricp_connections_timeout_total", Role::Timeouts),
            ("hikaricp_connections_usage_seconds_count", Role::Uses),
            ("hikaricp_connections_usage_seconds_sum", Role::UseSeconds),
        ],
    },
    Family {
        by: "hikaricp_*_connections",
        names: &[
            ("hikaricp_active_connections", Role::InUse),
            ("hikaricp_idle_connections", Role::Idle),
            ("hikaricp_pending_threads", Role::Waiting),
            ("hikaricp_max_connections", Role::Limit),
            ("hikaricp_min_connections", Role::LeastIdle),
        ],
    },
    Family {
        by: "db.client.connection.*",
        names: &[
            ("db_client_connection_count", Role::ByState),
            ("db_client_connection_max", Role::Limit),
            ("db_client_connection_pending_requests", Role::Waiting),
            ("db_client_connection_idle_min", Role::LeastIdle),
            ("db_client_connection_idle_max", Role::MostIdle),
            ("db_client_connection_timeouts", Role::Timeouts),
            ("db_client_connection_timeouts_total", Role::Timeouts),
            ("db_client_connection_wait_time_seconds_sum", Role::WaitSeconds),
            ("db_client_connection_wait_time_milliseconds_sum", Role::WaitMilliseconds),
            ("db_client_connection_use_time_seconds_count", Role::Uses),
            ("db_client_connection_use_time_seconds_sum", Role::UseSeconds),
            ("db_client_connection_use_time_milliseconds_count", Role::Uses),
            ("db_client_connection_use_time_milliseconds_sum", Role::UseMilliseconds),
            ("db_client_connection_wait_time_sum", Role::WaitSeconds),
            ("db_client_connection_use_time_count", Role::Uses),
            ("db_client_connection_use_time_sum", Role::UseSeconds),
        ],
    },
    Family {
        by: "db.client.connections.*",
        names: &[
            ("db_client_connections_usage", Role::ByState),
            ("db_client_connections_max", Role::Limit),
            ("db_client_connections_pending_requests", Role::Waiting),
            ("db_client_connections_idle_min", Role::LeastIdle),
            ("db_client_connections_idle_max", Role::MostIdle),
            ("db_client_connections_timeouts", Role::Timeouts),
            ("db_client_connections_timeouts_total", Role::Timeouts),
            ("db_client_connections_wait_time_seconds_sum", Role::WaitSeconds),
            ("db_client_connections_wait_time_milliseconds_sum", Role::WaitMilliseconds),
            ("db_client_connections_use_time_seconds_count", Role::Uses),
            ("db_client_connections_use_time_seconds_sum", Role::UseSeconds),
            ("db_client_connections_use_time_milliseconds_count", Role::Uses),
            ("db_client_connections_use_time_milliseconds_sum", Role::UseMilliseconds),
            ("db_client_connections_wait_time_sum", Role::WaitMilliseconds),
            ("db_client_connections_use_time_count", Role::Uses),
            ("db_client_connections_use_time_sum", Role::UseMilliseconds),
        ],
    },
    Family {
        by: "go_sql_*_connections",
        names: &[
            ("go_sql_in_use_connections", Role::InUse),
            ("go_sql_idle_connections", Role::Idle),
            ("go_sql_open_connections", Role::Open),
            ("go_sql_max_open_connections", Role::Limit),
            ("go_sql_wait_count_total", Role::Waits),
            ("go_sql_wait_duration_seconds_total", Role::WaitSeconds),
        ],
    },
    Family {
        by: "go_sql_stats_connections_*",
        names: &[
            ("go_sql_stats_connections_in_use", Role::InUse),
            ("go_sql_stats_connections_idle", Role::Idle),
            ("go_sql_stats_connections_open", Role::Open),
            ("go_sql_stats_connections_max_open", Role::Limit),
            ("go_sql_stats_connections_waited_for", Role::Waits),
            ("go_sql_stats_connections_waited_for_total", Role::Waits),
            ("go_sql_stats_connections_blocked_seconds", Role::WaitSeconds),
            ("go_sql_stats_connections_blocked_seconds_total", Role::WaitSeconds),
        ],
    },
];

/// Names without a fixed beginning end in one of these, behind `pool_`: psycopg_pool, pg-pool, SQLAlchemy and
/// ActiveRecord have no exporter of their own.
const ENDINGS: &[&str] = &[
    "max",
    "min",
    "size",
    "available",
    "requests_waiting",
    "total_count",
    "idle_count",
    "waiting_count",
    "checked_out",
    "checkedout",
    "checked_in",
    "checkedin",
    "overflow",
    "max_overflow",
    "busy",
    "idle",
    "waiting",
    "connections",
];

/// Labels that name a pool, the first that is there.
const POOL_LABELS: &[&str] = &[
    "pool",
    "pool_name",
    "db_client_connection_pool_name",
    "db_client_connections_pool_name",
    "db_name",
    "db",
    "name",
];
const STATE_LABELS: &[&str] = &["state", "db_client_connection_state", "db_client_connections_state"];
/// Labels that tell processes apart whose numbers stand on one page.
const PROCESS_LABELS: &[&str] = &["pid", "worker", "process"];

/// What a name means.
enum Meaning {
    Of(usize, Role),
    /// Beginning of the name, and its ending.
    Loose(String, &'static str),
}

/// One pool of one process while its series are collected.
#[derive(Default)]
struct Group {
    roles: BTreeMap<Role, f64>,
    loose: BTreeMap<String, f64>,
}

/// The pools of a page. An unreadable line of a pool is an error: a number that is missing would be a smaller sum.
pub(super) fn pools(text: &str) -> Result<Vec<Told>, String> {
    // By exporter (or the beginning of its names), pool and process.
    let mut groups: BTreeMap<(Option<usize>, String, String, String), Group> = BTreeMap::new();
    let mut any = false;
    let mut kept = 0;
    for (index, line) in text.lines().enumerate() {
        let Some(name) = open_metrics::name_of(line) else { continue };
        let Some(meaning) = meaning(&name) else {
            any = any || open_metrics::read(line).is_some();
            continue;
        };
        let series = open_metrics::read(line).ok_or_else(|| format!("line {} is cut", index + 1))?;
        any = true;
        // Micrometer's word for a gauge whose pool is gone.
        if series.value.is_nan() {
            continue;
        }
        kept += 1;
        if kept > MAX_SERIES {
            return Err(format!("more than {MAX_SERIES} series of pools"));
        }
        let label = |labels: &[&str]| first_label(&series, labels).unwrap_or_default().to_owned();
        let (pool, process) = (label(POOL_LABELS), label(PROCESS_LABELS));
        match meaning {
            Meaning::Of(family, role) => {
                let role = match (role, first_label(&series, STATE_LABELS)) {
                    (Role::ByState, Some("idle")) => Role::Idle,
                    (Role::ByState, Some("used")) => Role::InUse,
                    (Role::ByState, _) => continue,
                    (role, _) => role,
                };
                let group = groups.entry((Some(family), String::new(), pool, process)).or_default();
                *group.roles.entry(role).or_default() += series.value;
            }
            Meaning::Loose(beginning, ending) => {
                let group = groups.entry((None, beginning, pool, process)).or_default();
                *group.loose.entry(shape::plain(ending)).or_default() += series.value;
            }
        }
    }
    if !any && !text.trim().is_empty() {
        return Err("no metrics".to_owned());
    }
    Ok(joined(groups))
}

/// Adds up the processes of each pool. Groups are in the order of their pools.
fn joined(groups: BTreeMap<(Option<usize>, String, String, String), Group>) -> Vec<Told> {
    let mut told: Vec<Told> = Vec::new();
    let mut last = None;
    for ((family, beginning, pool, _), group) in groups {
        let Some((numbers, by)) = group.numbers(family).filter(|(numbers, _)| numbers.is_telling()) else { continue };
        let (name, of) = (named(&pool, &beginning), Some((family, beginning, pool)));
        match told.last_mut().filter(|_| last == of) {
            Some(it) => {
                it.numbers.add(&numbers);
                it.processes = it.processes.saturating_add(1);
            }
            None => told.push(Told { name, numbers, processes: 1, by }),
        }
        last = of;
    }
    told
}

/// A pool without a label is known by the beginning of its names.
fn named(pool: &str, beginning: &str) -> String {
    if pool.is_empty() { beginning.trim_end_matches('_').to_owned() } else { pool.to_owned() }
}

impl Group {
    fn numbers(&self, family: Option<usize>) -> Option<(Numbers, &'static str)> {
        let Some(family) = family else { return shape::recognised(|key| self.loose.get(key).copied()) };
        let of = |role| self.roles.get(&role).copied();
        let thousandth = |role| of(role).map(|it| it / 1e3);
        let numbers = Numbers {
            limit: of(Role::Limit),
            in_use: of(Role::InUse),
            idle: of(Role::Idle),
            open: of(Role::Open),
            waiting: of(Role::Waiting),
            least_idle: of(Role::LeastIdle),
            most_idle: of(Role::MostIdle),
            totals: Totals {
                waits: of(Role::Waits),
                wait_seconds: of(Role::WaitSeconds).or(thousandth(Role::WaitMilliseconds)),
                timeouts: of(Role::Timeouts),
                uses: of(Role::Uses),
                use_seconds: of(Role::UseSeconds).or(thousandth(Role::UseMilliseconds)),
            },
            ..Numbers::default()
        };
        Some((numbers, FAMILIES[family].by))
    }
}

fn meaning(name: &str) -> Option<Meaning> {
    let name = name.replace(['.', ':'], "_").to_ascii_lowercase();
    for (index, family) in FAMILIES.iter().enumerate() {
        if let Some((_, role)) = family.names.iter().find(|(it, _)| *it == name) {
            return Some(Meaning::Of(index, *role));
        }
    }
    let (beginning, ending) = match name.rfind("pool_") {
        Some(at) => (&name[..at], &name[at + "pool_".len()..]),
        None => (name.strip_suffix("requests_waiting")?, "requests_waiting"),
    };
    let known = ENDINGS.iter().find(|it| **it == ending)?;
    let beginning = beginning.trim_end_matches('_');
    // psycopg's own keys begin with `pool_`, whatever stands before them.
    let beginning = beginning.strip_suffix("_pool").unwrap_or(beginning);
    Some(Meaning::Loose(beginning.trim_end_matches('_').to_owned(), known))
}

/// The value of the first of these labels; an exporter may keep the dots of a name or write underscores.
fn first_label<'a>(series: &'a Series<'_>, labels: &[&str]) -> Option<&'a str> {
    labels.iter().find_map(|wanted| {
        let dotted = series.labels.iter().find(|(it, _)| it.contains('.') && it.replace('.', "_") == **wanted);
        series.label(wanted).or_else(|| dotted.map(|(_, value)| &**value))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `name: used/limit idle waiting (by), processes` of each pool.
    fn shown(text: &str) -> String {
        let pools = match pools(text) {
            Ok(pools) => pools,
            Err(error) => return error,
        };
        let number = |it: Option<f64>| it.map_or("?".to_owned(), |it| it.to_string());
        let lines = pools.iter().map(|it| {
            let n = it.numbers.completed();
            let [used, limit, idle, waiting] = [n.in_use, n.limit, n.idle, n.waiting].map(number);
            format!("{}: {used}/{limit} {idle} {waiting} ({}) {}", it.name, it.by, it.processes)
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn micrometer_and_hikari_itself() {
        let text = r#"
# HELP hikaricp_connections_active Active connections
# TYPE hikaricp_connections_active gauge
hikaricp_connections_active{application="shop",pool="main"} 9.0
hikaricp_connections_idle{application="shop",pool="main"} 1.0
hikaricp_connections_pending{application="shop",pool="main"} 4.0
hikaricp_connections_max{application="shop",pool="main"} 10.0
hikaricp_connections_min{application="shop",pool="main"} 10.0
hikaricp_connections_acquire_seconds_count{pool="main"} 9000
hikaricp_active_connections{pool="reports"} 1
hikaricp_max_connections{pool="reports"} 2
hikaricp_min_connections{pool="reports"} 1
hikaricp_pending_threads{pool="reports"} 0
"#;
        assert_eq!(
            shown(text),
            "main: 9/10 1 4 (hikaricp_connections_*) 1\nreports: 1/2 ? 0 (hikaricp_*_connections) 1"
        );
        let least: Vec<_> = pools(text).expect("pools").iter().map(|it| it.numbers.least_idle).collect();
        assert_eq!(least, [Some(10.0), Some(1.0)]);
    }

    #[test]
    fn open_telemetry_by_its_old_and_new_names() {
        let text = r#"
{"db.client.connection.count","db.client.connection.pool.name"="app","db.client.connection.state"="used"} 3
{"db.client.connection.count","db.client.connection.pool.name"="app","db.client.connection.state"="idle"} 2
{"db.client.connection.max","db.client.connection.pool.name"="app"} 5
db_client_connections_usage{pool_name="old",state="used"} 4
db_client_connections_usage{pool_name="old",state="idle"} 0
db_client_connections_max{pool_name="old"} 4
db_client_connections_pending_requests{pool_name="old"} 7
"#;
        assert_eq!(shown(text), "app: 3/5 2 ? (db.client.connection.*) 1\nold: 4/4 0 7 (db.client.connections.*) 1");
        let counted = r#"
{"db.client.connection.idle.min","db.client.connection.pool.name"="app"} 2
{"db.client.connection.idle.max","db.client.connection.pool.name"="app"} 4
{"db.client.connection.timeouts_total","db.client.connection.pool.name"="app"} 3
{"db.client.connection.wait_time_seconds_sum","db.client.connection.pool.name"="app"} 1.5
db_client_connections_use_time_milliseconds_sum{pool_name="old"} 9000
db_client_connections_use_time_milliseconds_count{pool_name="old"} 90
"#;
        let all: Vec<_> = pools(&format!("{text}{counted}")).expect("pools").into_iter().map(|it| it.numbers).collect();
        let app = Totals { timeouts: Some(3.0), wait_seconds: Some(1.5), ..Totals::default() };
        assert_eq!((all[0].least_idle, all[0].most_idle, all[0].totals), (Some(2.0), Some(4.0), app));
        let old = Totals { uses: Some(90.0), use_seconds: Some(9.0), ..Totals::default() };
        assert_eq!((all[1].least_idle, all[1].totals), (None, old));
    }

    #[test]
    fn go_and_the_libraries_without_an_exporter() {
        let go = "go_sql_max_open_connections{db_name=\"app\"} 8\ngo_sql_open_connections{db_name=\"app\"} 5\n\
                  go_sql_in_use_connections{db_name=\"app\"} 5\ngo_sql_idle_connections{db_name=\"app\"} 0\n";
        assert_eq!(shown(go), "app: 5/8 0 ? (go_sql_*_connections) 1");
        let waits = format!(
            "{go}go_sql_wait_count_total{{db_name=\"app\"}} 40\ngo_sql_wait_duration_seconds_total{{db_name=\"app\"}} 2.5\n"
        );
        let other = go.replace("go_sql_", "go_sql_stats_connections_").replace("_connections{", "{")
            + "go_sql_stats_connections_waited_for{db_name=\"app\"} 40\ngo_sql_stats_connections_blocked_seconds{db_name=\"app\"} 2.5\n";
        for page in [waits, other] {
            let told = pools(&page).expect("pools");
            let totals = told.first().map(|it| it.numbers.totals);
            assert_eq!(
                totals,
                Some(Totals { waits: Some(40.0), wait_seconds: Some(2.5), ..Totals::default() }),
                "{page}"
            );
        }
        let psycopg = "app_pool_max 10\napp_pool_size 10\napp_pool_available 0\napp_requests_waiting 3\n";
        assert_eq!(shown(psycopg), "app: 10/10 0 3 (psycopg_pool's statistics) 1");
        let ruby = "ruby_active_record_connection_pool_size 5\nruby_active_record_connection_pool_busy 5\n\
                    ruby_active_record_connection_pool_waiting 2\n";
        assert_eq!(shown(ruby), "ruby_active_record_connection: 5/5 ? 2 (ActiveRecord's pool statistics) 1");
    }

    #[test]
    fn the_workers_of_one_page_are_added_up() {
        let worker = |pid: u32, used: u32| {
            format!("db_pool_size{{pid=\"{pid}\"}} 5\ndb_pool_checked_out{{pid=\"{pid}\"}} {used}\n")
        };
        assert_eq!(shown(&(worker(1, 5) + &worker(2, 3))), "db: 8/? ? ? (SQLAlchemy's pool) 2");
    }

    #[test]
    fn other_pools_and_other_pages_are_not_taken_for_it() {
        assert_eq!(shown("jvm_memory_pool_max 5\nthread_pool_size 8\nthread_pool_idle 3\n"), "");
        assert_eq!(shown("<html><body>hello</body></html>"), "no metrics");
        assert_eq!(shown("up 1\nhikaricp_connections_active{pool=\"ma"), "line 2 is cut");
    }

    #[test]
    fn a_gauge_whose_pool_is_gone_tells_nothing() {
        let page = "hikaricp_connections_active{pool=\"a\"} NaN\nhikaricp_connections_pending{pool=\"a\"} 0\n";
        let told = pools(page).expect("a page");
        assert_eq!((told.len(), told[0].numbers.in_use, told[0].numbers.waiting), (1, None, Some(0.0)));
    }

    proptest! {
        #[test]
        fn no_page_panics(
            lines in proptest::collection::vec(
                "(hikaricp_connections_active|a_pool_size|pool_checked_out|x_requests_waiting|é)[{}a-z=\",é0-9 ]{0,20}",
                0..8,
            ),
        ) {
            let _ = pools(&lines.join("\n"));
        }
    }
}
