//! `db.replica`: how far a replica is behind, seen from itself or from its primary.
//!
//! A replica of an idle primary has replayed nothing for hours and is not behind. So the age of its last change counts
//! only while it lacks something that it received, or has lost the connection that it was seen to have; and never for
//! longer than since it was last seen to be whole.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::discover::TargetKey;
use crate::inspect::server::{Replica, Standing};
use crate::inspect::{Reason, ServerLook, Unit, Value};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, number, object};
use crate::judge::threshold::Seen;
use crate::judge::tracks::{Subject, Tracks};
use crate::judge::{Moment, words};

/// What is remembered of each replica that is asked itself.
#[derive(Debug, Default)]
pub(super) struct Replicas(BTreeMap<TargetKey, Past>);

#[derive(Debug)]
struct Past {
    first_seen: Duration,
    /// When it was last connected and had replayed everything.
    whole_at: Option<Duration>,
}

impl Replicas {
    pub(super) fn look(&mut self, look: &ServerLook, now: Moment, tracks: &mut Tracks) {
        let value = match &look.facts.standing {
            None => return,
            Some(Err(reason)) => {
                // A server that was never seen to replicate has no lag that could be missed.
                if !tracks.of(CheckId::Replica).any(|(key, _)| key.target == look.target) {
                    return;
                }
                Value::Unknown(reason.clone())
            }
            Some(Ok(Standing::Primary(replicas))) if replicas.is_empty() => {
                if !tracks.of(CheckId::Replica).any(|(key, _)| key.target == look.target) {
                    return;
                }
                Value::Unknown(Reason::NotYet("no replica is connected"))
            }
            Some(Ok(Standing::Primary(replicas))) => of_primary(replicas),
            Some(Ok(Standing::Replica { is_fed, is_caught_up, last_change_age })) => {
                self.of_itself(&look.target, *is_fed && *is_caught_up, *last_change_age, now)
            }
        };
        tracks.observe(Subject::of(CheckId::Replica, &look.target), Seen::value(value.clone()), now, || {
            case(look, &value)
        });
    }

    fn of_itself(&mut self, target: &TargetKey, is_whole: bool, last_change: Option<Duration>, now: Moment) -> Value {
        let fresh = || Past { first_seen: now.mono, whole_at: None };
        let past = self.0.entry(target.clone()).or_insert_with(fresh);
        if is_whole {
            past.whole_at = Some(now.mono);
            return Value::Known(0.0);
        }
        let since = now.mono.saturating_sub(past.whole_at.unwrap_or(past.first_seen));
        match (past.whole_at, last_change) {
            (Some(_), Some(age)) => Value::Known(age.min(since).as_secs_f64()),
            (Some(_), None) => Value::Known(since.as_secs_f64()),
            // Never seen whole: fed from an archive perhaps, whose last change may simply be the last there is.
            (None, Some(age)) => Value::Between(0.0, age.as_secs_f64()),
            (None, None) => Value::Unknown(Reason::NotYet("a change that the replica replayed")),
        }
    }
}

/// The slowest replica. One that lacks something and has no measured lag is not known.
fn of_primary(replicas: &[Replica]) -> Value {
    let lag = |it: &Replica| match (it.lag, it.bytes) {
        (_, 0) => Some(Duration::ZERO),
        (lag, _) => lag,
    };
    let most = replicas.iter().filter_map(lag).max().unwrap_or_default().as_secs_f64();
    if replicas.iter().all(|it| lag(it).is_some()) { Value::Known(most) } else { Value::Between(most, f64::INFINITY) }
}

fn case(look: &ServerLook, value: &Value) -> Case {
    let server = look.target.as_str().trim_start_matches("server:");
    let shown = words::value(value, Unit::Seconds);
    let (summary, replicas) = match &look.facts.standing {
        Some(Ok(Standing::Primary(replicas))) => {
            let slowest = replicas.iter().max_by_key(|it| (it.lag, it.bytes));
            let name = slowest.map_or_else(String::new, |it| words::foreign(&it.name, 63));
            (format!("replica {name:?} of {server} is {shown} behind"), replicas.as_slice())
        }
        _ => (format!("{server} is a replica and {shown} behind its primary"), [].as_slice()),
    };
    let (is_fed, is_caught_up) = match &look.facts.standing {
        Some(Ok(Standing::Replica { is_fed, is_caught_up, .. })) => (Some(*is_fed), Some(*is_caught_up)),
        _ => (None, None),
    };
    Case {
        summary: match is_fed {
            Some(false) => format!("{summary}, which it is not connected to"),
            _ => summary,
        },
        evidence: object(json!({
            "lag_seconds": crate::judge::evidence::value(value, Unit::Seconds),
            "is_connected_to_its_primary": is_fed,
            "has_replayed_all_it_received": is_caught_up,
            "replicas": replicas.iter().take(16).map(|it| json!({
                "name": words::foreign(&it.name, 63),
                "lag_seconds": it.lag.map(|lag| number(lag.as_secs_f64(), Unit::Seconds)),
                "bytes_behind": it.bytes,
            })).collect::<Vec<_>>(),
            "rule": look.engine.replica_rule(),
            "not_visible": [],
        })),
        ..Case::default()
    }
}
