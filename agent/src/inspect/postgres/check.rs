//! One connection for `doctor`: may the agent log in, and what may it see.

use super::activity::{Activity, SERVER, SESSIONS, Server};
use super::connection;
use super::names::Names;
use super::{Config, pg_monitor};
use crate::inspect::Reason;
use crate::inspect::server::ConnectError;
use crate::inspect::server::kept::{AskError, CONNECT_TIMEOUT};

/// What one connection showed.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// `10.0.0.5:5432/app`.
    pub server: String,
    /// The server's version, as it says it: `15.14 (Debian 15.14-0+deb12u1)`.
    pub version: String,
    /// The role of our session.
    pub role: String,
    /// Whether the role may see the sessions of all others (`pg_read_all_stats`, which `pg_monitor` includes).
    pub sees_all: bool,
    /// Whether the session is encrypted.
    pub is_encrypted: bool,
    /// Seconds to a ready session.
    pub connect_seconds: f64,
    /// Sessions with port and state; our own left out.
    pub visible: usize,
    /// Sessions whose port and state the server hides from our role.
    pub hidden: usize,
    /// Client backends in use now, ours included, at least.
    pub used: usize,
    /// What is there for them: `max_connections` without the reserved ones.
    pub slots: u32,
    /// What the operator should do, if anything.
    pub advice: Option<String>,
}

/// Why the check did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// No session.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A session that gives no answers.
    #[error("{0}")]
    Ask(Reason),
}

impl CheckError {
    /// Whether the server is there, and the agent may not see.
    pub const fn is_blind(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_our_fault(),
            Self::Ask(reason) => matches!(reason, Reason::NotGranted(_) | Reason::Refused(_)),
        }
    }

    /// What the operator can do.
    pub const fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Connect(error) => Some(error.advice()),
            Self::Ask(Reason::NotGranted(_)) => Some("grant pg_monitor to the agent's role"),
            Self::Ask(reason) => reason.advice(),
        }
    }
}

/// Connects once, looks once and leaves.
pub async fn check(config: &Config) -> Result<Checked, CheckError> {
    let dsn = &config.dsn;
    let failed = |error: AskError| CheckError::Ask(error.reason(&dsn.named()));
    let unclear = |what: String| CheckError::Ask(Reason::Malformed(format!("{}: {what}", dsn.named())));

    let addresses = connection::addresses(dsn).await?;
    let connection = connection::open(dsn, &connection::connector(dsn), &addresses, CONNECT_TIMEOUT).await?;
    let statement = connection.prepare(SERVER).await.map_err(failed)?;
    let rows = connection.ask(&statement).await.map_err(failed)?;
    let server = Server::read(&rows).ok_or_else(|| unclear("its settings".into()))?;
    let statement = connection.prepare(SESSIONS).await.map_err(failed)?;
    let rows = connection.ask(&statement).await.map_err(failed)?;
    let activity = Activity::read(&rows, &Names::default(), server.role_oid, false, None).map_err(unclear)?;
    let advice = (!server.sees_all).then(|| {
        let role = &server.role;
        format!("{}: run `GRANT pg_monitor TO {role}`, or use the application's own role", pg_monitor(role))
    });
    Ok(Checked {
        server: dsn.to_string(),
        advice,
        connect_seconds: connection.seconds,
        visible: activity.sessions.len() - activity.hidden,
        hidden: activity.hidden,
        used: activity.own + activity.sessions.len() - activity.hidden,
        version: server.version,
        role: server.role,
        sees_all: server.sees_all,
        is_encrypted: server.is_encrypted,
        slots: server.slots,
    })
}
