//! What every form of a message says, alone and in a group.

use super::super::message::{Parts, Told, of_group};
use super::super::{Found, Sought};
use super::*;

/// Another incident than [`incident`], of the same host.
fn row(number: u32) -> IncidentRow {
    IncidentRow { id: format!("01JCZZZZZZZZZZZZZZZZZZZZ{number:02}"), ..incident("pool.leak", Warning, 1) }
}

/// An incident in each form, by itself.
fn alone(form: &Form, incident: &IncidentRow) -> String {
    let (id, kind) = ("msg_1", Kind::Firing.as_str());
    let (receiver, reason) = ("ops", "it opened");
    let told =
        Told { id, kind, receiver, reason, incident, agent: None, acknowledged: None, known: None, decided_at: at(1) };
    String::from_utf8(told.render(form)).expect("text")
}

/// Some that are new in a group or over, told together.
fn together(form: &Form, found: &[Found<'_>]) -> String {
    let group = GroupRow {
        tenant: "default".into(),
        id: "grp_1".into(),
        receiver: "ops".into(),
        route: "{}".into(),
        labels: BTreeMap::new(),
        message: None,
        due_at: None,
        told_at: None,
    };
    let kind = |it: &IncidentRow| if it.status == Status::Firing { Kind::Firing } else { Kind::Resolved };
    let changed: Vec<_> = found.iter().map(|it| (kind(&it.0), it)).collect();
    let parts = Parts { changed: &changed, others: &[], held: 0, known: &|_| None };
    String::from_utf8(of_group("msg_1".into(), &group, &parts, form, at(1)).body).expect("text")
}

/// Whoever was told of one by name hears of its end by name, however many others there are to tell of.
#[test]
fn the_end_of_one_is_named_beside_a_thousand_that_are_new() {
    let over = IncidentRow { status: Status::Resolved, resolved_at: Some(at(2)), ..row(0) };
    let new: Vec<_> =
        (1..1_000).map(|it| IncidentRow { id: format!("01JCZZZZZZZZZZZZZZZZZZ{it:04}"), ..row(1) }).collect();
    let found: Vec<Found<'_>> = new.iter().chain([&over]).map(|it| (Sought::Known(it), None)).collect();
    for form in [Form::Own, Form::Slack, Form::Email, Form::Alertmanager] {
        assert!(together(&form, &found).contains(&over.id), "{form:?}");
    }
    let document: serde_json::Value = serde_json::from_str(&together(&Form::Own, &found)).expect("JSON");
    assert_eq!(document["others"][0]["change"], "incident.resolved");
    assert_eq!((document["others"].as_array().map(Vec::len), &document["left_out"]), (Some(501), &399.into()));
}

/// Who takes messages often takes no more than a mebibyte.
#[test]
fn a_message_of_what_has_long_names_and_long_proofs_stays_under_a_mebibyte() {
    let wordy = |it: u32| IncidentRow {
        id: format!("01JCZZZZZZZZZZZZZZZZZZ{it:04}"),
        target: format!("postgres:{}.internal.example.org:5432/app_production/app_user", "d".repeat(400)),
        evidence: format!("{{\"text\":\"{}\"}}", "e".repeat(3_000)),
        advice: Some("a".repeat(300)),
        ..row(1)
    };
    let over: Vec<_> = (0..2_500)
        .map(|it| IncidentRow { status: Status::Resolved, resolved_at: Some(at(2)), ..wordy(it) })
        .chain((2_500..3_500).map(wordy))
        .collect();
    let found: Vec<Found<'_>> = over.iter().map(|it| (Sought::Known(it), None)).collect();
    let text = together(&Form::Own, &found);
    assert!(text.len() < 1 << 20, "{} bytes", text.len());
    let document: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let count = |list: &str| document[list].as_array().map_or(0, Vec::len);
    assert_eq!(document["left_out"], 3_500 - count("incidents") - count("others"), "and the rest is counted");
    assert!(count("others") > 500);
}

#[test]
fn priority_is_told_with_both_inputs_while_it_fires_in_every_form() {
    const SAID: &str = "4 = impact 5 (outage) x probability 0.8";
    const COUNTED: &str = r#""priority":{"value":4.0,"impact":"outage","weight":5.0,"probability":0.8}"#;
    let fires = row(0);
    let over = IncidentRow { status: Status::Resolved, resolved_at: Some(at(2)), ..row(0) };
    for form in [Form::Slack, Form::Email, Form::Alertmanager] {
        assert!(alone(&form, &fires).contains(SAID), "{form:?}");
        assert!(together(&form, &[(Sought::Known(&fires), None)]).contains(SAID), "{form:?}");
    }
    for form in [Form::Slack, Form::Email] {
        assert!(!alone(&form, &over).contains("priority"), "{form:?}: nobody has to look");
    }
    assert!(alone(&Form::Own, &fires).contains(COUNTED));
    // More than are told in full.
    let rows: Vec<_> = (0..102).map(row).collect();
    let found: Vec<Found<'_>> = rows.iter().map(|it| (Sought::Known(it), None)).collect();
    let document: serde_json::Value = serde_json::from_str(&together(&Form::Own, &found)).expect("JSON");
    assert_eq!(document["others"].as_array().map(Vec::len), Some(2));
    assert!(document["others"][1].to_string().contains("\"weight\":5.0"), "{}", document["others"][1]);
}
