//! How the collector's own parts stand, and the incidents that follow from it: its store, its disk, its queue, its receivers.
//!
//! All of it is said again each second, so an incident that was stored goes on or ends by what is true now.

use tickbird_shared::{Fingerprint, Severity, Timestamp};

use super::incident::Sight;
use super::strain::{Disk, Judged, Reach, Strain, Verdict};
use super::{IncidentChange, State, own};
use crate::store::{Condition, FindingRow, IncidentRow};

impl State {
    /// Told once for each damage; over when what was set aside is taken away.
    pub(super) fn store(&mut self, condition: &Condition, disk: Option<&Disk>, now: Timestamp) -> Vec<IncidentChange> {
        let mut changes = self.disk(condition.is_full, disk, now);
        let fingerprint = own::store_fingerprint(own::STORE_DAMAGE);
        match condition.damage.as_ref().map(|damage| own::store_damaged(damage, now)) {
            Some(finding) if self.fires(&fingerprint).is_none_or(|row| row.summary != finding.summary) => {
                changes.extend(self.raise(finding, now));
            }
            Some(_) => (),
            None => changes.extend(self.clear(fingerprint, "what was set aside was taken away", now)),
        }
        changes
    }

    /// Told when the disk is low, and again when nothing can be stored. Once there is a little room it is a warning again, and over
    /// when there is enough.
    fn disk(&mut self, is_full: bool, disk: Option<&Disk>, now: Timestamp) -> Vec<IncidentChange> {
        let fingerprint = own::store_fingerprint(own::STORE_DISK);
        let told = self.fires(&fingerprint).map(|row| row.severity);
        let verdict = disk.map_or(Verdict::Open, |disk| disk.judged.verdict);
        let finding = match disk {
            _ if is_full => own::store_full(now),
            Some(disk) if verdict == Verdict::Fires => own::store_low(disk, now),
            // It was full and can be written again. What does not end a warning does not end this either.
            Some(disk) if told == Some(Severity::Critical) && disk.room.is_some() && verdict == Verdict::Open => {
                own::store_low(disk, now)
            }
            _ if told == Some(Severity::Warning) && verdict == Verdict::Open => return Vec::new(),
            _ => return self.clear(fingerprint, "the store can be written, and there is room", now),
        };
        if told == Some(finding.severity) { Vec::new() } else { self.raise(finding, now) }
    }

    /// Told once of each part that bears too much for too long; over when it does not any more.
    pub(super) fn strain(&mut self, strain: &Strain, now: Timestamp) -> Vec<IncidentChange> {
        let queue = || own::queue(&strain.queue, now);
        let mut changes = self.follow(
            strain.queue.judged.verdict,
            own::queue_fingerprint(),
            "half of its places are free",
            now,
            queue,
        );
        for of in &strain.receivers {
            let (Reach { name, .. }, Judged { verdict, .. }) = of;
            let reason = "it answers, or nothing waits for it any more";
            let finding = || own::receiver(of, now);
            changes.extend(self.follow(*verdict, own::receiver_fingerprint(name), reason, now, finding));
            match verdict {
                Verdict::Fires => _ = self.away.insert(name.clone()),
                Verdict::Clear => _ = self.away.remove(name),
                Verdict::Open => (),
            }
            changes.extend(self.left_out(&of.0, now));
        }
        let is_configured = |name: &str| strain.receivers.iter().any(|(reach, _)| own::is_name_of(name, &reach.name));
        for gone in self.away.extract_if(.., |name| !is_configured(name)).collect::<Vec<_>>() {
            changes.extend(self.clear(own::receiver_fingerprint(&gone), "it is configured no more", now));
        }
        changes
    }

    /// Told of those behind a receiver whom its letters do not reach, and again when they are others.
    fn left_out(&mut self, reach: &Reach, now: Timestamp) -> Vec<IncidentChange> {
        let Some(recipients) = &reach.left_out else { return Vec::new() };
        let name = own::recipients_of(&reach.name);
        let fingerprint = own::receiver_fingerprint(&name);
        if recipients.is_empty() {
            self.away.remove(&name);
            return self.clear(fingerprint, "the last letter was taken for everybody", now);
        }
        let finding = own::left_out(&reach.name, recipients, now);
        if self.fires(&fingerprint).is_some_and(|row| row.summary == finding.summary) {
            return Vec::new();
        }
        self.away.insert(name);
        self.raise(finding, now)
    }

    fn follow(
        &mut self,
        verdict: Verdict,
        fingerprint: Fingerprint,
        over: &str,
        now: Timestamp,
        finding: impl FnOnce() -> FindingRow,
    ) -> Vec<IncidentChange> {
        match verdict {
            Verdict::Fires if self.fires(&fingerprint).is_none() => self.raise(finding(), now),
            Verdict::Clear => self.clear(fingerprint, over, now),
            Verdict::Fires | Verdict::Open => Vec::new(),
        }
    }

    /// The incident of a fingerprint, while it fires.
    fn fires(&self, fingerprint: &Fingerprint) -> Option<&IncidentRow> {
        self.incidents.get(fingerprint).filter(|it| it.is_firing()).map(|it| it.row())
    }

    /// Ends what the collector itself saw begin, if it fires.
    fn clear(&mut self, fingerprint: Fingerprint, reason: &str, now: Timestamp) -> Vec<IncidentChange> {
        let sight = Sight { epoch: None, at: now };
        self.end(fingerprint, "cleared", reason, sight, now).into_iter().collect()
    }
}
