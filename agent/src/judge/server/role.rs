//! `db.role`: a server is not what it was: a primary became a replica, or another server answers under its name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tickbird_shared::Severity;

use crate::discover::TargetKey;
use crate::inspect::server::Standing;
use crate::inspect::{ServerLook, Unit, Value};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, number, object};
use crate::judge::pool::Pools;
use crate::judge::threshold::Seen;
use crate::judge::tracks::{Subject, Tracks};
use crate::judge::{Moment, words};

/// For so long a change is told though nothing stands on the wrong server.
const TOLD: Duration = Duration::from_secs(120);

/// What each server was.
#[derive(Debug, Default)]
pub(super) struct Roles(BTreeMap<TargetKey, Role>);

#[derive(Debug)]
struct Role {
    is_replica: bool,
    identifier: Option<Arc<str>>,
    /// The last change, and when it was seen.
    changed: Option<(Turn, Duration)>,
    /// Since when it should get no writes any more, having taken them before.
    stepped_down: Option<Duration>,
    /// A replica of its cluster was promoted: what it takes since is lost, though it may not know.
    is_superseded: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Turn {
    Promoted,
    SteppedDown,
    OtherServer,
}

impl Turn {
    const fn words(&self) -> &'static str {
        match self {
            Self::Promoted => "was a replica and is the primary now",
            Self::SteppedDown => "was the primary and is a replica now",
            Self::OtherServer => "is another server now: its system identifier changed",
        }
    }
}

impl Roles {
    pub(super) fn look(&mut self, look: &ServerLook, pools: &Pools, now: Moment, tracks: &mut Tracks) {
        let subject = Subject::of(CheckId::Role, &look.target);
        let standing = match &look.facts.standing {
            None => return,
            Some(Ok(standing)) => standing,
            Some(Err(reason)) => {
                // A primary that died under its application: its successor's look says so.
                let superseded = self.0.get(&look.target).and_then(|it| it.stepped_down);
                match superseded {
                    Some(since) => self.tell(look, since, pools, now, tracks),
                    None => {
                        tracks.observe(subject, Seen::value(Value::Unknown(reason.clone())), now, Case::default);
                    }
                }
                return;
            }
        };
        let identifier = look.facts.identifier.as_ref().and_then(|it| it.as_ref().ok()).cloned();
        let is_replica = matches!(standing, Standing::Replica { .. });
        let fresh = || Role {
            is_replica,
            identifier: identifier.clone(),
            changed: None,
            stepped_down: None,
            is_superseded: false,
        };
        let role = self.0.entry(look.target.clone()).or_insert_with(fresh);
        let is_other = look.engine.keeps_identifier()
            && matches!((&role.identifier, &identifier), (Some(was), Some(is)) if was != is);
        let turn = match (role.is_replica, is_replica) {
            _ if is_other => Some(Turn::OtherServer),
            (true, false) => Some(Turn::Promoted),
            (false, true) => Some(Turn::SteppedDown),
            _ => None,
        };
        role.identifier = identifier.or(role.identifier.take());
        role.is_replica = is_replica;
        role.is_superseded &= turn.is_none();
        if !is_replica && !role.is_superseded {
            role.stepped_down = None;
        }
        if let Some(turn) = turn {
            if turn == Turn::SteppedDown {
                role.stepped_down.get_or_insert(now.mono);
            }
            if turn == Turn::Promoted {
                self.supersede(&look.target, now);
            }
            if let Some(role) = self.0.get_mut(&look.target) {
                role.changed = Some((turn, now.mono));
            }
        }
        let since = self.0.get(&look.target).and_then(|it| it.stepped_down).unwrap_or(now.mono);
        self.tell(look, since, pools, now, tracks);
    }

    /// A replica took over: whoever was the primary of the same cluster is not, though it runs on as one. Two primaries of
    /// one cluster are never meant: what the old one takes, the new one does not have.
    fn supersede(&mut self, successor: &TargetKey, now: Moment) {
        let cluster = self.0.get(successor).and_then(|it| it.identifier.clone());
        if cluster.is_none() {
            return;
        }
        for (target, role) in &mut self.0 {
            // The same server under another name, or another of its databases, was promoted with it.
            let is_it = matches!(role.changed, Some((Turn::Promoted, at)) if now.mono.saturating_sub(at) < TOLD);
            if target != successor && role.identifier == cluster && !role.is_replica && !is_it {
                role.stepped_down.get_or_insert(now.mono);
                role.is_superseded = true;
            }
        }
    }

    /// The value is for how long connections of this host have stood on a server that stepped down.
    fn tell(&self, look: &ServerLook, since: Duration, pools: &Pools, now: Moment, tracks: &mut Tracks) {
        let Some(role) = self.0.get(&look.target) else { return };
        let stale = if role.stepped_down.is_some() { pools.connected_to(&look.target) } else { Vec::new() };
        let seconds = if stale.is_empty() { 0.0 } else { now.mono.saturating_sub(since).as_secs_f64() };
        let mut seen = Seen::known(seconds);
        let recent = role.changed.as_ref().filter(|(_, at)| now.mono.saturating_sub(*at) < TOLD);
        let critical = tracks.rule(CheckId::Role).bounds.critical.unwrap_or(f64::INFINITY);
        if let Some((turn, _)) = recent.filter(|_| seconds < critical) {
            // Another server under the same name is nobody's plan; a switchover is.
            seen.forced = Some(if *turn == Turn::OtherServer { Severity::Warning } else { Severity::Info });
            seen.words = Some(turn.words().to_owned());
        }
        let turn = role.changed.as_ref().map_or("was superseded by a replica of its cluster", |(turn, _)| turn.words());
        tracks.observe(Subject::of(CheckId::Role, &look.target), seen, now, || {
            let server = look.target.as_str().trim_start_matches("server:");
            let names: Vec<_> = stale.iter().map(|it| pools.words_of(it)).collect();
            let mut applications = names.clone();
            applications.sort();
            applications.dedup();
            let on_it = match applications.is_empty() {
                true => String::new(),
                false => format!("; {} still on it for {}", applications.join(", "), words::seconds(seconds)),
            };
            Case {
                summary: format!("{server} {turn}{on_it}"),
                evidence: object(json!({
                    "role": look.facts.standing.as_ref().and_then(|it| it.as_ref().ok()).map(Standing::as_str),
                    "system_identifier": role.identifier.as_deref(),
                    "connections_here": stale.iter().map(|it| it.connections.len()).sum::<usize>(),
                    "pools": stale.iter().take(16).map(|it| it.target.as_str()).collect::<Vec<_>>(),
                    "seconds": number(seconds, Unit::Seconds),
                    "rule": look.engine.role_rule(),
                    "not_visible": [],
                })),
                age_seconds: (seconds > 0.0).then_some(seconds),
                ..Case::default()
            }
        });
    }
}
