//! Checks of database servers: room for connections, and the way to get one.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use tickbird_shared::Severity;

use super::defaults::CheckId;
use super::evidence::{Case, object, value};
use super::pool::Pools;
use super::threshold::Seen;
use super::tracks::{Subject, Tracks};
use super::{Moment, words};
use crate::discover::TargetKey;
use crate::inspect::{ServerLook, Unit, Value};

mod headroom;
mod limits;
mod locks;
mod reads;
mod replica;
mod role;
mod transactions;

/// What is remembered of servers between looks.
#[derive(Debug, Default)]
pub(super) struct Servers {
    /// How long the last connection took that was told.
    connected_in: BTreeMap<TargetKey, f64>,
    deadlocks: locks::Deadlocks,
    transactions: transactions::Transactions,
    roles: role::Roles,
    replicas: replica::Replicas,
    reads: reads::Reads,
    rooms: headroom::Rooms,
    have_looked: bool,
}

impl Servers {
    /// `pools` as they were before this look: whose connections lead to the server.
    pub(super) fn look(&mut self, look: &ServerLook, pools: &Pools, now: Moment, tracks: &mut Tracks) {
        self.have_looked = true;
        self.rooms.look(look, now, tracks);
        limits::look(look, now, tracks);
        self.connect(look, now, tracks);
        self.deadlocks.look(look, pools, now, tracks);
        self.transactions.look(look, now, tracks);
        self.roles.look(look, pools, now, tracks);
        self.replicas.look(look, now, tracks);
        self.reads.look(look, now, tracks);
    }

    /// Seconds until this server has no slot left at its present rate.
    pub(super) fn empty_in(&self, server: &TargetKey, now: Duration) -> Value {
        self.rooms.empty_in(server, now)
    }

    pub(super) const fn have_looked(&self) -> bool {
        self.have_looked
    }

    fn connect(&mut self, look: &ServerLook, now: Moment, tracks: &mut Tracks) {
        let mut seen = Seen::value(look.connect.clone());
        if let Some(said) = &look.refused {
            // No number stands for a refusal; it is as bad as the longest wait.
            seen.value = Value::Known(f64::INFINITY);
            seen.forced = Some(Severity::Critical);
            seen.words = Some(words::foreign(said, 300));
        }
        if let Some(seconds) = look.connect.known() {
            let bounds = tracks.rule(CheckId::Connect).bounds;
            let is_slow = bounds.warning.is_some_and(|bound| !bounds.is_cleared(seconds, bound));
            let is_told = self.connected_in.insert(look.target.clone(), seconds) == Some(seconds);
            // One slow connection that is kept is one sign, at however many looks it is in use.
            if is_slow && is_told && look.refused.is_none() {
                return;
            }
        } else {
            self.connected_in.remove(&look.target);
        }
        let server = look.target.as_str().trim_start_matches("server:");
        tracks.observe(Subject::of(CheckId::Connect, &look.target), seen, now, || Case {
            summary: match &look.refused {
                Some(said) => format!("connecting to {server} fails: {}", words::foreign(said, 500)),
                None => format!("connecting to {server} takes {}", words::value(&look.connect, Unit::Seconds)),
            },
            evidence: object(json!({
                "refused": look.refused.as_deref().map(|it| words::foreign(it, 500)),
                "connect_seconds": value(&look.connect, Unit::Seconds),
                "addresses": look.addresses.iter().take(16).map(ToString::to_string).collect::<Vec<_>>(),
                "rule": "TCP, TLS, start-up and authentication of the agent's own session",
                "not_visible": [],
            })),
            ..Case::default()
        });
    }
}
