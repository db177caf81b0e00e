//! The agent's one connection to a server: opened in bounded time, refused in words, and unable to do harm.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use sqlx::mysql::MySqlDatabaseError;
use sqlx::{ConnectOptions as _, Connection as _, MySqlConnection, Row as _};
use tokio::time::{self, Instant};

use super::dsn::Dsn;
use super::sessions::Cells;
use crate::inspect::network;
use crate::inspect::server::kept::{self, ANSWER_TIMEOUT, AskError};
use crate::inspect::server::{ConnectError, Engine, attempts};
use crate::scrub;

/// What an orderly farewell may take before the connection is cut.
const FAREWELL: Duration = Duration::from_secs(5);

/// Times as `innodb_trx` writes them; nothing is written, no lock is waited for.
const OURS: [&str; 3] = [
    "/* tickbird */ SET SESSION time_zone = 'SYSTEM'",
    "/* tickbird */ SET SESSION TRANSACTION READ ONLY",
    "/* tickbird */ SET SESSION lock_wait_timeout = 1",
];
/// No statement lasts: each kind of server knows one of them.
const TIMEOUTS: [&str; 2] =
    ["/* tickbird */ SET SESSION max_statement_time = 0.5", "/* tickbird */ SET SESSION max_execution_time = 500"];

/// An open session. One that is dropped says farewell and is closed.
pub(super) struct Connection {
    /// `None` once an answer failed to come: what is left on the wire could be taken for the next one.
    session: Option<MySqlConnection>,
    seconds: f64,
    address: Option<IpAddr>,
    /// What our user may see, once that was tried.
    pub(super) view: Option<super::View>,
    /// The unix socket on which the server listens too, as it says itself.
    pub(super) listens: Option<String>,
}

impl Connection {
    /// Asks one statement, whose columns are all texts.
    pub(super) async fn ask(&mut self, statement: &'static str) -> Result<Vec<Cells>, AskError> {
        let Some(session) = &mut self.session else { return Err(AskError::Closed(None)) };
        let rows = match time::timeout(ANSWER_TIMEOUT, sqlx::raw_sql(statement).fetch_all(&mut *session)).await {
            Ok(Ok(rows)) => rows,
            Ok(Err(error)) => {
                let error = ask_error(&error);
                if !error.keeps_session() {
                    self.session = None;
                }
                return Err(error);
            }
            Err(_) => {
                self.session = None;
                return Err(AskError::Silent);
            }
        };
        let cells = |row: &sqlx::mysql::MySqlRow| {
            let cell = |index| row.try_get::<Option<String>, _>(index).ok().flatten();
            Cells((0..row.len()).map(cell).collect())
        };
        Ok(rows.iter().map(cells).collect())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let (Some(session), Ok(runtime)) = (self.session.take(), tokio::runtime::Handle::try_current()) {
            // A server counts sessions that end without it as aborted.
            runtime.spawn(async move {
                let _ = time::timeout(FAREWELL, session.close()).await;
            });
        }
    }
}

impl kept::Session for Connection {
    fn is_closed(&self) -> bool {
        self.session.is_none()
    }

    fn seconds(&self) -> f64 {
        self.seconds
    }

    fn address(&self) -> Option<IpAddr> {
        self.address
    }
}

/// Opens a session at the first of these addresses that gives one, within `patience` altogether.
pub(super) async fn open(dsn: &Dsn, addresses: &[SocketAddr], patience: Duration) -> Result<Connection, ConnectError> {
    let mut tries: Vec<Option<IpAddr>> = addresses.iter().map(|address| Some(address.ip())).collect();
    if tries.is_empty() {
        tries.push(None);
    }
    attempts::first(&dsn.named(), &tries, patience, |address| open_at(dsn, address)).await
}

async fn open_at(dsn: &Dsn, address: Option<IpAddr>) -> Result<Connection, ConnectError> {
    let begun = Instant::now();
    let session = dsn.session_at(address).connect().await.map_err(|error| failure(dsn, &error))?;
    let seconds = begun.elapsed().as_secs_f64();
    let mut connection = Connection { session: Some(session), seconds, address, view: None, listens: None };
    restrain(&mut connection).await.map_err(|error| error.without_session(&dsn.named()))?;
    Ok(connection)
}

/// Settings of our session. An old server knows fewer of them, and is asked all the same.
async fn restrain(connection: &mut Connection) -> Result<(), AskError> {
    for statement in OURS.into_iter().chain(TIMEOUTS) {
        match connection.ask(statement).await {
            Err(error) if !error.keeps_session() => return Err(error),
            _ => (),
        }
    }
    Ok(())
}

fn number(error: &sqlx::Error) -> Option<(u16, String)> {
    let said = error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>()?;
    Some((said.number(), scrub::database_error(said.message())))
}

/// What the library's error means to an open session.
fn ask_error(error: &sqlx::Error) -> AskError {
    match number(error) {
        // Shut down, killed.
        Some((1053 | 1927 | 2006 | 2013 | 4031, said)) => AskError::Closed(Some(said)),
        Some((number, message)) => AskError::Refused { denied: DENIED.contains(&number), message },
        None => AskError::Closed(None),
    }
}

/// Access denied to a database, a table, a column, or for want of a global right; or a view that this server has not.
const DENIED: [u16; 8] = [1044, 1142, 1143, 1227, 1370, 1054, 1109, 1146];

/// Why there is no session.
fn failure(dsn: &Dsn, error: &sqlx::Error) -> ConnectError {
    let server = dsn.named();
    if let Some((number, said)) = number(error) {
        return match number {
            1040 => ConnectError::TooManyClients { server, said, of_server: true },
            1203 | 1226 => ConnectError::TooManyClients { server, said, of_server: false },
            1044 | 1045 | 1049 | 1130 | 1251 | 1275 | 1524 | 1698 | 1820 | 1862 | 3118 | 3159 | 4151 => {
                ConnectError::Login { server, said }
            }
            // 1129: this host is blocked, for everybody on it.
            1053 | 1129 | 1037 | 1041 | 1080 | 1081 | 1135 => ConnectError::NotServing { server, said },
            _ => ConnectError::Settings { server, said },
        };
    }
    match error {
        sqlx::Error::Io(error) => ConnectError::Unreachable { server, said: network::said(error) },
        sqlx::Error::Tls(error) => ConnectError::Tls { server, said: scrub::text(&error.to_string(), 120) },
        // A password that may only travel encrypted, and an unencrypted connection.
        sqlx::Error::Configuration(error) => ConnectError::Login { server, said: scrub::text(&error.to_string(), 120) },
        _ => ConnectError::Foreign { server, engine: Engine::MySql },
    }
}
