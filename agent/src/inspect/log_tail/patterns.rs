//! What a line of a log means. Pure.
//!
//! A pattern is the text of one library's or server's error, with the numbers or names that only a real occurrence has.
//! Left out are lines of a harmless level, and texts that stand in quotation marks within a sentence: they speak of an
//! error, they are none.

use serde_json::Value as Json;

/// What a line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Somebody waited for a connection in vain, or the server has no slot left.
    PoolTimeout,
    /// A prepared statement is not there, or is there already.
    Prepared,
    /// One session is used by several tasks at once.
    AsyncMisuse,
    /// A SQLite database is locked by somebody else.
    SqliteLocked,
    /// A SQLite database is damaged, by SQLite's own word.
    SqliteDamaged,
    /// SQLSTATE 40001.
    SerializationFailure,
    /// SQLSTATE 40P01.
    Deadlock,
    /// SQLSTATE 25P02.
    AbortedTransaction,
    /// SQLSTATE 25006.
    ReadOnlyTransaction,
}

impl Kind {
    /// The SQLSTATE, of what has just one.
    pub const fn sqlstate(self) -> Option<&'static str> {
        match self {
            Self::SerializationFailure => Some("40001"),
            Self::Deadlock => Some("40P01"),
            Self::AbortedTransaction => Some("25P02"),
            Self::ReadOnlyTransaction => Some("25006"),
            Self::PoolTimeout | Self::Prepared | Self::AsyncMisuse | Self::SqliteLocked | Self::SqliteDamaged => None,
        }
    }
}

/// The kinds that a SQLSTATE alone tells, in whatever language the server writes.
const BY_SQLSTATE: [Kind; 4] =
    [Kind::SerializationFailure, Kind::Deadlock, Kind::AbortedTransaction, Kind::ReadOnlyTransaction];

/// One step of a pattern.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// These words.
    Words(&'static str),
    /// A number, with a fraction or without.
    Number,
    /// Anything in double quotes, up to 200 bytes.
    Quoted,
}

use Part::{Number, Quoted, Words};

const PATTERNS: &[(Kind, &[Part])] = &[
    // SQLAlchemy
    (
        Kind::PoolTimeout,
        &[
            Words("QueuePool limit of size "),
            Number,
            Words(" overflow "),
            Number,
            Words(" reached, connection timed out"),
        ],
    ),
    // HikariCP
    (Kind::PoolTimeout, &[Words("Connection is not available, request timed out after "), Number, Words("ms")]),
    // psycopg_pool
    (Kind::PoolTimeout, &[Words("couldn't get a connection after "), Number, Words(" sec")]),
    // ActiveRecord
    (Kind::PoolTimeout, &[Words("could not obtain a connection from the pool within "), Number, Words(" seconds")]),
    // pg-pool
    (Kind::PoolTimeout, &[Words("timeout exceeded when trying to connect")]),
    // PostgreSQL
    (Kind::PoolTimeout, &[Words("too many connections for role "), Quoted]),
    (Kind::PoolTimeout, &[Words("too many connections for database "), Quoted]),
    (Kind::PoolTimeout, &[Words("remaining connection slots are reserved for ")]),
    (Kind::PoolTimeout, &[Words("sorry, too many clients already")]),
    (Kind::Prepared, &[Words("prepared statement "), Quoted, Words(" already exists")]),
    (Kind::Prepared, &[Words("prepared statement "), Quoted, Words(" does not exist")]),
    // asyncpg, SQLAlchemy
    (Kind::AsyncMisuse, &[Words("cannot perform operation: another operation is in progress")]),
    (Kind::AsyncMisuse, &[Words("concurrent operations are not permitted")]),
    (Kind::AsyncMisuse, &[Words("greenlet_spawn has not been called")]),
    // SQLite, in the words of Python's sqlite3 and of most other bindings
    (Kind::SqliteLocked, &[Words("database is locked")]),
    (Kind::SqliteLocked, &[Words("database table is locked")]),
    (Kind::SqliteDamaged, &[Words("database disk image is malformed")]),
    (Kind::SqliteDamaged, &[Words("file is not a database")]),
    (Kind::SerializationFailure, &[Words("could not serialize access due to ")]),
    (Kind::Deadlock, &[Words("deadlock detected")]),
    // MySQL and MariaDB; Python's drivers show the number and the text as a tuple
    (Kind::Deadlock, &[Words("Deadlock found when trying to get lock")]),
    (Kind::Deadlock, &[Words("(1213, 'Deadlock found when trying to get lock")]),
    (Kind::Deadlock, &[Words("(1213, \"Deadlock found when trying to get lock")]),
    (
        Kind::AbortedTransaction,
        &[Words("current transaction is aborted, commands ignored until end of transaction block")],
    ),
    (Kind::ReadOnlyTransaction, &[Words(" in a read-only transaction")]),
];

/// Reads line by line: a chain of exceptions tells one error several times.
#[derive(Debug, Default)]
pub(super) struct Reader {
    last: Option<Kind>,
    /// A line said that what follows is the same error in another coat.
    is_chained: bool,
}

impl Reader {
    /// What a line says, when it is the first to say so.
    pub(super) fn line(&mut self, line: &str) -> Option<Kind> {
        const CHAINS: [&str; 3] = [
            "The above exception was the direct cause of the following exception",
            "During handling of the above exception, another exception occurred",
            "Caused by: ",
        ];
        if CHAINS.iter().any(|it| line.trim_start().starts_with(it)) {
            self.is_chained = true;
        }
        let kind = meaning(line)?;
        let is_again = std::mem::take(&mut self.is_chained) && self.last == Some(kind);
        self.last = Some(kind);
        (!is_again).then_some(kind)
    }
}

/// What one line says by itself.
fn meaning(line: &str) -> Option<Kind> {
    if line.trim_start().starts_with('{')
        && let Ok(Json::Object(record)) = serde_json::from_str(line.trim())
    {
        let level = ["level", "levelname", "severity", "lvl", "log.level"].iter().find_map(|it| record.get(*it));
        if level.and_then(Json::as_str).is_some_and(is_harmless) {
            return None;
        }
        // The texts of a structured record stand in quotation marks by its own grammar; an error is often a record in it.
        let inner = record.values().filter_map(Json::as_object).flat_map(|it| it.values());
        return record.values().chain(inner).filter_map(Json::as_str).find_map(find);
    }
    if is_of_java(line) || head_level(line).is_some_and(is_harmless) { None } else { find(line) }
}

/// The harmless levels of java.util.logging, which are words of every day anywhere but before its colon.
fn is_of_java(line: &str) -> bool {
    ["FINE: ", "FINER: ", "FINEST: ", "CONFIG: "].iter().any(|it| line.starts_with(it))
}

fn is_harmless(level: &str) -> bool {
    ["info", "debug", "trace", "notice"].iter().any(|it| level.eq_ignore_ascii_case(it))
}

/// The first word among the line's first ten that is a level.
fn head_level(line: &str) -> Option<&str> {
    const LEVELS: [&str; 11] =
        ["info", "debug", "trace", "notice", "warning", "warn", "error", "critical", "fatal", "panic", "exception"];
    let words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|it| !it.is_empty());
    words.take(16).find(|word| LEVELS.iter().any(|it| word.eq_ignore_ascii_case(it)))
}

fn find(text: &str) -> Option<Kind> {
    PATTERNS.iter().find(|(_, parts)| occurs(text, parts)).map(|(kind, _)| *kind).or_else(|| by_sqlstate(text))
}

/// `(SQLSTATE 40001)`, `SQLSTATE[40P01]`, `SQLState: 25006`, as drivers write it.
fn by_sqlstate(text: &str) -> Option<Kind> {
    const WORDS: [&str; 2] = ["SQLSTATE", "SQLState"];
    let mut all = WORDS.iter().flat_map(|word| text.match_indices(word).map(|(at, word)| (at, at + word.len())));
    all.find_map(|(at, end)| {
        let rest = text.get(end..)?.trim_start_matches([' ', ':', '=', '[']);
        let is_alone = |code: &str| rest.strip_prefix(code).is_some_and(|it| !it.starts_with(char::is_alphanumeric));
        BY_SQLSTATE.into_iter().find(|it| it.sqlstate().is_some_and(is_alone)).filter(|_| !is_quoted(&text[..at]))
    })
}

/// Whether the parts stand one after the other, somewhere outside of quotation marks.
fn occurs(text: &str, parts: &[Part]) -> bool {
    let Some((Words(first), rest)) = parts.split_first() else { return false };
    text.match_indices(first).any(|(at, _)| !is_quoted(&text[..at]) && follows(&text[at + first.len()..], rest))
}

fn follows(mut text: &str, parts: &[Part]) -> bool {
    for part in parts {
        let rest = match part {
            Words(words) => text.strip_prefix(words),
            Number => {
                let length = text.bytes().take_while(|it| it.is_ascii_digit() || *it == b'.').count();
                (length > 0).then(|| &text[length..])
            }
            Quoted => text.strip_prefix('"').and_then(|it| {
                let end = it.bytes().take(200).position(|it| it == b'"')?;
                Some(&it[end + 1..])
            }),
        };
        let Some(rest) = rest else { return false };
        text = rest;
    }
    true
}

/// Whether what comes next is quoted in a sentence. `msg="…"`, `TimeoutError('…')` and `"key":"…"` quote by grammar.
fn is_quoted(before: &str) -> bool {
    let mut back = before.chars().rev();
    let is_mark = |c: char| matches!(c, '"' | '\'' | '`' | '\u{201c}' | '\u{2018}' | '\u{201e}' | '\u{ab}');
    back.next().is_some_and(is_mark) && !matches!(back.next(), Some('(' | '=' | ':'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn errors_are_known_as_libraries_write_them() {
        for (line, kind) in [
            (
                "sqlalchemy.exc.TimeoutError: QueuePool limit of size 5 overflow 10 reached, connection timed out, timeout 30.00 (Background on this error at: https://sqlalche.me/e/20/3o7r)",
                Kind::PoolTimeout,
            ),
            (
                "java.sql.SQLTransientConnectionException: HikariPool-1 - Connection is not available, request timed out after 30001ms (total=10, active=10, idle=0, waiting=3)",
                Kind::PoolTimeout,
            ),
            ("psycopg_pool.PoolTimeout: couldn't get a connection after 30.00 sec", Kind::PoolTimeout),
            ("2026-11-22T02:00:00.000Z ERROR Error: timeout exceeded when trying to connect", Kind::PoolTimeout),
            (
                "E, [2026-11-22T02:00:00.1 #7] ERROR -- api: could not obtain a connection from the pool within 5.000 seconds (waited 5.005 seconds); all pooled connections were in use (ActiveRecord::ConnectionTimeoutError)",
                Kind::PoolTimeout,
            ),
            (
                r#"{"level":50,"err":{"type":"Error","message":"timeout exceeded when trying to connect"},"msg":"500 /"}"#,
                Kind::PoolTimeout,
            ),
            (r#"org.postgresql.util.PSQLException: FATAL: too many connections for role "app""#, Kind::PoolTimeout),
            (r#"pq: too many connections for database "shop""#, Kind::PoolTimeout),
            ("2026-11-21 02:00:00 UTC [7] FATAL:  sorry, too many clients already", Kind::PoolTimeout),
            (
                "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
                Kind::PoolTimeout,
            ),
            (r#"level=error msg="pq: sorry, too many clients already""#, Kind::PoolTimeout),
            (
                r#"{"level":"error","message":"QueuePool limit of size 5 overflow 10 reached, connection timed out"}"#,
                Kind::PoolTimeout,
            ),
            (
                "ERROR in view: TimeoutError('QueuePool limit of size 1 overflow 0 reached, connection timed out')",
                Kind::PoolTimeout,
            ),
            (
                r#"asyncpg.exceptions.DuplicatePreparedStatementError: prepared statement "__asyncpg_stmt_1__" already exists"#,
                Kind::Prepared,
            ),
            (r#"ERROR: prepared statement "S_1" does not exist"#, Kind::Prepared),
            (
                "asyncpg.exceptions._base.InterfaceError: cannot perform operation: another operation is in progress",
                Kind::AsyncMisuse,
            ),
            (
                "sqlalchemy.exc.InvalidRequestError: This session is provisioning a new connection; concurrent operations are not permitted",
                Kind::AsyncMisuse,
            ),
            (
                "sqlalchemy.exc.MissingGreenlet: greenlet_spawn has not been called; can't call await_only() here",
                Kind::AsyncMisuse,
            ),
            ("sqlite3.OperationalError: database is locked", Kind::SqliteLocked),
            (
                "sqlalchemy.exc.DatabaseError: (sqlite3.DatabaseError) database disk image is malformed",
                Kind::SqliteDamaged,
            ),
            ("sqlite3.DatabaseError: file is not a database", Kind::SqliteDamaged),
            ("ERROR:  could not serialize access due to concurrent update", Kind::SerializationFailure),
            ("psycopg.errors.DeadlockDetected: deadlock detected", Kind::Deadlock),
            (
                "ERROR:  current transaction is aborted, commands ignored until end of transaction block",
                Kind::AbortedTransaction,
            ),
            ("ERROR:  cannot execute INSERT in a read-only transaction", Kind::ReadOnlyTransaction),
            ("FEHLER:  Verklemmung entdeckt (SQLSTATE 40P01)", Kind::Deadlock),
            ("PDOException: SQLSTATE[40001]: Serialization failure: 1213", Kind::SerializationFailure),
            ("org.postgresql.util.PSQLException: abgebrochen, SQLState: 25P02", Kind::AbortedTransaction),
            (
                "pymysql.err.OperationalError: (1213, 'Deadlock found when trying to get lock; try restarting transaction')",
                Kind::Deadlock,
            ),
        ] {
            assert_eq!(meaning(line), Some(kind), "{line}");
        }
    }

    #[test]
    fn lines_that_only_speak_of_an_error_say_nothing() {
        for line in [
            "INFO see the runbook: QueuePool limit of size 5 overflow 10 reached, connection timed out",
            r#"2026-11-21T02:00:00Z INFO  docs  if you see "sorry, too many clients already", raise the limit"#,
            r#"the error "sorry, too many clients already" means that every slot is taken"#,
            "QueuePool limit of size N overflow M reached, connection timed out",
            "Connection is not available, request timed out",
            "# prepared statement already exists",
            r#"{"level":"info","message":"sorry, too many clients already"}"#,
            "[debug] deadlock detected was handled",
            "FINE: retried: Connection is not available, request timed out after 250ms.",
            "too many connections for role models to follow",
            r#"{"level":"info","err":{"message":"timeout exceeded when trying to connect"}}"#,
            "INFO retried after SQLSTATE 40001",
            "order 40001 was shipped, invoice 25006",
            "SQLSTATE 400011",
            "SQLSTATE: 23505",
            "",
        ] {
            assert_eq!(meaning(line), None, "{line}");
        }
    }

    #[test]
    fn a_chain_of_exceptions_is_one_error_and_two_errors_are_two() {
        let mut reader = Reader::default();
        let first = r#"asyncpg.exceptions.DuplicatePreparedStatementError: prepared statement "s" already exists"#;
        let cause = "The above exception was the direct cause of the following exception:";
        let counted = [first, "", cause, "", "Traceback (most recent call last):", first, first]
            .iter()
            .filter(|it| reader.line(it).is_some())
            .count();
        assert_eq!(counted, 2);
    }

    proptest! {
        #[test]
        fn no_line_panics(pieces in proptest::collection::vec(
            prop_oneof![
                "\\PC{0,8}",
                proptest::sample::select(vec![
                    "prepared statement ", "\"", "'", "{", "QueuePool limit of size ", "5", " overflow ", "é",
                    "{\"level\":", "info", " already exists", "=", "(", "SQLSTATE", "40001", "[",
                ]).prop_map(str::to_owned),
            ],
            0..12,
        )) {
            let line: String = pieces.concat();
            let _ = Reader::default().line(&line);
        }
    }
}
