//! As what Alertmanagers know incidents: by the labels of the alert that each was told of last. What is told later is of that alert,
//! also where the incident's severity has changed unsaid, or its agent has other labels by now or is forgotten: with other labels it would
//! be another alert, and people would be told twice.

use std::collections::{BTreeSet, HashMap};

use super::by_receiver::ByReceiver;
use super::message::{Known, alert_labels};
use super::{Form, IncidentKey, Kind, State};
use crate::store::{AgentRow, HeardRow, IncidentRow};

/// Of all incidents that are told and not over. Fifty thousand may be: as the texts that are stored.
#[derive(Debug, Default)]
pub(super) struct Heard {
    by: HashMap<IncidentKey, ByReceiver<Box<str>>>,
    unsaved: BTreeSet<(IncidentKey, String)>,
}

impl Heard {
    /// What a receiver knows an incident by.
    pub(super) fn get(&self, key: &IncidentKey, receiver: &str) -> Option<Known> {
        serde_json::from_str(self.by.get(key)?.get(receiver)?).ok()
    }

    fn set(&mut self, key: &IncidentKey, receiver: &str, labels: &Known) {
        let text = serde_json::to_string(labels).unwrap_or_default().into_boxed_str();
        self.by.entry(key.clone()).or_default().insert(receiver, text);
    }

    /// A receiver knows an incident no more.
    pub(super) fn remove(&mut self, key: &IncidentKey, receiver: &str) {
        let Some(them) = self.by.get_mut(key) else { return };
        if them.remove(receiver).is_some() {
            self.unsaved.insert((key.clone(), receiver.to_owned()));
        }
        if them.is_empty() {
            self.by.remove(key);
        }
    }
}

impl State {
    /// The same with what receivers know incidents by, as stored; what nobody believes any more is dropped.
    #[must_use]
    pub fn with_heard(mut self, rows: Vec<HeardRow>) -> Self {
        for row in rows {
            let key = (row.tenant, row.incident);
            if self.believers.get(&key).is_some_and(|them| them.get(&row.receiver).is_some()) {
                self.heard.set(&key, &row.receiver, &row.labels);
            } else {
                self.heard.unsaved.insert((key, row.receiver));
            }
        }
        self
    }

    /// A receiver of this form was told something of an incident.
    pub(super) fn hears(
        &mut self,
        (key, receiver, form): (&IncidentKey, &str, &Form),
        kind: Kind,
        (incident, agent): (&IncidentRow, Option<&AgentRow>),
    ) {
        if kind == Kind::Resolved {
            return self.heard.remove(key, receiver);
        }
        if *form != Form::Alertmanager {
            return;
        }
        let before = self.heard.get(key, receiver);
        let labels = alert_labels(incident, agent, before.as_ref());
        if before.as_ref() != Some(&labels) {
            self.heard.set(key, receiver, &labels);
            self.heard.unsaved.insert((key.clone(), receiver.to_owned()));
        }
    }

    /// Receivers that are owed nothing more of an incident know it by nothing.
    pub(super) fn hear_no_more(&mut self, key: &IncidentKey) {
        let all = self.heard.by.get(key).into_iter().flat_map(ByReceiver::names);
        let believes = |name: &str| self.believers.get(key).is_some_and(|them| them.get(name).is_some());
        let gone: Vec<_> = all.filter(|it| !believes(it)).map(str::to_owned).collect();
        gone.iter().for_each(|it| self.heard.remove(key, it));
    }

    /// What changed since this was asked last: rows to keep, and keys of those to forget.
    pub fn take_unsaved_heard(&mut self) -> Vec<(IncidentKey, String, Option<HeardRow>)> {
        let unsaved = std::mem::take(&mut self.heard.unsaved);
        let row = |(key, receiver): (IncidentKey, String)| {
            let labels = self.heard.get(&key, &receiver);
            let of = |labels| HeardRow {
                tenant: key.0.clone(),
                incident: key.1.clone(),
                receiver: receiver.clone(),
                labels,
            };
            let row = labels.map(of);
            (key, receiver, row)
        };
        unsaved.into_iter().map(row).collect()
    }
}
