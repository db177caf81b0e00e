//! Room for connections within a limit of one role or one database: `db.headroom` with the limit as its part.

use serde_json::json;

use crate::inspect::server::Limit;
use crate::inspect::{ServerLook, Unit, Value};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, object};
use crate::judge::threshold::Seen;
use crate::judge::tracks::{Subject, Tracks};
use crate::judge::{Moment, words};

pub(super) fn look(look: &ServerLook, now: Moment, tracks: &mut Tracks) {
    let limits = match &look.facts.limits {
        None => return,
        Some(Ok(limits)) => limits,
        Some(Err(reason)) => {
            // Those that are known are there still, and cannot be seen now.
            let known = tracks.of(CheckId::Headroom).filter(|(key, _)| key.target == look.target);
            let known: Vec<_> = known.filter_map(|(key, _)| key.sub_key.clone()).collect();
            for part in known {
                let subject = Subject { sub_key: Some(&part), ..Subject::of(CheckId::Headroom, &look.target) };
                tracks.observe(subject, Seen::value(Value::Unknown(reason.clone())), now, Case::default);
            }
            return;
        }
    };
    // A limit of 0 keeps everybody out, by wish.
    for limit in limits.iter().filter(|it| it.most > 0) {
        let part = limit.of.words();
        let subject = Subject { sub_key: Some(&part), ..Subject::of(CheckId::Headroom, &look.target) };
        let value = share(limit);
        tracks.observe(subject, Seen::value(value.clone()), now, || case(look, limit, &value));
    }
    tracks.end("the limit was lifted", now, |key, _| {
        key.check == CheckId::Headroom
            && key.target == look.target
            && key.sub_key.as_deref().is_some_and(|part| !limits.iter().any(|it| it.of.words() == part))
    });
}

fn share(limit: &Limit) -> Value {
    let of_most = |used: u32| f64::from(used) / f64::from(limit.most);
    match limit.perhaps {
        0 => Value::Known(of_most(limit.used)),
        perhaps => Value::Between(of_most(limit.used), of_most(limit.used.saturating_add(perhaps))),
    }
}

fn case(look: &ServerLook, limit: &Limit, value: &Value) -> Case {
    let server = look.target.as_str().trim_start_matches("server:");
    let of = words::foreign(&limit.of.words(), 80);
    Case {
        summary: format!(
            "{of} uses {} of the {} connections that it is allowed at {server} ({})",
            limit.used,
            limit.most,
            words::value(value, Unit::Ratio),
        ),
        evidence: object(json!({
            "limit_of": of,
            "used": limit.used,
            "perhaps_used": limit.perhaps,
            "limit": limit.most,
            "rule": "sessions / CONNECTION LIMIT of the role or database",
            "not_visible": look.hidden.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })),
        advice: Some(format!("see who connects as {of}; raise its CONNECTION LIMIT only within the server's slots")),
        ..Case::default()
    }
}
