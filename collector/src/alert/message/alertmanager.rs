//! Alertmanager's API v2: `POST /api/v2/alerts` takes a list of alerts, each known by its labels.
//!
//! An alert without an end fires for as long as Alertmanager has been told to wait (`resolve_timeout`), which is what it is first told;
//! from then on the refresh gives it its end, a little ahead of the time, again and again. The incident is a label, so that the
//! end of one, however late it comes, ends no other. The severity is one, too, since routes ask for it: an incident that is told to have got
//! worse is another alert, and what it was before is ended with the same message.
//!
//! Of what is told and not over it knows the labels that it was told ([`Known`]), and those are refreshed and ended, whatever they would be
//! by then: what got worse unsaid, or whose agent has other labels or is forgotten, is no other alert.
//!
//! A message may be several requests: fifty thousand alerts at once are more than anybody takes. Each is a line of its body.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tickbird_shared::protocol::CANARY_EVERY;
use tickbird_shared::{Status, Timestamp};

use super::{GroupTold, REPEATED, Told, UNCHANGED, bytes, priority};
use crate::aggregate::CANARY;
use crate::alert::route::facts;
use crate::store::{AgentRow, IncidentRow};

/// Alerts of one request, at most so many and not much more than so many bytes.
const AT_ONCE: usize = 500;
const BYTES_AT_ONCE: usize = 512 << 10;
/// Letters of a text; nobody reads more in a list.
const LONGEST: usize = 2_000;

/// Canaries that did not come until the one that did before is forgotten.
const FORGOTTEN_AFTER: u32 = 4;

/// By what an alert is known: the names and values of its labels.
pub type Known = BTreeMap<String, String>;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Alert {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<&'static str, String>,
    starts_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    ends_at: Option<Timestamp>,
}

pub(super) fn of_incident(told: Told<'_>) -> Vec<u8> {
    if told.kind == CANARY {
        return bytes(&[watchdog(told)]);
    }
    bytes(&alerts(told.kind, (told.incident, told.agent), told.known.cloned(), told.decided_at))
}

/// What always fires while all works, as Prometheus' `Watchdog`: told each time anew, and over when it was not told for a while.
fn watchdog(told: Told<'_>) -> Alert {
    let mut alert = alert(told.incident, labels(told.incident, told.agent, None));
    alert.labels.insert("alertname".into(), "Watchdog".into());
    let evidence: Value = serde_json::from_str(&told.incident.evidence).unwrap_or_default();
    let every = Duration::from_secs(evidence[CANARY_EVERY].as_u64().unwrap_or(60));
    Alert { ends_at: told.decided_at.saturating_add(every * FORGOTTEN_AFTER).ok(), ..alert }
}

/// What changed; the rest is refreshed. A repeat is everything that fires.
pub(super) fn of_group(told: &GroupTold<'_>) -> Vec<u8> {
    let parts = told.parts.iter().filter(|(change, ..)| *change != UNCHANGED || told.kind == REPEATED);
    let all = parts.flat_map(|(change, row, agent)| alerts(change, (row, *agent), (told.known)(row), told.decided_at));
    // JSON as it is written here has no line breaks of its own.
    requests(all).join(&b'\n')
}

/// The requests that a message is made of.
pub fn requests_of(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    body.split(|it| *it == b'\n')
}

/// What still fires, as requests: each alert ends at a time that is always ahead while somebody refreshes it.
pub fn refresh<'a>(
    incidents: impl Iterator<Item = (&'a IncidentRow, Option<&'a AgentRow>, Option<Known>)>,
    ends_at: Timestamp,
) -> Vec<Vec<u8>> {
    requests(incidents.map(|(incident, agent, known)| {
        let known = known.unwrap_or_else(|| labels(incident, agent, None));
        let mut alert = Alert { ends_at: Some(ends_at), ..alert(incident, known) };
        // A clock that was ahead said so.
        alert.starts_at = alert.starts_at.min(ends_at);
        alert
    }))
}

fn requests(all: impl Iterator<Item = Alert>) -> Vec<Vec<u8>> {
    let (mut requests, mut alerts, mut length) = (Vec::new(), Vec::new(), 0);
    for alert in all {
        length += alert.labels.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        length += alert.annotations.values().map(String::len).sum::<usize>();
        alerts.push(alert);
        if alerts.len() == AT_ONCE || length > BYTES_AT_ONCE {
            requests.push(bytes(&std::mem::take(&mut alerts)));
            length = 0;
        }
    }
    if !alerts.is_empty() {
        requests.push(bytes(&alerts));
    }
    requests
}

/// The alert of an incident, as it is known; where that is another one from now on, the end of what it was. Of an alert that never was no
/// end is told: Alertmanager would tell people of it.
fn alerts(
    change: &str,
    (incident, agent): (&IncidentRow, Option<&AgentRow>),
    known: Option<Known>,
    now: Timestamp,
) -> Vec<Alert> {
    if incident.status == Status::Resolved {
        let labels = known.unwrap_or_else(|| labels(incident, agent, None));
        let over = incident.resolved_at.unwrap_or(now).max(incident.opened_at);
        return vec![Alert { ends_at: Some(over), ..alert(incident, labels) }];
    }
    let labels = match known.clone().filter(|_| change == UNCHANGED) {
        Some(known) => known,
        None => labels(incident, agent, known.as_ref()),
    };
    let before = known.filter(|it| *it != labels);
    let over = Some(now.max(incident.opened_at));
    let ended = before.map(|it| Alert { ends_at: over, ..alert(incident, it) });
    [alert(incident, labels)].into_iter().chain(ended).collect()
}

/// By what an incident is known once it is told: as before, unless its severity has changed.
pub(in crate::alert) fn labels(incident: &IncidentRow, agent: Option<&AgentRow>, known: Option<&Known>) -> Known {
    const SEVERITY: &str = "severity";
    if let Some(known) = known.filter(|it| it.get(SEVERITY).is_some_and(|it| it == incident.severity.as_str())) {
        return known.clone();
    }
    let facts = facts(incident, agent).into_iter().filter(|(_, value)| !value.is_empty());
    let mut labels: Known = facts.map(|(name, value)| (label(&name), value)).collect();
    labels.insert(SEVERITY.into(), incident.severity.as_str().into());
    labels.insert("incident".into(), incident.id.clone());
    labels
}

fn alert(incident: &IncidentRow, labels: Known) -> Alert {
    let short = |text: &str| text.chars().take(LONGEST).collect::<String>();
    let mut annotations = BTreeMap::from([
        ("summary", short(&incident.summary)),
        ("priority", priority(incident).to_string()),
        ("since", incident.since.to_string()),
        ("fingerprint", incident.fingerprint.to_string()),
    ]);
    annotations.extend(incident.advice.as_deref().map(|it| ("description", short(it))));
    annotations.extend(incident.resolved_reason.as_deref().map(|it| ("resolved", short(it))));
    Alert { labels, annotations, starts_at: incident.opened_at, ends_at: None }
}

/// The name of a label as every version of Alertmanager takes it: letters, digits and `_`, no digit first.
fn label(name: &str) -> String {
    let mut label: String = name.chars().map(|it| if it.is_ascii_alphanumeric() { it } else { '_' }).collect();
    if label.starts_with(|it: char| it.is_ascii_digit()) {
        label.insert(0, '_');
    }
    label
}
