//! The collector's own findings: about agents, and about what it could not deliver.
//!
//! Each has a check id that no agent may use. Those that happen and do not last are over some time after the last one.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use tickbird_shared::protocol::{MAX_FIRING, PRESENCE_SECONDS};
use tickbird_shared::{Change, Epoch, Fingerprint, Lane, Severity, Status, Timestamp};

use super::incident::elapsed;
use super::strain::{Backlog, Disk, Judged, Queue, Reach};
use super::{Agent, Key, canary};
use crate::pki::life::{Life, Standing};
use crate::store::{Damage, FindingRow, IncidentRow, LossRow, OutboxRow};
use crate::token::DEFAULT_TENANT;

/// An agent fell silent without a goodbye.
pub(super) const MISSING: &str = "agent.missing";
/// An agent's buffer gave up findings.
const LOSS: &str = "agent.loss";
/// Two senders use one identity.
const CLONED_IDENTITY: &str = "agent.cloned_identity";
/// More fires at an agent than is kept track of.
const TOO_MANY_FIRING: &str = "agent.too_many_firing";
/// An agent goes on sending what is over its limits.
const EXCESS: &str = "agent.excess";
/// A certificate of the collector itself is not renewed.
const CERTIFICATE: &str = "collector.certificate";
/// The collector's own store: its disk is low or full, or it was damaged.
const STORE: &str = "collector.store";
/// The target of what the disk does not take.
pub(super) const STORE_DISK: &str = "store:disk";
/// The target of damage.
pub(super) const STORE_DAMAGE: &str = "store:damage";
/// More waits for the ledger than it takes away.
const QUEUE: &str = "collector.queue";
/// The target of that.
const QUEUE_LEDGER: &str = "queue:ledger";
/// A receiver is not reached.
const RECEIVER: &str = "collector.receiver";
/// A message was given up.
const DEAD_LETTER: &str = "notify.dead_letter";

/// The agent id of what the collector says of itself.
pub(super) const COLLECTOR: &str = "collector";
/// An event that did not happen again for this long is over.
const QUIET: Duration = Duration::from_secs(3600);
/// So is this, when its receiver takes nothing any more because it was removed.
const DEAD_LETTER_QUIET: Duration = Duration::from_secs(24 * 3600);
/// Who refuses one message takes the next: so long that one was given up is not over with that.
const DEAD_LETTER_STAYS: Duration = Duration::from_secs(15 * 60);

pub(super) fn is_reserved(check: &str) -> bool {
    ["fleet.", super::fleet::RULE_PREFIX, "collector."].iter().any(|it| check.starts_with(it))
        || [MISSING, canary::MISSING, LOSS, CLONED_IDENTITY, TOO_MANY_FIRING, EXCESS, DEAD_LETTER].contains(&check)
}

/// Whether an incident is of the kind that ends by itself, and its time has come.
pub(super) fn is_over(incident: &IncidentRow, now: Timestamp) -> bool {
    let quiet = match incident.check.as_str() {
        LOSS | CLONED_IDENTITY | TOO_MANY_FIRING | EXCESS => QUIET,
        DEAD_LETTER => DEAD_LETTER_QUIET,
        _ => return false,
    };
    elapsed(incident.seen_at, now) >= quiet
}

pub(super) fn missing((tenant, id): &Key, agent: &Agent, now: Timestamp) -> FindingRow {
    let host = &agent.host;
    let since = agent.last_seen_at.unwrap_or(now);
    Own {
        tenant,
        agent: id,
        check: MISSING,
        target: format!("agent:{host}"),
        severity: Severity::Critical,
        summary: format!("{host}: its agent has not been heard for {PRESENCE_SECONDS} s and did not say goodbye"),
        reason: format!("silent for {PRESENCE_SECONDS} s"),
        advice: "see whether the host is up, tickbird-agent runs there, and it reaches the collector",
        evidence: json!({ "host": host, "last_seen_at": since, "targets_not_watched": agent.targets }),
        since,
    }
    .finding(now)
}

pub(super) fn loss(loss: &LossRow, host: &str, now: Timestamp) -> FindingRow {
    let LossRow { count, outcome, from, to, .. } = loss;
    Own {
        tenant: &loss.tenant,
        agent: &loss.agent,
        check: LOSS,
        target: format!("agent:{host}"),
        severity: Severity::Warning,
        summary: format!("{host}: its agent lost {count} urgent records ({outcome})"),
        reason: format!("a loss record for sequences {from} to {to}"),
        advice: "see `tickbird-agent buffer stat` there; what still fires is known from its list of what fires",
        evidence: json!({ "epoch": loss.epoch.as_str(), "from": from, "to": to, "count": count, "outcome": outcome }),
        since: now,
    }
    .finding(now)
}

pub(super) fn cloned_identity(owner: &Key, host: &str, lane: Lane, first: u64, now: Timestamp) -> FindingRow {
    let summary = format!("{host}: somebody else sends with the identity of this agent, or its buffer was copied");
    let reason = format!("sequence {first} of the {lane} lane came again with other content");
    clone_found(owner, host, summary, reason, json!({ "lane": lane, "first": first }), now)
}

/// The same finding with another proof: two lives of the buffer, by turns.
pub(super) fn lives_take_turns(owner: &Key, host: &str, lives: [&Epoch; 2], now: Timestamp) -> FindingRow {
    let [first, second] = lives.map(Epoch::as_str);
    let summary = format!("{host}: two machines send with the identity of this agent");
    let reason = format!("batches of the epochs {first} and {second} come by turns, and one buffer never goes back");
    clone_found(owner, host, summary, reason, json!({ "host": host, "epochs": [first, second] }), now)
}

fn clone_found(
    (tenant, agent): &Key,
    host: &str,
    summary: String,
    reason: String,
    evidence: serde_json::Value,
    now: Timestamp,
) -> FindingRow {
    Own {
        tenant,
        agent,
        check: CLONED_IDENTITY,
        target: format!("agent:{host}"),
        severity: Severity::Critical,
        summary,
        reason,
        advice: "find the second machine with this identity; `tickbird-collector agent deny` it and enrol both anew",
        evidence,
        since: now,
    }
    .finding(now)
}

pub(super) fn too_many_firing(tenant: &str, agent: &str, host: &str, now: Timestamp) -> FindingRow {
    Own {
        tenant,
        agent,
        check: TOO_MANY_FIRING,
        target: format!("agent:{host}"),
        severity: Severity::Warning,
        summary: format!(
            "{host}: over {MAX_FIRING} findings fire at once; further ones are recorded without an incident"
        ),
        reason: format!("the bound of {MAX_FIRING} is reached"),
        advice: "raise the bounds of the check that fires most, or switch it off, on that host",
        evidence: json!({ "bound": MAX_FIRING }),
        since: now,
    }
    .finding(now)
}

pub(super) fn excess(
    (tenant, agent): &Key,
    host: &str,
    limits: &BTreeMap<&'static str, u64>,
    since: Timestamp,
    now: Timestamp,
) -> FindingRow {
    let times: u64 = limits.values().sum();
    let (most, _) = limits.iter().max_by_key(|(_, times)| **times).unwrap_or((&"", &0));
    Own {
        tenant,
        agent,
        check: EXCESS,
        target: format!("agent:{host}"),
        severity: Severity::Warning,
        summary: format!("{host}: its agent was refused {times} times within five minutes, mostly as `{most}`"),
        reason: format!("{times} requests, connections or records over a limit"),
        advice: "see `excess` of this agent in `tickbird-collector agent list --json`, and the log of the agent",
        evidence: json!({ "limits": limits, "since": since }),
        since,
    }
    .finding(now)
}

/// What there is to say of a certificate that should have been renewed; nothing of one that stands well.
pub(super) fn certificate(life: &Life, failure: Option<&str>, now: Timestamp) -> Option<FindingRow> {
    let (severity, what) = match life.validity.standing(now) {
        Standing::Good => return None,
        Standing::Soon => (Severity::Warning, "ends"),
        Standing::Urgent => (Severity::Critical, "ends"),
        Standing::Ended => (Severity::Critical, "ended"),
    };
    let (name, ends) = (life.name, life.validity.ends);
    let why = failure.map(|it| format!(": {it}")).unwrap_or_default();
    let own = Own {
        tenant: DEFAULT_TENANT,
        agent: COLLECTOR,
        check: CERTIFICATE,
        target: certificate_target(name),
        severity,
        summary: format!("the collector's own certificate ({name}) {what} at {ends} and is not renewed{why}"),
        reason: "less than a fifth of its life is left, or less than 30 days".into(),
        advice: "see the collector's log for why it is not renewed; put a new one of your own PKI in the place of its file",
        evidence: json!({
            "certificate": name, "begins_at": life.validity.begins, "ends_at": ends, "failure": failure,
        }),
        since: now,
    };
    Some(own.finding(now))
}

pub(super) fn certificate_fingerprint(name: &str) -> Fingerprint {
    Fingerprint::of(DEFAULT_TENANT, COLLECTOR, CERTIFICATE, &certificate_target(name), None)
}

fn certificate_target(name: &str) -> String {
    format!("certificate:{name}")
}

/// The last thing that the reserve pays for.
pub(super) fn store_full(now: Timestamp) -> FindingRow {
    Own {
        tenant: DEFAULT_TENANT,
        agent: COLLECTOR,
        check: STORE,
        target: STORE_DISK.into(),
        severity: Severity::Critical,
        summary: "the collector cannot store: its disk is full; agents keep what they find until there is room".into(),
        reason: "a transaction found no room".into(),
        advice: "free space on the disk of the collector's directory, or lower retention.bytes",
        evidence: json!({ "agents_are_answered": "503 store_full" }),
        since: now,
    }
    .finding(now)
}

/// The same disk while there is time left.
pub(super) fn store_low(disk: &Disk, now: Timestamp) -> FindingRow {
    let Disk { room, bound, judged } = disk;
    let free = room.map(|it| it.free);
    Own {
        tenant: DEFAULT_TENANT,
        agent: COLLECTOR,
        check: STORE,
        target: STORE_DISK.into(),
        severity: Severity::Warning,
        summary: format!(
            "the collector's disk has {} MiB left; once it is full nothing is stored",
            free.unwrap_or_default() >> 20
        ),
        reason: format!("less than {} MiB are free", bound >> 20),
        advice: "free space on the disk of the collector's directory, or lower retention.bytes; own.disk_free is the bound",
        evidence: json!({
            "free_bytes": free, "size_bytes": room.map(|it| it.size), "low_under_bytes": bound,
            "low_since": judged.over_since,
        }),
        since: judged.over_since.unwrap_or(now),
    }
    .finding(now)
}

pub(super) fn queue(backlog: &Backlog, now: Timestamp) -> FindingRow {
    let Backlog { queue: Queue { waiting, places }, most, judged } = backlog;
    Own {
        tenant: DEFAULT_TENANT,
        agent: COLLECTOR,
        check: QUEUE,
        target: QUEUE_LEDGER.into(),
        severity: Severity::Warning,
        summary: format!(
            "up to {most} of {places} events wait for the ledger; when no place is left, agents are told to come back"
        ),
        reason: "four of five places were taken for own.queue_hold".into(),
        advice: "see whether the disk of the collector's directory is slow, and which agents send most \
                 (`tickbird-collector agent list`)",
        evidence: json!({ "waiting": waiting, "most_waiting": most, "places": places, "full_since": judged.over_since }),
        since: judged.over_since.unwrap_or(now),
    }
    .finding(now)
}

pub(super) fn queue_fingerprint() -> Fingerprint {
    Fingerprint::of(DEFAULT_TENANT, COLLECTOR, QUEUE, QUEUE_LEDGER, None)
}

pub(super) fn receiver((reach, judged): &(Reach, Judged), now: Timestamp) -> FindingRow {
    let Reach { name, failures, last_error, .. } = reach;
    Own {
        tenant: DEFAULT_TENANT,
        agent: COLLECTOR,
        check: RECEIVER,
        target: receiver_target(name),
        severity: Severity::Warning,
        summary: format!("receiver {name} is away: {failures} attempts in a row failed; what it should hear waits"),
        reason: "it has taken nothing for own.receiver_hold".into(),
        advice: "mend the receiver; what waits is sent once it answers, and given up after seven days",
        evidence: json!({
            "receiver": name, "away_since": judged.over_since, "failures": failures, "last_error": last_error,
        }),
        since: judged.over_since.unwrap_or(now),
    }
    .finding(now)
}

/// What stands behind the name of a receiver where it is about some behind it.
const RECIPIENTS: &str = "/recipients";

/// Under what name those behind a receiver are known whom its letters do not reach.
pub(super) fn recipients_of(receiver: &str) -> String {
    format!("{receiver}{RECIPIENTS}")
}

/// Whether a name is that of a receiver, or of those behind it.
pub(super) fn is_name_of(name: &str, receiver: &str) -> bool {
    name.strip_suffix(RECIPIENTS).unwrap_or(name) == receiver || name == receiver
}

pub(super) fn left_out(receiver: &str, recipients: &[(String, u16)], now: Timestamp) -> FindingRow {
    const NAMED: usize = 10;
    let mut named: Vec<_> = recipients.iter().take(NAMED).map(|(who, code)| format!("{who} ({code})")).collect();
    named.extend(recipients.len().checked_sub(NAMED).filter(|it| *it > 0).map(|it| format!("{it} more")));
    let list: Vec<_> = recipients.iter().map(|(who, code)| json!({ "recipient": who, "code": code })).collect();
    Own {
        tenant: DEFAULT_TENANT,
        agent: COLLECTOR,
        check: RECEIVER,
        target: receiver_target(&recipients_of(receiver)),
        severity: Severity::Warning,
        summary: format!("letters of receiver {receiver} do not reach {}", named.join(", ")),
        reason: "the mail server took the last letter for others, and not for them".into(),
        advice: "correct the address in the configuration, or make room in the mailbox; what was told meanwhile they did not get",
        evidence: json!({ "receiver": receiver, "recipients": list }),
        since: now,
    }
    .finding(now)
}

pub(super) fn receiver_fingerprint(name: &str) -> Fingerprint {
    Fingerprint::of(DEFAULT_TENANT, COLLECTOR, RECEIVER, &receiver_target(name), None)
}

/// The receiver that such an incident is about.
pub(super) fn receiver_of<'a>(check: &str, target: &'a str) -> Option<&'a str> {
    (check == RECEIVER).then(|| target.strip_prefix("receiver:")).flatten()
}

pub(super) fn store_damaged(damage: &Damage, now: Timestamp) -> FindingRow {
    let lost = damage.lost();
    Own {
        tenant: DEFAULT_TENANT,
        agent: COLLECTOR,
        check: STORE,
        target: STORE_DAMAGE.into(),
        severity: Severity::Critical,
        summary: format!("the collector's store was damaged and repaired at {}; lost: {lost}", damage.found_at),
        reason: "pages or rows of the store could not be read".into(),
        advice: "look for a failing disk; restore a backup if what is lost matters; move the directory that was set aside \
                 away to end this",
        evidence: json!({ "set_aside": damage.set_aside, "said": damage.said, "tables": damage.tables }),
        since: damage.found_at,
    }
    .finding(now)
}

pub(super) fn store_fingerprint(target: &str) -> Fingerprint {
    Fingerprint::of(DEFAULT_TENANT, COLLECTOR, STORE, target, None)
}

pub(super) fn dead_letter(message: &OutboxRow, now: Timestamp) -> FindingRow {
    let receiver = &message.receiver;
    Own {
        tenant: &message.tenant,
        agent: COLLECTOR,
        check: DEAD_LETTER,
        target: receiver_target(receiver),
        severity: Severity::Critical,
        summary: format!("receiver {receiver} did not take a message; it was given up"),
        reason: format!("{} attempts failed", message.attempts),
        advice: "mend the receiver (`tickbird-collector receiver dead` tells what it said), look at the incident named in the \
                 evidence by hand, and send the message with `receiver resend`",
        evidence: json!({
            "receiver": receiver, "message": message.id, "incident": message.incident, "kind": message.kind,
            "attempts": message.attempts, "last_error": message.last_error(),
        }),
        since: message.decided_at,
    }
    .finding(now)
}

/// Whether that a message was given up is over, now that the receiver took one: the same, or another long after it.
pub(super) fn ends_dead_letter(incident: &IncidentRow, taken: &OutboxRow, now: Timestamp) -> bool {
    let evidence: serde_json::Value = serde_json::from_str(&incident.evidence).unwrap_or_default();
    evidence["message"] == taken.id.as_str() || elapsed(incident.seen_at, now) >= DEAD_LETTER_STAYS
}

pub(super) fn dead_letter_fingerprint(tenant: &str, receiver: &str) -> Fingerprint {
    Fingerprint::of(tenant, COLLECTOR, DEAD_LETTER, &receiver_target(receiver), None)
}

fn receiver_target(receiver: &str) -> String {
    format!("receiver:{receiver}")
}

pub(super) struct Own<'a> {
    pub(super) tenant: &'a str,
    pub(super) agent: &'a str,
    pub(super) check: &'a str,
    pub(super) target: String,
    pub(super) severity: Severity,
    pub(super) summary: String,
    pub(super) reason: String,
    pub(super) advice: &'a str,
    pub(super) evidence: serde_json::Value,
    pub(super) since: Timestamp,
}

impl Own<'_> {
    pub(super) fn finding(self, now: Timestamp) -> FindingRow {
        FindingRow {
            id: 0,
            tenant: self.tenant.into(),
            agent: self.agent.into(),
            fingerprint: Fingerprint::of(self.tenant, self.agent, self.check, &self.target, None),
            check: self.check.into(),
            target: self.target,
            sub_key: None,
            status: Status::Firing,
            severity: self.severity,
            // Each time is news about the same incident, told at most once a minute.
            change: Change::Evidence,
            summary: self.summary,
            reason: self.reason,
            advice: Some(self.advice.into()),
            evidence: self.evidence.to_string(),
            since: self.since,
            observed_at: now,
            received_at: now,
            incident: None,
        }
    }
}
