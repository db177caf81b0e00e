//! The message of canaries. In every form it is that of an incident which always fires, so whatever takes those takes it.

use tickbird_shared::protocol::CANARY_CHECK;
use tickbird_shared::{Fingerprint, Severity, Status, Timestamp};

use super::{Receiver, State, message, next_id};
use crate::aggregate::{CANARY, Flown};
use crate::store::{IncidentRow, OutboxRow};

impl State {
    /// What `to` is told, for the outbox.
    pub fn canary(&mut self, flown: &Flown, to: &Receiver, now: Timestamp) -> OutboxRow {
        let incident = incident(flown, now);
        let id = next_id(&mut self.last_id, &[incident.fingerprint.as_bytes(), flown.evidence.as_bytes()], now);
        let told = message::Told {
            id: &id,
            kind: CANARY,
            receiver: &to.name,
            reason: "canary.every has passed",
            incident: &incident,
            agent: None,
            acknowledged: None,
            known: None,
            decided_at: now,
        };
        let body = told.render(&to.form);
        OutboxRow::queued(&flown.tenant, id, &to.name, CANARY.into(), (CANARY, to.form.kind(), body), now)
    }
}

/// In no store, and always the same one.
fn incident(flown: &Flown, now: Timestamp) -> IncidentRow {
    let (tenant, target) = (&flown.tenant, format!("canary:{}", flown.receiver));
    IncidentRow {
        tenant: tenant.clone(),
        id: CANARY.into(),
        fingerprint: Fingerprint::of(tenant, "collector", CANARY_CHECK, &target, None),
        agent: "collector".into(),
        check: CANARY_CHECK.into(),
        target,
        sub_key: None,
        status: Status::Firing,
        severity: Severity::Info,
        summary: flown.summary.clone(),
        advice: Some(
            "when this does not come any more, see whether the collector runs and reaches this receiver".into(),
        ),
        evidence: flown.evidence.clone(),
        evidence_lost: false,
        since: now,
        opened_at: now,
        updated_at: now,
        resolved_at: None,
        resolved_reason: None,
        occurrences: 1,
        state_epoch: 1,
        state_since: now,
        seen_epoch: None,
        seen_at: now,
        flap: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::alert::{Form, Letter, Template};

    fn told(form: Form) -> OutboxRow {
        let flown = Flown {
            tenant: "default".into(),
            receiver: "switch".into(),
            summary: "the collector works: canaries of 3 agents came, 1 of 4 are missing".into(),
            evidence: r#"{"every_seconds":60,"agents":{"came":3,"missing":1}}"#.into(),
            forgets: None,
        };
        let receiver = Receiver { form, min_severity: Severity::Critical, ..Receiver::new("switch") };
        State::default().canary(&flown, &receiver, Timestamp::UNIX_EPOCH)
    }

    fn read(row: &OutboxRow) -> Value {
        serde_json::from_slice(&row.body).expect("JSON")
    }

    #[test]
    fn it_is_about_one_thing_always_whoever_is_told() {
        let row = told(Form::Own);
        assert_eq!((row.kind.as_str(), row.incident.as_str(), row.receiver.as_str()), (CANARY, CANARY, "switch"));
        let document = read(&row);
        assert_eq!((&document["type"], &document["incident"]["status"]), (&json!("canary"), &json!("firing")));
        assert_eq!(document["incident"]["evidence"]["agents"]["missing"], 1);
    }

    #[test]
    fn to_alertmanager_it_is_a_watchdog_that_ends_when_nobody_tells_it_again() {
        let alerts = read(&told(Form::Alertmanager));
        let alert = &alerts[0];
        assert_eq!(alerts.as_array().map(Vec::len), Some(1));
        assert_eq!(
            (&alert["labels"]["alertname"], &alert["labels"]["severity"]),
            (&json!("Watchdog"), &json!("info")),
            "{alert}"
        );
        let times = (&alert["startsAt"], &alert["endsAt"]);
        assert_eq!(times, (&json!("1970-01-01T00:00:00Z"), &json!("1970-01-01T00:04:00Z")));
    }

    #[test]
    fn a_person_reads_that_all_is_well_and_a_template_of_incidents_takes_it() {
        let post = read(&told(Form::Slack));
        assert!(post["text"].as_str().is_some_and(|it| it.starts_with("[ALIVE] info *agent.canary*")), "{post}");
        assert_eq!(post["attachments"][0]["color"], "good");
        let letter = Letter::read(&told(Form::Email).body, Timestamp::UNIX_EPOCH);
        assert!(letter.subject.starts_with("[ALIVE] info agent.canary of canary:switch"), "{}", letter.subject);
        assert!(
            letter.text.contains("canaries of 3 agents came") && !letter.text.contains("explain"),
            "{}",
            letter.text
        );
        let words = "{{ type }} {{ (group if group is defined else incident).summary }}";
        let template = Template::new(words, false).expect("renders every sample");
        let body = told(Form::Words(template.into())).body;
        assert!(body.starts_with(b"canary the collector works"), "{}", String::from_utf8_lossy(&body));
    }
}
