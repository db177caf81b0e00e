//! The typed table of checks: what each one means, its bounds and holds, and where the numbers come from.

use std::time::Duration;

use super::hold::{Hold, Holds};
use super::threshold::Bounds;
use crate::inspect::Unit;

/// How likely a check is to cry wolf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FalseAlarm {
    /// The value is the fault.
    Low,
    /// The value may be innocent: a warning, unless a second sign says the same.
    Medium,
    /// The value often is innocent: the same.
    High,
}

impl FalseAlarm {
    /// `low`, `medium` or `high`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// One row of the table.
#[derive(Debug)]
pub struct Check {
    /// Id, as in the configuration and on the wire.
    pub id: &'static str,
    /// What is wrong when it fires.
    pub meaning: &'static str,
    /// The number that stands against the bounds.
    pub value: &'static str,
    /// Unit of that number.
    pub unit: Unit,
    /// Shipped bounds.
    pub bounds: Bounds,
    /// Shipped holds.
    pub holds: Holds,
    /// Harm to users: 5 outage or exposure, 4 data, 3 degraded, 2 sight, 1 hygiene.
    pub impact: u8,
    /// Chance that the harm is there or comes, 0 to 1.
    pub probability: f64,
    /// Risk of a false alarm.
    pub false_alarm: FalseAlarm,
    /// The least that it needs to see anything.
    pub needs: &'static str,
    /// What to do when it fires.
    pub advice: &'static str,
    /// Where the numbers come from.
    pub reason: &'static str,
}

/// Names of the rows, in the order of [`CHECKS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum CheckId {
    Exhausted,
    Leak,
    LeakRate,
    ErrorPath,
    IdleInTransaction,
    AbortedTransaction,
    CloseWait,
    Churn,
    Absent,
    HalfOpen,
    Keepalive,
    ConnectStuck,
    Storm,
    Ghost,
    StaleDns,
    Utilization,
    Stats,
    Params,
    PoolTimeout,
    Prepared,
    AsyncMisuse,
    SqliteShared,
    Headroom,
    Connect,
    Locks,
    TxAbandoned,
    TxErrors,
    Role,
    Replica,
    Memory,
    Descriptors,
    Restart,
    Zombie,
    Gone,
    HttpStatus,
    HttpLatency,
    HttpBody,
    Certificate,
    Blind,
    Slow,
    Buffer,
    Clock,
}

impl CheckId {
    /// Its row.
    pub(super) fn check(self) -> &'static Check {
        &CHECKS[self as usize]
    }

    /// The name of a row.
    pub(super) fn find(id: &str) -> Option<Self> {
        Self::all().find(|it| it.check().id == id)
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        use CheckId::*;
        [
            Exhausted,
            Leak,
            LeakRate,
            ErrorPath,
            IdleInTransaction,
            AbortedTransaction,
            CloseWait,
            Churn,
            Absent,
            HalfOpen,
            Keepalive,
            ConnectStuck,
            Storm,
            Ghost,
            StaleDns,
            Utilization,
            Stats,
            Params,
            PoolTimeout,
            Prepared,
            AsyncMisuse,
            SqliteShared,
            Headroom,
            Connect,
            Locks,
            TxAbandoned,
            TxErrors,
            Role,
            Replica,
            Memory,
            Descriptors,
            Restart,
            Zombie,
            Gone,
            HttpStatus,
            HttpLatency,
            HttpBody,
            Certificate,
            Blind,
            Slow,
            Buffer,
            Clock,
        ]
        .into_iter()
    }
}

const MINUTE: f64 = 60.0;
const DAY: f64 = 24.0 * 60.0 * MINUTE;

/// An event: 1 while it is so. The bound says which severity it has.
const WARNS: Bounds = Bounds::event(true, false);
const IS_CRITICAL: Bounds = Bounds::event(false, true);
/// The same, recorded and told to nobody.
const IS_RECORDED: Bounds = Bounds::event(false, false).recorded_from(1.0);

const fn seconds(count: u64) -> Hold {
    Hold::For(Duration::from_secs(count))
}

const THREE_LOOKS: Holds = Holds::both(Hold::Looks(3));

const SERVER_VIEW: &str = "a section of the server ([[postgres]] with a role of the application or of pg_monitor, [[pgbouncer]], [[mysql]], \
                           [[redis]]), and the owner of the sockets";

/// What any server tells.
const ANY_SERVER: &str = "a section of the server: [[postgres]], [[pgbouncer]], [[mysql]], [[redis]] or [[rabbitmq]]";
const REPLICATION: &str = "a [[postgres]] or [[redis]] section";

const PG_MONITOR: &str = "a [[postgres]] section with a role in pg_monitor, or one that owns every session";

/// Every check, in the order in which they are shown.
pub static CHECKS: &[Check] = &[
    Check {
        id: "pool.exhausted",
        meaning: "every connection of the pool is leased and callers wait for one",
        value: "time for which callers have waited with every connection leased and none being opened",
        unit: Unit::Seconds,
        bounds: Bounds::above(Some(3.0), Some(10.0)),
        holds: Holds { warning: Hold::Looks(1), critical: Hold::Looks(1), clearing: 3 },
        impact: 5,
        probability: 0.8,
        false_alarm: FalseAlarm::Medium,
        needs: "callers that wait, from pool.metrics, pool.health or a pooler; else the server's view and requests that this host can see",
        advice: "see in the evidence what each lease does: end what is stuck, then shorten what holds a connection while it waits for something else",
        reason: "a burst passes within two seconds; requests that wait give up after ten to thirty; critical needs exact waiters or a limit that is reached",
    },
    Check {
        id: "pool.leak",
        meaning: "connections are taken from the pool and not given back",
        value: "age of the second oldest lease that is held while nothing is done with it; the two began at different times",
        unit: Unit::Seconds,
        bounds: Bounds::above(Some(60.0), None),
        holds: THREE_LOOKS,
        impact: 5,
        probability: 0.8,
        false_alarm: FalseAlarm::Medium,
        needs: "the server's view, or a pool that rotates, or one that grows; the owner of the sockets",
        advice: "give the connection back in a finally block or a context manager, on the error path too; long jobs are allowed by allow_application_names",
        reason: "60 s until five minutes of leases are known, then 20 times their 99th percentile and at least 10 s; critical when they are half of the limit, the pool is empty within 5 min, or the oldest is over 300 s",
    },
    Check {
        id: "pool.leak_rate",
        meaning: "how many connections an hour are not given back",
        value: "connections that pool.leak has named within the last hour",
        unit: Unit::Count,
        bounds: Bounds::above(Some(1.0), Some(5.0)),
        holds: Holds::both(Hold::Looks(1)),
        impact: 5,
        probability: 0.8,
        false_alarm: FalseAlarm::Low,
        needs: "what pool.leak needs",
        advice: "none is the only right number: find the path that does not give back by the last statement in the evidence",
        reason: "five to ten an hour emptied a pool of thirty in an afternoon; each was named by pool.leak first",
    },
    Check {
        id: "err.correlate",
        meaning: "a request that fails does not give its connection back: a leak on error path",
        value: "connections held too long whose last data went within 1 s of a traceback or a 5xx in the application's log",
        unit: Unit::Count,
        bounds: Bounds::above(Some(1.0), None),
        holds: THREE_LOOKS,
        impact: 3,
        probability: 0.5,
        false_alarm: FalseAlarm::Medium,
        needs: "a [[log]] section of the application, and what pool.leak needs",
        advice: "close the session in a finally block or a context manager where the named error passes; the fingerprint is the same each time it is raised",
        reason: "held too long is what pool.leak calls so; nothing is said where chance alone would make a fifth of the pairs, since a pair is two times and no proof",
    },
    Check {
        id: "pool.idle_in_transaction",
        meaning: "a transaction was opened and left alone: its locks stay, vacuum waits, its connection is missing in the pool",
        value: "age of the oldest session that is idle in transaction",
        unit: Unit::Seconds,
        bounds: Bounds::above(Some(30.0), Some(300.0)),
        holds: THREE_LOOKS,
        impact: 5,
        probability: 0.5,
        false_alarm: FalseAlarm::Low,
        needs: SERVER_VIEW,
        advice: "close the session in a finally block or a context manager; end the named backends with pg_terminate_backend() if the pool runs dry",
        reason: "a request that computes between two statements takes seconds; 30 s is beyond any of them, 300 s beyond most batches",
    },
    Check {
        id: "pool.aborted_transaction",
        meaning: "a transaction failed and was kept open: every later statement on its connection fails",
        value: "age of the oldest session that is idle in an aborted transaction",
        unit: Unit::Seconds,
        bounds: Bounds::above(Some(10.0), None),
        holds: THREE_LOOKS,
        impact: 3,
        probability: 0.5,
        false_alarm: FalseAlarm::Low,
        needs: SERVER_VIEW,
        advice: "roll back where the error is caught; a session that failed must not be used again before that",
        reason: "an error path rolls back within milliseconds; 10 s leaves room for a person in psql",
    },
    Check {
        id: "pool.close_wait",
        meaning: "the server closed connections and the pool did not notice: the next checkout gets a dead one",
        value: "age of the oldest of three or more CLOSE_WAIT connections that rose and do not fall while the pool has traffic",
        unit: Unit::Seconds,
        bounds: Bounds::above(Some(300.0), None),
        holds: THREE_LOOKS,
        impact: 3,
        probability: 0.5,
        false_alarm: FalseAlarm::Medium,
        needs: "nothing",
        advice: "test connections before use (pool_pre_ping), recycle them earlier than the server ends them, and close what failed",
        reason: "a pool at work hands out every connection within minutes and so finds the dead ones; an idle pool is left alone",
    },
    Check {
        id: "pool.churn",
        meaning: "connections are opened and closed all the time instead of being pooled",
        value: "connections born per second over the last 30 s, while their median life is under 2 s",
        unit: Unit::PerSecond,
        bounds: Bounds::above(Some(1.0), None),
        holds: Holds::both(seconds(300)),
        impact: 3,
        probability: 0.5,
        false_alarm: FalseAlarm::Low,
        needs: "nothing",
        advice: "keep one pool per process and give connections back to it; NullPool or a new engine for each request opens one each time",
        reason: "one a second for five minutes is no start, probe or cron job; a pooled connection lives for minutes",
    },
    Check {
        id: "pool.absent",
        meaning: "the application has no pool: each request opens a connection and closes it",
        value: "connections born per second and process over the last 30 s, while none is kept and their median life is under 2 s",
        unit: Unit::PerSecond,
        bounds: Bounds::above(Some(1.0), None),
        holds: Holds::both(seconds(300)),
        impact: 3,
        probability: 0.5,
        false_alarm: FalseAlarm::Medium,
        needs: "nothing",
        advice: "make one pool when the process starts and take connections from it; with a pooler in front at least keep one per worker",
        reason: "one a second for five minutes is no start, probe or cron job; while this fires pool.churn does not begin",
    },
    Check {
        id: "pool.half_open",
        meaning: "the peer is gone without a word: requests hang on a dead connection",
        value: "longest silence of a connection with 3 retransmissions in a row, or 2 keepalive probes, unanswered",
        unit: Unit::Seconds,
        bounds: Bounds::above(Some(10.0), None),
        holds: THREE_LOOKS,
        impact: 3,
        probability: 0.5,
        false_alarm: FalseAlarm::Medium,
        needs: "nothing; without keepalive an idle connection cannot be seen to be dead",
        advice: "see whether the server or a firewall between dropped it; set tcp_user_timeout and keepalives so that the driver gives up",
        reason: "a lossy network is heard again within seconds; 10 s of silence to repeated segments is not loss",
    },
    Check {
        id: "pool.keepalive",
        meaning: "connections without TCP keepalive: a lost peer would not be noticed while they are idle",
        value: "1 while it is so",
        unit: Unit::Count,
        bounds: IS_RECORDED,
        holds: THREE_LOOKS,
        impact: 1,
        probability: 0.2,
        false_alarm: FalseAlarm::Low,
        needs: "nothing",
        advice: "switch keepalive on in the driver (keepalives=1&keepalives_idle=30 with libpq) or test connections before use",
        reason: "it is no fault as long as no peer is lost, so it is recorded and told to nobody",
    },
    Check {
        id: "pool.connect_stuck",
        meaning: "connecting to the server hangs: its first answer does not come",
        value: "how long connections have been tried without one that was answered",
        unit: Unit::Seconds,
        bounds: Bounds::above(Some(3.0), None),
        holds: THREE_LOOKS,
        impact: 5,
        probability: 0.5,
        false_alarm: FalseAlarm::Low,
        needs: "nothing",
        advice: "check the address, the route and the firewalls on the way: nobody answers, not even with a refusal",
        reason: "a first answer takes milliseconds; after 3 s two of our own packets were lost or ignored",
    },
    Check {
        id: "pool.storm",
        meaning: "a pool reconnected all at once: the server failed over, restarted, or the network broke",
        value: "1 while it is so",
        unit: Unit::Count,
        bounds: IS_RECORDED,
        holds: THREE_LOOKS,
        impact: 1,
        probability: 0.2,
        false_alarm: FalseAlarm::Medium,
        needs: "the age of the process",
        advice: "see what happened to the server at that time; a jittered backoff keeps all clients from coming at once",
        reason: "half of a pool within 10 s is no growth by demand; a process younger than 60 s opens its pool and is left out",
    },
    Check {
        id: "pool.ghost",
        meaning: "sessions stay on the server though their client is gone: their slots are lost until it notices",
        value: "sessions that were joined with a socket here, which is gone",
        unit: Unit::Count,
        bounds: Bounds::above(Some(1.0), None),
        holds: Holds::both(Hold::Looks(1)),
        impact: 3,
        probability: 0.5,
        false_alarm: FalseAlarm::Medium,
        needs: SERVER_VIEW,
        advice: "end the named backends with pg_terminate_backend(); set tcp_keepalives_idle at the server so that it notices by itself",
        reason: "two looks in a row without the socket; a session whose socket was never here is somebody else's and is not counted",
    },
    Check {
        id: "pool.stale_dns",
        meaning: "the pool still talks to an address to which its database's name does not lead any more",
        value: "seconds since the name last led there, while connections older than that are open",
        unit: Unit::Seconds,
        bounds: Bounds::above(None, None).recorded_from(300.0),
        holds: Holds::both(Hold::Looks(1)),
        impact: 1,
        probability: 0.2,
        false_alarm: FalseAlarm::Medium,
        needs: "a DSN with a name: in a section of a server, or in the readable environment of the process",
        advice: "let the pool renew its connections (pool_recycle, max_lifetime) or restart it; after a failover see db.role",
        reason: "the resolver tells no TTL, so 300 s stand for two of them; the last ten answers count as one, for round robin",
    },
    Check {
        id: "pool.utilization",
        meaning: "the pool is nearly used up: requests will soon wait for a connection",
        value: "certainly used connections of the fullest instance, against its limit",
        unit: Unit::Ratio,
        bounds: Bounds::above(Some(0.80), Some(0.95)),
        holds: Holds { warning: seconds(60), critical: seconds(30), clearing: 3 },
        impact: 5,
        probability: 0.5,
        false_alarm: FalseAlarm::Medium,
        needs: "a limit (pool.limit, or readable in the process's environment) and the server's view",
        advice: "look for sessions held too long before raising the limit; then size the pool by its peak use",
        reason: "the owners of such applications page at 80 %; a peak of less than a minute empties by itself",
    },
    Check {
        id: "pool.stats",
        meaning: "what an application says of its own pool cannot be: nothing is judged by it",
        value: "1 while it is so",
        unit: Unit::Count,
        bounds: WARNS,
        holds: THREE_LOOKS,
        impact: 1,
        probability: 0.2,
        false_alarm: FalseAlarm::Low,
        needs: "pool.metrics or pool.health in the [[app]] section",
        advice: "compare the page with the pool's own numbers; a pointer of pool.health may lead to another number",
        reason: "the numbers of a page are a moment apart and may differ by two; what differs by more at three looks is wrong",
    },
    Check {
        id: "pool.params",
        meaning: "a DSN lacks what its driver needs behind a pooler that hands each transaction another server connection",
        value: "1 while it is so",
        unit: Unit::Count,
        bounds: Bounds::event(true, true),
        holds: THREE_LOOKS,
        impact: 3,
        probability: 0.5,
        false_alarm: FalseAlarm::Medium,
        needs: "the process's environment, and the pooler's mode: pool.pooler of its [[app]], or a [[pgbouncer]] section",
        advice: "add the key to the DSN; where the program sets it in its code, name another with pool.required or switch this off",
        reason: "a hint (info) by the driver alone, a warning for keys of pool.required; critical once the log says that \
                 prepared statements fail",
    },
    Check {
        id: "pool.timeout",
        meaning: "somebody waited for a connection in vain, or the server has no slot left: requests fail",
        value: "occurrences in the application's log in the last minute",
        unit: Unit::Count,
        bounds: Bounds::above(None, Some(1.0)),
        holds: Holds::both(Hold::Looks(1)),
        impact: 5,
        probability: 0.8,
        false_alarm: FalseAlarm::Low,
        needs: "a [[log]] section",
        advice: "see who holds the connections (`tickbird-agent inspect`) before the pool is made larger",
        reason: "the text is written when a request has failed for want of a connection, so one is enough",
    },
    Check {
        id: "pool.prepared",
        meaning: "prepared statements fail: a pooler hands each transaction another server connection",
        value: "occurrences in the application's log in the last minute",
        unit: Unit::Count,
        bounds: Bounds::above(Some(1.0), Some(5.0)),
        holds: Holds::both(Hold::Looks(1)),
        impact: 3,
        probability: 0.5,
        false_alarm: FalseAlarm::Low,
        needs: "a [[log]] section",
        advice: "switch prepared statements off in the driver (statement_cache_size=0, or prepare_threshold=None in psycopg's code), or let the pooler track them",
        reason: "no correct application writes it; five a minute are no more one unlucky request",
    },
    Check {
        id: "db.async_misuse",
        meaning: "one session is used by several tasks at once: its results and transactions mix",
        value: "occurrences in the application's log in the last minute",
        unit: Unit::Count,
        bounds: Bounds::above(Some(1.0), None),
        holds: Holds::both(Hold::Looks(1)),
        impact: 4,
        probability: 0.5,
        false_alarm: FalseAlarm::Low,
        needs: "a [[log]] section",
        advice: "give each task a session of its own, and load what is needed before the session is left",
        reason: "the driver refuses what it noticed; what it did not notice is wrong data",
    },
    Check {
        id: "sqlite.shared",
        meaning: "a SQLite database is written by several processes, locked, or damaged",
        value: "processes that have it open for writing; in a log: lines in the last minute that say it is locked",
        unit: Unit::Count,
        bounds: Bounds::above(Some(2.0), None),
        holds: THREE_LOOKS,
        impact: 4,
        probability: 0.5,
        false_alarm: FalseAlarm::Low,
        needs: "the application's user, or CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH together; a [[log]] section for locks",
        advice: "let one process write, or move to a database server; with several processes journal_mode=WAL and a busy_timeout are the least",
        reason: "SQLite lets one writer at a time through: the second waits, and fails once its busy timeout is over",
    },
    Check {
        id: "db.headroom",
        meaning: "the server is nearly out of connection slots: soon it refuses everybody",
        value: "sessions against max_connections less the reserved ones",
        unit: Unit::Ratio,
        bounds: Bounds::above(Some(0.80), Some(0.95)),
        holds: THREE_LOOKS,
        impact: 5,
        probability: 0.8,
        false_alarm: FalseAlarm::Low,
        needs: ANY_SERVER,
        advice: "see which applications hold the slots; lower their pools, or put a pooler in front, before raising max_connections",
        reason: "below 80 % one more deploy with both versions running still fits",
    },
    Check {
        id: "db.connect",
        meaning: "connecting to the database is slow, fails or is refused",
        value: "time from the first packet to a session that is ready",
        unit: Unit::Seconds,
        bounds: Bounds::above(Some(1.0), Some(5.0)),
        holds: THREE_LOOKS,
        impact: 5,
        probability: 0.8,
        false_alarm: FalseAlarm::Low,
        needs: ANY_SERVER,
        advice: "check that the server runs and has free slots, then the way to it: name, route, TLS, authentication",
        reason: "a connection takes milliseconds in a data centre; at 5 s the callers' own timeouts begin",
    },
    Check {
        id: "db.locks",
        meaning: "sessions wait for a lock that another one holds, or the server had to break a deadlock",
        value: "the longest wait for a lock",
        unit: Unit::Seconds,
        bounds: Bounds::above(Some(5.0), Some(30.0)),
        holds: THREE_LOOKS,
        impact: 3,
        probability: 0.5,
        false_alarm: FalseAlarm::Low,
        needs: PG_MONITOR,
        advice: "end the transaction that holds the lock (it is named), and keep transactions short; after a deadlock take locks in one order everywhere",
        reason: "a statement waits milliseconds for a row; at 30 s the callers' own timeouts have begun. A deadlock is an error in the application, each of them",
    },
    Check {
        id: "db.tx_abandoned",
        meaning: "many transactions are rolled back: an error path, or a commit that is never reached",
        value: "rollbacks among all transactions of the database over 5 min",
        unit: Unit::Ratio,
        bounds: Bounds::above(Some(0.02), Some(0.10)),
        holds: THREE_LOOKS,
        impact: 4,
        probability: 0.5,
        false_alarm: FalseAlarm::Medium,
        needs: "a [[postgres]] section, and 15 min to learn what the database does by habit",
        advice: "read the application's log for errors of that time; see that each session commits, and rolls back where it fails",
        reason: "an application that commits what it does rolls back one transaction in a hundred; where rollbacks are a habit only their rise counts, and only beside another sign",
    },
    Check {
        id: "db.tx_errors",
        meaning: "transactions fail: deadlocks, conflicts with replay, rollbacks where there never were any",
        value: "transaction errors in 5 min",
        unit: Unit::Count,
        bounds: Bounds::above(Some(5.0), None).recorded_from(1.0),
        holds: THREE_LOOKS,
        impact: 4,
        probability: 0.5,
        false_alarm: FalseAlarm::Medium,
        needs: "a [[postgres]] section",
        advice: "the server's log names the statements; retry what failed by 40001 and 40P01, and mend what failed otherwise",
        reason: "none is normal in production; one a minute is a fault that users see, fewer are recorded as info",
    },
    Check {
        id: "db.role",
        meaning: "a server changed its role or is another one, and applications may still be on the old primary",
        value: "for how long connections of this host have stood on a server that takes no writes any more",
        unit: Unit::Seconds,
        bounds: Bounds::above(None, Some(30.0)).recorded_from(1.0),
        holds: Holds::both(Hold::Looks(1)),
        impact: 5,
        probability: 0.5,
        false_alarm: FalseAlarm::Low,
        needs: REPLICATION,
        advice: "reconnect the pools: name all servers in the DSN with target_session_attrs=read-write, or recycle connections after a read-only error",
        reason: "a pool that follows a failover does so within its health check; after 30 s every write fails",
    },
    Check {
        id: "db.replica",
        meaning: "a replica is behind: reads from it are old, and a failover would lose what it lacks",
        value: "how far the slowest replica is behind",
        unit: Unit::Seconds,
        bounds: Bounds::above(Some(30.0), None),
        holds: THREE_LOOKS,
        impact: 4,
        probability: 0.5,
        false_alarm: FalseAlarm::Low,
        needs: "a [[postgres]] section with a role in pg_monitor, or a [[redis]] section",
        advice: "look for a long query on the replica, a lost connection to the primary, or a burst of writes",
        reason: "a replica replays within a second; nobody reads thirty seconds old data on purpose",
    },
    Check {
        id: "proc.memory",
        meaning: "a process nears its memory limit, or has far more than it usually had",
        value: "share of the limit of its control group; without one, times its own usual memory",
        unit: Unit::Ratio,
        bounds: Bounds::above(Some(0.80), Some(0.95)),
        holds: THREE_LOOKS,
        impact: 3,
        probability: 0.5,
        false_alarm: FalseAlarm::Medium,
        needs: "cgroup v2 for a limit; else a day of history; or a bound in bytes in the configuration",
        advice: "find what grew since the last restart; at the limit the kernel kills the process",
        reason: "page cache that can be dropped is not counted; critical only while the kernel reclaims in vain",
    },
    Check {
        id: "fd.limit",
        meaning: "a process is nearly out of descriptors: soon it accepts and opens nothing more",
        value: "open descriptors against the soft limit of the fullest instance",
        unit: Unit::Ratio,
        bounds: Bounds::above(Some(0.80), Some(0.95)),
        holds: THREE_LOOKS,
        impact: 5,
        probability: 0.8,
        false_alarm: FalseAlarm::Low,
        needs: "the right to read the process's descriptors",
        advice: "look for sockets and files that are never closed; raise LimitNOFILE= only for honest load",
        reason: "arithmetic; the last fifth goes in one burst of connections",
    },
    Check {
        id: "proc.restart",
        meaning: "a service keeps crashing, or the kernel killed it for memory",
        value: "restarts of every instance in the last hour",
        unit: Unit::Count,
        bounds: Bounds::above(Some(2.0), None),
        holds: Holds::both(Hold::Looks(1)),
        impact: 5,
        probability: 0.8,
        false_alarm: FalseAlarm::Low,
        needs: "nothing; OOM kills need cgroup v2",
        advice: "read the end of its log before the last restart; after an OOM kill compare its memory with the limit",
        reason: "one restart is a deploy, and so is one of each instance; two within the hour are not",
    },
    Check {
        id: "proc.zombie",
        meaning: "a process does not wait for its children: the process table fills",
        value: "zombies older than 60 s under one parent",
        unit: Unit::Count,
        bounds: Bounds::above(Some(3.0), None),
        holds: THREE_LOOKS,
        impact: 1,
        probability: 0.5,
        false_alarm: FalseAlarm::Low,
        needs: "nothing",
        advice: "let the parent wait for its children, or run it under an init that does (tini, systemd)",
        reason: "a zombie lasts milliseconds under a parent that waits; one or two may be a library's habit",
    },
    Check {
        id: "proc.gone",
        meaning: "a process ended and nothing took its place",
        value: "1 while it is so",
        unit: Unit::Count,
        bounds: Bounds::event(true, true),
        holds: Holds::both(seconds(5)),
        impact: 5,
        probability: 0.8,
        false_alarm: FalseAlarm::Low,
        needs: "nothing",
        advice: "read the end of its log and ask its supervisor why it is not started again",
        reason: "a supervisor restarts within seconds; critical when the operator declared it, else a warning",
    },
    Check {
        id: "http.status",
        meaning: "an endpoint does not answer, or with a status that is not the expected one",
        value: "1 while it is so",
        unit: Unit::Count,
        bounds: IS_CRITICAL,
        holds: Holds::both(Hold::Looks(2)),
        impact: 5,
        probability: 0.5,
        false_alarm: FalseAlarm::Low,
        needs: "an [[endpoint]] section",
        advice: "ask the endpoint by hand and read the application's log at that time",
        reason: "one failed request may be a deploy; two, ten seconds apart, are seen by users",
    },
    Check {
        id: "http.latency",
        meaning: "an endpoint answers slowly",
        value: "time from the name to the last byte of the answer",
        unit: Unit::Seconds,
        bounds: Bounds::above(Some(2.0), None),
        holds: Holds::both(Hold::Of { over: 3, looks: 5 }),
        impact: 3,
        probability: 0.5,
        false_alarm: FalseAlarm::Low,
        needs: "an [[endpoint]] section",
        advice: "the phases in the evidence say where the time goes: name, connection, TLS, first byte or body",
        reason: "the owners of such applications set 2 s; three of five leaves one slow answer out",
    },
    Check {
        id: "http.body",
        meaning: "an endpoint answers, but not what was asserted",
        value: "1 while it is so",
        unit: Unit::Count,
        bounds: IS_CRITICAL,
        holds: Holds::both(Hold::Looks(2)),
        impact: 3,
        probability: 0.5,
        false_alarm: FalseAlarm::Low,
        needs: "an [[endpoint]] section with body_matches or json",
        advice: "a wrong answer with a good status is often a stale cache or a dependency that failed silently",
        reason: "the operator wrote the assertion, so its failure is a fault; two looks as for the status",
    },
    Check {
        id: "tls.cert",
        meaning: "a certificate ends soon or is not trusted",
        value: "time until it ends",
        unit: Unit::Seconds,
        bounds: Bounds::below(Some(14.0 * DAY), Some(3.0 * DAY)),
        holds: THREE_LOOKS,
        impact: 5,
        probability: 0.5,
        false_alarm: FalseAlarm::Low,
        needs: "an [[endpoint]] section with https",
        advice: "renew it and reload the server; if it is not trusted, check that the whole chain is served",
        reason: "certificates of 90 days are renewed 30 days early: at 14 the renewal has failed for two weeks",
    },
    Check {
        id: "agent.blind",
        meaning: "a check cannot see",
        value: "1 while it is so",
        unit: Unit::Count,
        bounds: WARNS,
        holds: Holds::both(Hold::Looks(1)),
        impact: 2,
        probability: 0.5,
        false_alarm: FalseAlarm::Low,
        needs: "nothing",
        advice: "run `tickbird-agent doctor`: it says what is missing and how to grant it",
        reason: "told once the check itself has not seen anything for three looks",
    },
    Check {
        id: "agent.slow",
        meaning: "the agent looks later than it should",
        value: "intervals in which an inspector did not look",
        unit: Unit::Count,
        bounds: Bounds::above(Some(3.0), None),
        holds: Holds::both(Hold::Looks(1)),
        impact: 2,
        probability: 0.5,
        false_alarm: FalseAlarm::Low,
        needs: "nothing",
        advice: "see whether the host is starved, or the source of this inspector slow; a longer interval costs less",
        reason: "one look left out is a hiccup; three are a fault that would have gone unseen",
    },
    Check {
        id: "agent.buffer",
        meaning: "the agent's buffer fills, has lost findings, or takes none",
        value: "bytes on disk against the bound; what was lost or refused is critical whatever the share",
        unit: Unit::Ratio,
        bounds: Bounds::above(Some(0.8), None),
        holds: Holds::both(Hold::Looks(1)),
        impact: 2,
        probability: 0.5,
        false_alarm: FalseAlarm::Low,
        needs: "an agent that is enrolled",
        advice: "see whether the collector can be reached (`tickbird-agent status`) and the file system has space; buffer.max_bytes is the bound",
        reason: "a full buffer gives up its oldest summaries first; findings are lost only when these are gone",
    },
    Check {
        id: "agent.clock",
        meaning: "the host's clock is wrong, or was set: times in findings lie",
        value: "seconds between the collector's clock and this one; seconds by which this one was set within the last minute",
        unit: Unit::Seconds,
        bounds: Bounds::above(Some(5.0), None),
        holds: Holds::both(Hold::Looks(1)),
        impact: 2,
        probability: 0.5,
        false_alarm: FalseAlarm::Low,
        needs: "nothing for steps; a collector for the offset",
        advice: "run a time service (chrony, systemd-timesyncd) on this host and on the collector's",
        reason: "5 s is more than any time service leaves, and enough to put causes behind their effects",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_points_at_its_row() {
        let ids: Vec<_> = CheckId::all().map(|it| it.check().id).collect();
        let rows: Vec<_> = CHECKS.iter().map(|it| it.id).collect();
        assert_eq!(ids, rows);
        for id in CheckId::all() {
            assert_eq!(CheckId::find(id.check().id), Some(id));
        }
        assert_eq!(CheckId::Clock as usize, CHECKS.len() - 1);
    }

    #[test]
    fn every_row_is_whole() {
        for it in CHECKS {
            let bounds = [it.bounds.info, it.bounds.warning, it.bounds.critical];
            assert!(bounds.iter().any(Option::is_some), "{}", it.id);
            assert!((1..=5).contains(&it.impact) && (0.0..=1.0).contains(&it.probability), "{}", it.id);
            for text in [it.meaning, it.value, it.needs, it.advice, it.reason] {
                assert!(!text.is_empty() && !text.ends_with('.') && !text.starts_with(' '), "{}: {text:?}", it.id);
            }
        }
    }
}
