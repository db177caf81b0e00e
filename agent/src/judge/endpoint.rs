//! Checks of HTTP endpoints: status, latency, body and certificate.

use std::time::Duration;

use serde_json::{Map, Value as Json, json};
use tickbird_shared::Severity;

use super::defaults::CheckId;
use super::evidence::{Case, number, object};
use super::threshold::Seen;
use super::tracks::{Subject, Tracks};
use super::{Moment, words};
use crate::inspect::http_endpoint::{Answer, Assertion, Certificate, Phase, ProbeFailure};
use crate::inspect::{Probe, Reason, Unit, Value};

/// Endpoints need no memory of their own: the holds are all the history there is.
#[derive(Debug)]
pub(super) struct Endpoints;

impl Endpoints {
    pub(super) fn look(&self, probe: &Probe, now: Moment, tracks: &mut Tracks) {
        status(probe, now, tracks);
        latency(probe, now, tracks);
        body(probe, now, tracks);
        certificate(probe, now, tracks);
    }
}

fn status(probe: &Probe, now: Moment, tracks: &mut Tracks) {
    let said = match &probe.outcome {
        Ok(_) if probe.status_as_expected != Some(false) => None,
        Ok(answer) => Some(format!("status {}", answer.status)),
        Err(failure) => Some(failed(failure)),
    };
    let seen = match &said {
        None => Seen::known(0.0),
        Some(said) => Seen { words: Some(said.clone()), ..Seen::known(1.0) },
    };
    let subject = Subject::of(CheckId::HttpStatus, &probe.target);
    tracks.observe(subject, seen, now, || {
        let said = said.unwrap_or_default();
        let summary = match &probe.outcome {
            Ok(_) => format!("{} answers with {said}", url(probe)),
            Err(_) => format!("{} does not answer: {said}", url(probe)),
        };
        Case { summary, evidence: evidence(probe, "status of the agent's own request"), ..Case::default() }
    });
}

fn latency(probe: &Probe, now: Moment, tracks: &mut Tracks) {
    let total: Duration = probe.phases.iter().map(|(_, took)| *took).sum();
    let value = match &probe.outcome {
        Ok(_) => Value::Known(total.as_secs_f64()),
        // The answer would have taken longer still.
        Err(_) => Value::Between(total.as_secs_f64(), f64::INFINITY),
    };
    let subject = Subject::of(CheckId::HttpLatency, &probe.target);
    tracks.observe(subject, Seen::value(value.clone()), now, || {
        let slowest = probe.phases.iter().max_by_key(|(_, took)| *took);
        let slowest = slowest.map(|(phase, took)| format!(", {} of it in {}", words::duration(*took), name(*phase)));
        let shown = words::value(&value, Unit::Seconds);
        Case {
            summary: format!("{} takes {shown} to answer{}", url(probe), slowest.unwrap_or_default()),
            evidence: evidence(probe, "time of the agent's own request, by phase"),
            ..Case::default()
        }
    });
}

fn body(probe: &Probe, now: Moment, tracks: &mut Tracks) {
    let failed: Vec<&Assertion> = probe.assertions.iter().filter(|it| it.failed.is_some()).collect();
    let seen = match (&probe.outcome, probe.status_as_expected) {
        // The status tells its own finding; the body of an error page is no second fault.
        (Ok(_), Some(false)) => Seen::value(Value::Unknown(Reason::NotYet("an answer with the expected status"))),
        (Err(_), _) => Seen::value(Value::Unknown(Reason::NotYet("an answer"))),
        (Ok(_), _) if probe.assertions.is_empty() => return,
        (Ok(_), _) if failed.is_empty() => Seen::known(0.0),
        (Ok(_), _) => Seen { words: Some(shown(failed[0])), ..Seen::known(1.0) },
    };
    let subject = Subject::of(CheckId::HttpBody, &probe.target);
    let is_asserted =
        !probe.assertions.is_empty() || tracks.of(CheckId::HttpBody).any(|(key, _)| key.target == probe.target);
    if !is_asserted {
        return;
    }
    tracks.observe(subject, seen, now, || {
        let first = failed.first().map(|it| shown(it)).unwrap_or_default();
        let others = if failed.len() > 1 { format!(", and {} more", failed.len() - 1) } else { String::new() };
        Case {
            summary: format!("{} answers, but {first}{others}", url(probe)),
            evidence: evidence(probe, "assertions on the body of the agent's own request"),
            ..Case::default()
        }
    });
}

fn certificate(probe: &Probe, now: Moment, tracks: &mut Tracks) {
    let subject = Subject::of(CheckId::Certificate, &probe.target);
    let Some(it) = &probe.certificate else {
        let is_tls = probe.target.as_str().starts_with("endpoint:https:");
        if is_tls {
            let untold = Seen::value(Value::Unknown(Reason::NotYet("a handshake that shows the certificate")));
            tracks.observe(subject, untold, now, Case::default);
        }
        return;
    };
    let left = it.not_after.duration_since(now.wall).as_secs_f64();
    let refused = it.refused.as_deref().map(|why| format!("not trusted: {}", words::foreign(why, 200)));
    let seen = match &refused {
        None => Seen::known(left),
        Some(words) => Seen { forced: Some(Severity::Critical), words: Some(words.clone()), ..Seen::known(left) },
    };
    tracks.observe(subject, seen, now, || Case {
        summary: certificate_summary(probe, it, left, refused.as_deref()),
        evidence: evidence(probe, "the certificate shown in the TLS handshake"),
        ..Case::default()
    });
}

fn certificate_summary(probe: &Probe, it: &Certificate, left: f64, refused: Option<&str>) -> String {
    let ends = if left < 0.0 {
        format!("ended {} ago", words::seconds(-left))
    } else {
        format!("ends in {} ({})", words::seconds(left), it.not_after)
    };
    let refused = refused.map(|it| format!(" and is {it}")).unwrap_or_default();
    format!("the certificate of {} for {} {ends}{refused}", url(probe), words::foreign(&it.subject, 200))
}

fn evidence(probe: &Probe, rule: &str) -> Map<String, Json> {
    let seconds = |took: &Duration| number(took.as_secs_f64(), Unit::Seconds);
    let (answer, failure) = match &probe.outcome {
        Ok(Answer { status, body_bytes }) => (Some(json!({ "status": status, "body_bytes": body_bytes })), None),
        Err(it) => (None, Some(json!({ "phase": name(it.phase), "what": words::foreign(&it.what, 300) }))),
    };
    let phases: Map<String, Json> =
        probe.phases.iter().map(|(phase, took)| (name(*phase).to_owned(), seconds(took))).collect();
    let certificate = probe.certificate.as_ref().map(|it| {
        json!({
            "subject": words::foreign(&it.subject, 300),
            "not_before": it.not_before.to_string(),
            "not_after": it.not_after.to_string(),
            "refused": it.refused.as_deref(),
        })
    });
    object(json!({
        "url": url(probe),
        "answer": answer,
        "failure": failure,
        "seconds": seconds(&probe.phases.iter().map(|it| it.1).sum()),
        "phases": phases,
        "assertions_failed": probe.assertions.iter().filter(|it| it.failed.is_some()).take(20).map(shown).collect::<Vec<_>>(),
        "assertions": probe.assertions.len(),
        "certificate": certificate,
        "rule": rule,
        "not_visible": [],
    }))
}

fn url(probe: &Probe) -> &str {
    probe.target.as_str().trim_start_matches("endpoint:")
}

fn failed(failure: &ProbeFailure) -> String {
    format!("{}: {}", name(failure.phase), words::foreign(&failure.what, 300))
}

fn shown(it: &Assertion) -> String {
    let found = it.failed.as_deref().unwrap_or("held");
    format!("{} failed: {}", words::foreign(&it.asserted, 200), words::foreign(found, 100))
}

const fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Resolve => "resolve",
        Phase::Connect => "connect",
        Phase::Tls => "TLS",
        Phase::FirstByte => "first byte",
        Phase::Body => "body",
    }
}
