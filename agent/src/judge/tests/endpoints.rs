//! Endpoints: status, latency, body, certificate.

use super::*;
use crate::discover::TargetKey;
use crate::inspect::http_endpoint::{Answer, Assertion, Certificate, Phase, ProbeFailure};

const DAY: f64 = 86_400.0;

/// A good answer after `seconds`.
fn answer(status: u16, seconds: f64) -> Probe {
    Probe {
        target: TargetKey::endpoint("http://127.0.0.1:8000/health"),
        outcome: Ok(Answer { status, body_bytes: 20 }),
        phases: vec![(Phase::Connect, Duration::from_millis(1)), (Phase::FirstByte, Duration::from_secs_f64(seconds))],
        certificate: None,
        status_as_expected: Some(status < 400),
        assertions: Vec::new(),
    }
}

fn refused() -> Probe {
    let failure = ProbeFailure { phase: Phase::Connect, what: "connection refused".into() };
    Probe { outcome: Err(failure), status_as_expected: None, ..answer(0, 0.0) }
}

/// One probe every ten seconds.
fn probes(night: &mut Night, all: &[Probe]) {
    for it in all {
        night.wait(10.0).probe(it);
    }
}

#[test]
fn two_bad_answers_are_critical_and_one_is_nothing() {
    let (good, bad) = (answer(200, 0.1), answer(503, 0.1));
    let mut night = Night::begin();
    probes(&mut night, &[good.clone(), bad.clone(), good.clone(), bad.clone(), good.clone()]);
    assert_eq!((night.told().as_str(), night.is("http.status", "8000")), ("", "ok"));
    probes(&mut night, &[bad.clone(), bad, good.clone(), good.clone(), good]);
    assert_eq!(night.told(), "70s http.status began critical\n100s http.status cleared critical");
    assert_eq!(night.found[0].summary, "http://127.0.0.1:8000/health answers with status 503");
    assert_eq!(night.found[0].reason, "status 503, for 2 looks");
}

#[test]
fn no_answer_is_a_finding_of_the_status_alone() {
    let mut night = Night::begin();
    probes(&mut night, &[refused(), refused(), refused(), refused()]);
    assert_eq!(night.told(), "20s http.status began critical");
    assert!(night.last().summary.ends_with("does not answer: connect: connection refused"), "{}", night.last().summary);
}

#[test]
fn three_slow_answers_of_five_are_a_warning() {
    let (quick, slow) = (answer(200, 0.1), answer(200, 2.5));
    let mut night = Night::begin();
    probes(&mut night, &[slow.clone(), quick.clone(), quick.clone(), slow.clone(), quick.clone(), quick.clone()]);
    assert_eq!(night.told(), "");
    probes(&mut night, &[slow.clone(), slow.clone(), quick.clone(), slow, quick.clone(), quick.clone(), quick]);
    assert_eq!(night.told(), "80s http.latency began warning\n130s http.latency cleared warning");
    assert!(
        night.found[0].summary.ends_with("takes 2.5 s to answer, 2.5 s of it in first byte"),
        "{}",
        night.found[0].summary
    );
    assert_eq!(night.found[0].reason, "2.5 s is over 2 s at 3 of the last 5 looks");
}

#[test]
fn an_answer_that_never_came_is_late_by_at_least_its_time_and_clears_nothing() {
    let mut timeout = refused();
    timeout.phases = vec![(Phase::FirstByte, Duration::from_secs(10))];
    let mut night = Night::begin();
    probes(&mut night, &[timeout.clone(), timeout.clone(), timeout]);
    assert_eq!(night.told(), "20s http.status began critical\n30s http.latency began warning");
    probes(&mut night, &[refused(), refused(), refused(), refused()]);
    assert_eq!(night.told(), "60s http.latency evidence_lost warning", "a quick refusal is no quick answer");
}

#[test]
fn a_failed_assertion_is_critical_and_an_error_page_is_not_a_second_fault() {
    let asserted = |failed: Option<&str>| Probe {
        assertions: vec![Assertion { asserted: "/database/ok = true".into(), failed: failed.map(Into::into) }],
        ..answer(200, 0.1)
    };
    let mut night = Night::begin();
    probes(&mut night, &[asserted(None), asserted(Some("false")), asserted(Some("false"))]);
    assert_eq!(night.told(), "30s http.body began critical");
    assert!(
        night.last().summary.ends_with("answers, but /database/ok = true failed: false"),
        "{}",
        night.last().summary
    );
    let mut page = asserted(Some("absent"));
    (page.outcome, page.status_as_expected) = (Ok(Answer { status: 500, body_bytes: 9 }), Some(false));
    probes(&mut night, &[page.clone(), page.clone(), page.clone()]);
    assert_eq!(night.told(), "50s http.status began critical");
    probes(&mut night, &[asserted(None), asserted(None), asserted(None)]);
    assert_eq!(night.told(), "90s http.status cleared critical\n90s http.body cleared critical");
    let mut twin = Night::begin();
    probes(&mut twin, &[page.clone(), page.clone(), page]);
    assert!(!twin.told().contains("http.body"));
}

#[test]
fn a_certificate_is_judged_by_the_time_it_has_left_and_by_its_trust() {
    let shown = |night: &Night, days: f64, refused: Option<&str>| {
        let at = |seconds: f64| {
            let span = SignedDuration::try_from_secs_f64(seconds).expect("fits");
            night.moment().wall.checked_add(span).expect("fits")
        };
        Probe {
            target: TargetKey::endpoint("https://shop.example/"),
            certificate: Some(Certificate {
                subject: "shop.example".into(),
                not_after: at(days * DAY),
                not_before: at(-DAY),
                refused: refused.map(Into::into),
            }),
            ..answer(200, 0.1)
        }
    };
    for (days, refused, wanted) in [
        (90.0, None, ""),
        (15.0, None, ""),
        (10.0, None, "30s tls.cert began warning"),
        (2.0, None, "30s tls.cert began critical"),
        (-1.0, None, "30s tls.cert began critical"),
        (90.0, Some("unknown issuer"), "30s tls.cert began critical"),
    ] {
        let mut night = Night::begin();
        let probe = shown(&night, days, refused);
        probes(&mut night, &[probe.clone(), probe.clone(), probe]);
        assert_eq!(night.told(), wanted, "{days} days, {refused:?}");
    }
    let mut night = Night::begin();
    let (near, far) = (shown(&night, 10.0, None), shown(&night, 90.0, None));
    probes(&mut night, &[near.clone(), near.clone(), near, far.clone(), far.clone(), far]);
    assert_eq!(night.told(), "30s tls.cert began warning\n60s tls.cert cleared warning");
    assert_eq!(night.found[0].reason, "10 d is under 14 d for 3 looks");
    assert_eq!(night.last().reason, "90 d is over 15.4 d for 3 looks");
}
