//! A whole watch: one receiver, one collector, one agent; and the questions that a scenario asks them.

use std::time::Duration;

use serde_json::Value;

use crate::agent::Agent;
use crate::collector::{Collector, receiver, titles};
use crate::stage::{Stage, StageError};
use crate::wait::until;
use crate::webhook::Webhook;

/// Receiver, collector and agent, in the order in which they start.
#[derive(Debug)]
pub struct Watch {
    /// Hears of every incident.
    pub webhook: Webhook,
    /// Serves, with the webhook as its one receiver.
    pub collector: Collector,
    /// Enrolled and running.
    pub agent: Agent,
}

impl Watch {
    /// Starts all three; the agent with this configuration.
    pub fn begin(stage: &Stage, configuration: &str) -> Result<Self, StageError> {
        let webhook = Webhook::start(stage)?;
        let collector = Collector::serving(stage, &webhook)?;
        let agent = Agent::running(stage, &collector, configuration)?;
        Ok(Self { webhook, collector, agent })
    }

    /// The same where one fault is made many times, and each is told with its end.
    pub fn of_repeated_faults(stage: &Stage, configuration: &str) -> Result<Self, StageError> {
        let webhook = Webhook::start(stage)?;
        let mut collector = Collector::init(stage)?;
        collector.configure(&format!("\n[flapping]\nenabled = false\n{}", receiver(&webhook)))?;
        collector.serve()?;
        let agent = Agent::running(stage, &collector, configuration)?;
        Ok(Self { webhook, collector, agent })
    }

    /// Waits for a firing incident of `check` on a target that contains `part`.
    pub fn fires(&self, check: &str, part: &str, within: Duration) -> Result<Value, StageError> {
        self.has(check, part, "firing", within)
    }

    /// Waits until an incident of `check` on a target that contains `part` is resolved.
    pub fn resolves(&self, check: &str, part: &str, within: Duration) -> Result<Value, StageError> {
        self.has(check, part, "resolved", within)
    }

    fn has(&self, check: &str, part: &str, status: &str, within: Duration) -> Result<Value, StageError> {
        let found = self.collector.has_incident(&format!("{check} {status} for {part}"), within, |it| {
            let word = |key: &str| it[key].as_str().unwrap_or_default();
            word("check") == check && word("status") == status && word("target").contains(part)
        });
        found.map_err(|error| {
            // What the agent makes of it says on which side the fact got lost.
            let status = self.agent.status().unwrap_or_default();
            let said = format!("{error}; the agent says: {:?}", rows_of(&status, check, part));
            StageError::Failed { what: "the watch".into(), said }
        })
    }

    /// Waits until `check` has seen targets that contain `part` with known values at three looks, and is in `state`.
    ///
    /// A scenario waits for `ok` before it makes a fault, so that "it fires" is a change and not a beginning.
    pub fn sees(&self, check: &str, part: &str, state: &str, within: Duration) -> Result<Value, StageError> {
        until(format!("{check} is {state} for {part}"), within, || {
            let status = self.agent.status().map_err(|error| error.to_string())?;
            let rows = rows_of(&status, check, part);
            let wanted = |row: &&Value| row["state"] == state && row["looks_known"].as_u64() >= Some(3);
            if let Some(row) = rows.iter().copied().find(wanted) {
                return Ok(row.clone());
            }
            Err(if rows.is_empty() {
                format!("it has no row; blind: {}", status["blind"])
            } else {
                format!("{rows:?}")
            })
        })
    }

    /// Waits until the agent itself tells of `check` on a target that contains `part`, be it only recorded.
    pub fn tells(&self, check: &str, part: &str, within: Duration) -> Result<Value, StageError> {
        until(format!("the agent tells {check} of {part}"), within, || {
            let status = self.agent.status().map_err(|error| error.to_string())?;
            let all = status["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
            let found = all.iter().find(|it| is_of(it, check, part)).cloned();
            found.ok_or_else(|| format!("{:?}", rows_of(&status, check, part)))
        })
    }

    /// The same, and it has this severity by then.
    pub fn tells_as(&self, check: &str, part: &str, severity: &str, within: Duration) -> Result<Value, StageError> {
        self.tells_when(check, part, &format!("as {severity}"), within, |it| it["severity"] == severity)
    }

    /// The same, and it is what is wanted by then: what it is made of may come one after the other.
    pub fn tells_when(
        &self,
        check: &str,
        part: &str,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, StageError> {
        until(format!("the agent tells {check} of {part} {what}"), within, || {
            let status = self.agent.status().map_err(|error| error.to_string())?;
            let all = status["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
            match all.iter().find(|it| is_of(it, check, part)) {
                Some(it) if wanted(it) => Ok(it.clone()),
                other => Err(format!("{other:?}; {:?}", rows_of(&status, check, part))),
            }
        })
    }

    /// `check` was never found on targets that contain `part`.
    ///
    /// # Errors
    /// With the findings that there are.
    pub fn never_told(&self, check: &str, part: &str) -> Result<(), StageError> {
        let mut found = self.collector.items("findings", "")?;
        found.retain(|it| is_of(it, check, part));
        if found.is_empty() {
            return Ok(());
        }
        Err(StageError::Failed { what: format!("silence of {check} about {part}"), said: titles(&found) })
    }

    /// Nothing at all was ever found about targets that contain `part`.
    ///
    /// # Errors
    /// With the findings that there are.
    pub fn silent_about(&self, part: &str) -> Result<(), StageError> {
        let found = self.collector.items("findings", "")?;
        let about: Vec<Value> =
            found.into_iter().filter(|it| it["target"].as_str().is_some_and(|it| it.contains(part))).collect();
        if about.is_empty() {
            return Ok(());
        }
        Err(StageError::Failed { what: format!("silence about {part}"), said: titles(&about) })
    }

    /// Nothing above `info` was found about targets that contain `part`, as far as the collector knows.
    ///
    /// # Errors
    /// When something was.
    pub fn quiet_about(&self, part: &str) -> Result<(), StageError> {
        let found = self.collector.items("findings", "")?.into_iter();
        let is_loud =
            |it: &Value| it["severity"] != "info" && it["target"].as_str().is_some_and(|target| target.contains(part));
        let loud: Vec<Value> = found.filter(is_loud).collect();
        if loud.is_empty() {
            return Ok(());
        }
        Err(StageError::Failed { what: format!("nothing above info about {part}"), said: titles(&loud) })
    }
}

/// Rows of `tickbird-agent status --json` of one check, on targets that contain `part`.
pub fn rows_of<'s>(status: &'s Value, check: &str, part: &str) -> Vec<&'s Value> {
    let rows = status["checks"].as_array().map(Vec::as_slice).unwrap_or_default();
    rows.iter().filter(|it| is_of(it, check, part)).collect()
}

fn is_of(it: &Value, check: &str, part: &str) -> bool {
    it["check"] == check && it["target"].as_str().is_some_and(|it| it.contains(part))
}
