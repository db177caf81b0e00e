//! The numbers of one look at a server, whatever the server is.

use super::{ServerLook, SessionState};
use crate::inspect::{Measure, Observation, Reading, Reason, Rows, Unit, Value};

static SESSIONS: Measure = Measure {
    name: "server.sessions",
    unit: Unit::Count,
    meaning: "sessions of clients at the server, the agent's own included",
};
static SLOTS_USED_RATIO: Measure = Measure {
    name: "server.slots_used_ratio",
    unit: Unit::Ratio,
    meaning: "sessions of clients against the slots that the server has for them",
};
static ACTIVE: Measure =
    Measure { name: "server.sessions_active", unit: Unit::Count, meaning: "sessions that run a statement" };
static IDLE: Measure =
    Measure { name: "server.sessions_idle", unit: Unit::Count, meaning: "sessions that wait outside a transaction" };
static IDLE_IN_TRANSACTION: Measure = Measure {
    name: "server.sessions_idle_in_transaction",
    unit: Unit::Count,
    meaning: "sessions that wait inside a transaction, failed ones included",
};
static ABORTED: Measure = Measure {
    name: "server.sessions_aborted",
    unit: Unit::Count,
    meaning: "sessions that wait inside a failed transaction",
};
static CONNECT_SECONDS: Measure = Measure {
    name: "server.connect_seconds",
    unit: Unit::Seconds,
    meaning: "from the first SYN to a ready session, of the agent's connection",
};

/// Every one of them.
pub(in crate::inspect) static ALL: &[&Measure] =
    &[&SESSIONS, &SLOTS_USED_RATIO, &ACTIVE, &IDLE, &IDLE_IN_TRANSACTION, &ABORTED, &CONNECT_SECONDS];

impl From<ServerLook> for Reading {
    /// The look with its numbers.
    fn from(look: ServerLook) -> Self {
        let observations = of(&look);
        Self { rows: Rows::Server(look), observations }
    }
}

/// What one look counts.
fn of(look: &ServerLook) -> Vec<Observation> {
    let observe = |measure, value| Observation { target: look.target.clone(), measure, value };
    let count = |states: &[SessionState]| match &look.sessions {
        Err(reason) => Value::Unknown(reason.clone()),
        Ok(sessions) => {
            let of = |states: &[SessionState]| {
                let found = sessions.iter().filter(|session| states.contains(&session.state)).count();
                u32::try_from(found).map_or(f64::from(u32::MAX), f64::from)
            };
            match of(&[SessionState::Unknown]) {
                0.0 => Value::Known(of(states)),
                unknown => Value::Between(of(states), of(states) + unknown),
            }
        }
    };
    let ratio = match (&look.used, look.slots.known()) {
        (Value::Unknown(reason), _) => Value::Unknown(reason.clone()),
        (used, Some(slots)) if slots > 0.0 => used.clone().map(|used| used / slots),
        _ => Value::Unknown(Reason::NotYet("the settings were not read yet")),
    };
    vec![
        observe(&SESSIONS, look.used.clone()),
        observe(&SLOTS_USED_RATIO, ratio),
        observe(&ACTIVE, count(&[SessionState::Active, SessionState::FastPath])),
        observe(&IDLE, count(&[SessionState::Idle])),
        observe(
            &IDLE_IN_TRANSACTION,
            count(&[SessionState::IdleInTransaction, SessionState::IdleInTransactionAborted]),
        ),
        observe(&ABORTED, count(&[SessionState::IdleInTransactionAborted])),
        observe(&CONNECT_SECONDS, look.connect.clone()),
    ]
}
