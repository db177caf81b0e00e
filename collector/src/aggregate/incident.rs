//! One incident: a fingerprint from firing to resolved, and back when it returns within the recurrence window.
//!
//! A function of what is heard and when. Findings of one life of an agent's buffer come in order, so they are taken as
//! they come; one of another life that was seen before the newest known one is history and changes nothing.

use std::time::Duration;

use tickbird_shared::units::show_duration;
use tickbird_shared::{Change, Epoch, Severity, Status, Timestamp};

use super::flap::Flapping;
use crate::store::{FindingRow, FlapRow, IncidentRow};

/// A return within this time of the end reopens the incident and counts; a later one is a new incident.
pub(super) const RECURRENCE: Duration = Duration::from_secs(3600);
/// An update follows the one before it after at least this long, however often the evidence changes.
pub(super) const UPDATE_EVERY: Duration = Duration::from_secs(60);
/// The first update may come sooner: a leak that began with one session often holds ten a few seconds later.
const FIRST_UPDATE: Duration = Duration::from_secs(10);

/// What about an incident changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It fires for the first time.
    Opened,
    /// It fires again within the recurrence window.
    Reopened,
    /// Its severity rose.
    Worsened,
    /// Its severity fell, and it still fires.
    Eased,
    /// Its evidence changed materially, and the last telling is long enough ago.
    Updated,
    /// What held a telling back is gone; the incident itself did not change.
    Reconsidered,
    /// Somebody owns it for a while; the incident itself did not change.
    Acknowledged,
    /// Nobody owns it any more, and it still fires; the incident itself did not change.
    Unacknowledged,
    /// The time of a step has come, after which others are told; the incident itself did not change.
    Escalated,
    /// It flaps, and went away for now, or came back.
    Flapped,
    /// Its row changed in a way that nobody is told of now; the state epoch stays.
    Refreshed,
    /// It is over; the row says why.
    Resolved,
}

/// An incident after a change, to be stored and decided about.
#[derive(Debug, Clone)]
pub struct IncidentChange {
    /// The whole row, after the change.
    pub incident: IncidentRow,
    /// What changed.
    pub kind: ChangeKind,
    /// Why, in words: `began: 14 idle in transaction for 31 s`.
    pub reason: String,
}

/// In which life of an agent's buffer something was written down, and when it was seen by the collector's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sight {
    /// None for what the collector saw itself.
    pub(super) epoch: Option<Epoch>,
    pub(super) at: Timestamp,
}

/// What a finding did to an incident that is known.
#[derive(Debug)]
pub(super) enum Heard {
    Changed(Box<IncidentChange>),
    /// It belongs to the incident and changes nothing.
    Nothing,
    /// It is too late a return: a new incident begins.
    Anew,
}

#[derive(Debug, Clone)]
pub(super) struct Incident {
    row: IncidentRow,
    /// Evidence that nobody was told of yet.
    news: bool,
    /// When the next update may be told.
    update_from: Timestamp,
}

impl Incident {
    /// An incident as it was stored. News that waited when the collector ended waits again.
    pub(super) fn loaded(row: IncidentRow) -> Self {
        let news = row.status == Status::Firing && row.updated_at > row.state_since;
        Self { update_from: later(row.state_since, UPDATE_EVERY), news, row }
    }

    /// The first firing of a fingerprint.
    pub(super) fn opened(id: String, finding: &FindingRow, sight: Sight, now: Timestamp) -> (Self, IncidentChange) {
        let row = IncidentRow {
            tenant: finding.tenant.clone(),
            id,
            fingerprint: finding.fingerprint,
            agent: finding.agent.clone(),
            check: finding.check.clone(),
            target: finding.target.clone(),
            sub_key: finding.sub_key.clone(),
            status: Status::Firing,
            severity: finding.severity,
            summary: finding.summary.clone(),
            advice: finding.advice.clone(),
            evidence: finding.evidence.clone(),
            evidence_lost: finding.change == Change::EvidenceLost,
            since: finding.since,
            opened_at: now,
            updated_at: now,
            resolved_at: None,
            resolved_reason: None,
            occurrences: 1,
            state_epoch: 0,
            state_since: now,
            seen_epoch: sight.epoch,
            seen_at: sight.at,
            flap: None,
        };
        let mut incident = Self { row, news: false, update_from: later(now, FIRST_UPDATE) };
        let word = match finding.change {
            Change::Began | Change::Evidence => "began",
            _ => "fired when it was first heard of",
        };
        let change = incident.turn(ChangeKind::Opened, format!("{word}: {}", finding.reason), now);
        (incident, change)
    }

    pub(super) const fn row(&self) -> &IncidentRow {
        &self.row
    }

    pub(super) fn is_firing(&self) -> bool {
        self.row.status == Status::Firing
    }

    /// Whether something seen then and there is older than what is known.
    pub(super) fn is_history(&self, sight: &Sight) -> bool {
        sight.epoch != self.row.seen_epoch && sight.at < self.row.seen_at
    }

    /// Takes a finding of this fingerprint.
    pub(super) fn hear(&mut self, finding: &FindingRow, sight: Sight, flapping: &Flapping, now: Timestamp) -> Heard {
        if self.is_history(&sight) {
            return Heard::Nothing;
        }
        let firing = finding.status == Status::Firing && finding.severity > Severity::Info;
        let since_then = elapsed(self.row.seen_at, sight.at);
        match (self.is_firing(), firing) {
            (false, false) => return Heard::Nothing,
            (false, true) if since_then > RECURRENCE => return Heard::Anew,
            (true, false) if self.row.is_calm() => return Heard::Nothing,
            _ => (),
        }
        self.row.seen_epoch = sight.epoch;
        self.row.seen_at = sight.at;
        let seen = (sight.at, now);
        Heard::Changed(Box::new(match (self.is_firing(), firing) {
            (false, _) => self.reopen(finding, flapping, seen),
            (true, true) if self.row.is_calm() => self.return_again(finding, flapping, seen),
            (true, true) => self.go_on(finding, now),
            (true, false) => {
                let why = match (finding.status, finding.change) {
                    (Status::Firing, _) => "eased to info",
                    (Status::Resolved, Change::TargetGone) => "target gone",
                    (Status::Resolved, _) => "cleared",
                };
                self.row.severity = self.row.severity.max(finding.severity);
                self.describe(finding);
                self.stop(why, &finding.reason, now)
            }
        }))
    }

    /// Ends it at the word of `sight`: an open list, or the collector itself. None when it flaps and has gone away before.
    pub(super) fn end(&mut self, why: &str, reason: &str, sight: Sight, now: Timestamp) -> Option<IncidentChange> {
        if self.row.is_calm() {
            return None;
        }
        self.row.seen_epoch = sight.epoch;
        self.row.seen_at = self.row.seen_at.max(sight.at);
        Some(self.stop(why, reason, now))
    }

    /// Ends it for good, also while it flaps: nobody will say any more whether it returns.
    pub(super) fn end_for_good(&mut self, why: &str, reason: &str, now: Timestamp) -> IncidentChange {
        self.row.seen_epoch = None;
        self.row.seen_at = self.row.seen_at.max(now);
        self.resolve(why, reason, now)
    }

    /// What the end of its flapping changes, if that is over.
    pub(super) fn settle(&mut self, flapping: &Flapping, now: Timestamp) -> Option<IncidentChange> {
        let is_calm = self.row.is_calm();
        let flap = self.row.flap.as_mut().filter(|it| it.since.is_some())?;
        let goes = flapping.returns > 0;
        if goes && !flapping.is_over(flap, now) {
            return None;
        }
        let worst = flap.worst.take();
        **flap = FlapRow::default();
        if is_calm && let Some(worst) = worst {
            // What is over says how bad it was.
            self.row.severity = self.row.severity.max(worst);
        }
        let calm = show_duration(flapping.calm);
        Some(match (is_calm, goes) {
            (true, true) => self.resolve("calm", &format!("it flapped, and has stayed away for {calm}"), now),
            (true, false) => self.resolve("cleared", "it had gone away, and flapping counts no more", now),
            (false, true) => self.update(format!("it flaps no more: it has stayed for {calm}"), now),
            (false, false) => self.refresh("flapping counts no more".into(), now),
        })
    }

    /// When news that is held back may be told.
    pub(super) fn held_until(&self) -> Option<Timestamp> {
        self.news.then_some(self.update_from)
    }

    /// No wait is longer than that between two updates: one that is was said before the clock was set back.
    fn may_be_told(&self, now: Timestamp) -> bool {
        self.update_from <= now || later(now, UPDATE_EVERY) < self.update_from
    }

    /// Lets out the news that was held back, if its time has come.
    pub(super) fn release(&mut self, now: Timestamp) -> Option<IncidentChange> {
        (self.news && self.may_be_told(now)).then(|| self.update("evidence changed since it was last told".into(), now))
    }

    /// A new state epoch, though the incident did not change. News that waits goes on waiting.
    pub(super) fn reconsider(&mut self, kind: ChangeKind, reason: &str) -> IncidentChange {
        self.row.state_epoch += 1;
        self.change(kind, reason.to_owned())
    }

    fn reopen(
        &mut self,
        finding: &FindingRow,
        flapping: &Flapping,
        (at, now): (Timestamp, Timestamp),
    ) -> IncidentChange {
        self.row.status = Status::Firing;
        self.row.severity = finding.severity;
        self.row.since = finding.since;
        self.row.opened_at = now;
        self.row.resolved_at = None;
        self.row.resolved_reason = None;
        self.row.occurrences = self.row.occurrences.saturating_add(1);
        self.row.evidence_lost = finding.change == Change::EvidenceLost;
        self.describe(finding);
        self.update_from = later(now, FIRST_UPDATE);
        let mut reason = format!("returned, time {}: {}", self.row.occurrences, finding.reason);
        if flapping.returns > 0 {
            let flap = self.row.flap.get_or_insert_default();
            if flapping.returned(flap, at, now) {
                flap.worst = Some(finding.severity);
                let (within, calm) = (show_duration(flapping.within), show_duration(flapping.calm));
                let returns = flap.returns.len();
                reason += &format!(
                    "; it flaps: {returns} returns within {within}, and is over when it stays away for {calm}"
                );
            }
        }
        self.turn(ChangeKind::Reopened, reason, now)
    }

    /// It flaps, had gone away, and is back.
    fn return_again(
        &mut self,
        finding: &FindingRow,
        flapping: &Flapping,
        (at, now): (Timestamp, Timestamp),
    ) -> IncidentChange {
        self.row.occurrences = self.row.occurrences.saturating_add(1);
        if let Some(flap) = &mut self.row.flap {
            flap.calm_since = None;
            flapping.returned(flap, at, now);
        }
        if finding.severity > self.row.worst() {
            return self.go_on(finding, now);
        }
        self.row.severity = finding.severity;
        self.row.since = finding.since;
        self.row.evidence_lost = finding.change == Change::EvidenceLost;
        self.describe(finding);
        self.turn(ChangeKind::Flapped, format!("back, time {}: {}", self.row.occurrences, finding.reason), now)
    }

    fn go_on(&mut self, finding: &FindingRow, now: Timestamp) -> IncidentChange {
        let before = self.row.severity;
        let lost = finding.change == Change::EvidenceLost;
        self.row.evidence_lost = lost;
        let severity = finding.severity;
        let worst = self.row.worst();
        self.row.severity = severity;
        if let Some(worst) = self.row.flap.as_mut().and_then(|it| it.worst.as_mut()) {
            *worst = severity.max(*worst);
        }
        // An agent that forgot its history says that it began just now.
        self.row.since = self.row.since.min(finding.since);
        if !lost {
            self.describe(finding);
        }
        let from_to = format!("from {before} to {severity}: {}", finding.reason);
        match finding.change {
            // While it flaps, what is no worse than it was is nothing new.
            _ if self.row.flaps() && severity != before && severity <= worst => {
                self.turn(ChangeKind::Flapped, format!("while it flaps {from_to}"), now)
            }
            _ if severity > before => {
                self.update_from = later(now, UPDATE_EVERY);
                self.turn(ChangeKind::Worsened, format!("worsened {from_to}"), now)
            }
            _ if severity < before => self.turn(ChangeKind::Eased, format!("eased {from_to}"), now),
            Change::EvidenceLost => self.refresh(format!("evidence lost: {}", finding.reason), now),
            Change::EvidenceBack => self.refresh(format!("evidence back: {}", finding.reason), now),
            // An agent that started anew repeats what is known: no reason to tell anybody again.
            Change::Began => self.refresh(format!("still fires: {}", finding.reason), now),
            _ if self.row.flaps() => self.refresh(format!("evidence changed while it flaps: {}", finding.reason), now),
            _ if self.may_be_told(now) => self.update(format!("evidence changed: {}", finding.reason), now),
            _ => {
                self.news = true;
                self.row.updated_at = now;
                self.change(ChangeKind::Refreshed, "evidence changed, to be told later".into())
            }
        }
    }

    fn update(&mut self, reason: String, now: Timestamp) -> IncidentChange {
        self.update_from = later(now, UPDATE_EVERY);
        self.turn(ChangeKind::Updated, reason, now)
    }

    /// It is over, unless it flaps: then it has gone away for now.
    fn stop(&mut self, why: &str, reason: &str, now: Timestamp) -> IncidentChange {
        match &mut self.row.flap {
            Some(flap) if flap.since.is_some() => {
                flap.calm_since = Some(now);
                self.row.evidence_lost = false;
                self.turn(ChangeKind::Flapped, format!("gone for now, {why}: {reason}"), now)
            }
            _ => self.resolve(why, reason, now),
        }
    }

    fn resolve(&mut self, why: &str, reason: &str, now: Timestamp) -> IncidentChange {
        if let Some(flap) = &mut self.row.flap
            && flap.since.is_some()
        {
            **flap = FlapRow::default();
        }
        self.row.status = Status::Resolved;
        self.row.evidence_lost = false;
        self.row.resolved_at = Some(now);
        self.row.resolved_reason = Some(why.into());
        self.turn(ChangeKind::Resolved, format!("{why}: {reason}"), now)
    }

    /// A change that may be told: the state epoch counts up and all news is in it.
    fn turn(&mut self, kind: ChangeKind, reason: String, now: Timestamp) -> IncidentChange {
        self.row.state_epoch += 1;
        self.row.state_since = now;
        self.row.updated_at = now;
        self.news = false;
        self.change(kind, reason)
    }

    /// A change that is worth keeping and not worth telling.
    fn refresh(&mut self, reason: String, now: Timestamp) -> IncidentChange {
        self.row.updated_at = now;
        if !self.news {
            self.row.state_since = now;
        }
        self.change(ChangeKind::Refreshed, reason)
    }

    fn change(&self, kind: ChangeKind, reason: String) -> IncidentChange {
        IncidentChange { incident: self.row.clone(), kind, reason }
    }

    fn describe(&mut self, finding: &FindingRow) {
        self.row.summary.clone_from(&finding.summary);
        if finding.advice.is_some() {
            self.row.advice.clone_from(&finding.advice);
        }
        // A fault that cleared with nothing to show leaves the proof that it was there.
        if finding.evidence != "{}" {
            self.row.evidence.clone_from(&finding.evidence);
        }
    }
}

/// Time from one moment to a later one; zero when it is not later.
pub(super) fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    to.duration_since(from).try_into().unwrap_or(Duration::ZERO)
}

/// `by` after `from`, or the end of time.
pub(super) fn later(from: Timestamp, by: Duration) -> Timestamp {
    from.saturating_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tickbird_shared::Fingerprint;

    const FLAPPING: Flapping = Flapping { returns: 3, within: Duration::from_secs(100), calm: Duration::from_secs(50) };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).expect("in range")
    }

    fn finding(second: i64, severity: Severity, change: Change) -> FindingRow {
        let ended = matches!(change, Change::Cleared | Change::TargetGone);
        FindingRow {
            id: 0,
            tenant: "default".into(),
            agent: "a".into(),
            fingerprint: Fingerprint::of("default", "a", "pool.leak", "pool:shop", None),
            check: "pool.leak".into(),
            target: "pool:shop".into(),
            sub_key: None,
            status: if ended { Status::Resolved } else { Status::Firing },
            severity,
            change,
            summary: format!("seen at {second}"),
            reason: "3 looks".into(),
            advice: None,
            evidence: if ended { "{}".into() } else { format!(r#"{{"at":{second}}}"#) },
            since: at(0),
            observed_at: at(second),
            received_at: at(second),
            incident: None,
        }
    }

    /// Plays `second severity change` lines, all of one life, and writes down what came of each.
    fn play(story: &[(i64, Severity, Change)]) -> String {
        let mut told = String::new();
        let mut incident: Option<Incident> = None;
        for &(second, severity, change) in story {
            let finding = finding(second, severity, change);
            let sight = Sight { epoch: None, at: at(second) };
            let line = match &mut incident {
                None => {
                    let (opened, change) = Incident::opened("I".into(), &finding, sight, at(second));
                    incident = Some(opened);
                    format!("{:?}", change.kind)
                }
                Some(known) => {
                    let settled = known.settle(&FLAPPING, at(second));
                    let released = known.release(at(second));
                    let said = settled.into_iter().chain(released).map(|it| format!("{:?}, ", it.kind));
                    let said: String = said.collect();
                    let heard = match known.hear(&finding, sight, &FLAPPING, at(second)) {
                        Heard::Changed(change) => format!("{:?}", change.kind),
                        other => format!("{other:?}"),
                    };
                    said + &heard
                }
            };
            let row = incident.as_ref().expect("opened by the first").row();
            told += &format!("{second}: {line} epoch {} times {}\n", row.state_epoch, row.occurrences);
        }
        told
    }

    use Change::*;
    use Severity::{Critical, Info, Warning};

    #[test]
    fn goes_from_firing_to_resolved_and_counts_each_telling() {
        let told = play(&[(0, Warning, Began), (5, Critical, Worsened), (9, Warning, Eased), (20, Warning, Cleared)]);
        assert_eq!(
            told,
            "0: Opened epoch 1 times 1\n5: Worsened epoch 2 times 1\n9: Eased epoch 3 times 1\n\
             20: Resolved epoch 4 times 1\n"
        );
    }

    #[test]
    fn evidence_is_told_after_ten_seconds_then_once_a_minute() {
        let told = play(&[
            (0, Warning, Began),
            (4, Warning, Evidence),
            (11, Warning, Evidence),
            (30, Warning, Evidence),
            (71, Warning, Evidence),
        ]);
        assert_eq!(
            told,
            "0: Opened epoch 1 times 1\n4: Refreshed epoch 1 times 1\n11: Updated, Refreshed epoch 2 times 1\n\
             30: Refreshed epoch 2 times 1\n71: Updated, Refreshed epoch 3 times 1\n"
        );
    }

    #[test]
    fn a_clock_that_is_set_back_holds_no_news() {
        let told = play(&[
            (7_200, Warning, Began),
            (7_204, Warning, Evidence),
            (5, Warning, Evidence),
            (8, Warning, Evidence),
            (70, Warning, Evidence),
        ]);
        assert_eq!(
            told,
            "7200: Opened epoch 1 times 1\n7204: Refreshed epoch 1 times 1\n5: Updated, Refreshed epoch 2 times 1\n\
             8: Refreshed epoch 2 times 1\n70: Updated, Refreshed epoch 3 times 1\n"
        );
    }

    #[test]
    fn losing_sight_and_starting_anew_tell_nobody() {
        let told = play(&[
            (0, Warning, Began),
            (90, Warning, EvidenceLost),
            (95, Warning, EvidenceBack),
            (99, Warning, Began),
        ]);
        assert_eq!(told.matches("Refreshed epoch 1").count(), 3, "{told}");
    }

    #[test]
    fn a_return_within_the_hour_reopens_and_a_later_one_begins_anew() {
        let story = [(0, Warning, Began), (10, Warning, Cleared), (3609, Warning, Began), (3700, Warning, Cleared)];
        let told = play(&story);
        assert!(told.contains("3609: Reopened epoch 3 times 2"), "{told}");
        let told = play(&[(0, Warning, Began), (10, Warning, Cleared), (3611, Warning, Began)]);
        assert!(told.contains("3611: Anew"), "{told}");
    }

    #[test]
    fn what_returns_too_often_flaps_until_it_stays_away() {
        let told = play(&[
            (0, Warning, Began),
            (5, Warning, Cleared),
            (10, Warning, Began),
            (15, Warning, Cleared),
            (20, Warning, Began),
            (25, Warning, Cleared),
            (30, Warning, Began),
            (33, Warning, Evidence),
            (35, Warning, Cleared),
            (36, Warning, Cleared),
            (40, Warning, Began),
            (42, Critical, Worsened),
            (44, Warning, Eased),
            (50, Warning, Cleared),
            (101, Warning, Cleared),
            (110, Warning, Began),
            (115, Warning, Cleared),
        ]);
        assert_eq!(
            told,
            "0: Opened epoch 1 times 1\n5: Resolved epoch 2 times 1\n10: Reopened epoch 3 times 2\n\
             15: Resolved epoch 4 times 2\n20: Reopened epoch 5 times 3\n25: Resolved epoch 6 times 3\n\
             30: Reopened epoch 7 times 4\n33: Refreshed epoch 7 times 4\n35: Flapped epoch 8 times 4\n\
             36: Nothing epoch 8 times 4\n40: Flapped epoch 9 times 5\n42: Worsened epoch 10 times 5\n\
             44: Flapped epoch 11 times 5\n50: Flapped epoch 12 times 5\n\
             101: Resolved, Nothing epoch 13 times 5\n110: Reopened epoch 14 times 6\n\
             115: Resolved epoch 15 times 6\n"
        );
    }

    #[test]
    fn what_returns_rarely_is_told_each_time() {
        let story: Vec<_> =
            (0..9).flat_map(|at| [(51 * at, Warning, Began), (51 * at + 9, Warning, Cleared)]).collect();
        let told = play(&story);
        assert_eq!((told.matches("Reopened").count(), told.matches("Resolved").count()), (8, 9), "{told}");
    }

    #[test]
    fn what_flapped_and_stays_is_told_as_anything_else() {
        let mut story: Vec<_> =
            (0..4).flat_map(|at| [(10 * at, Warning, Began), (10 * at + 5, Warning, Cleared)]).collect();
        story.extend([(40, Warning, Began), (89, Warning, Evidence), (91, Warning, Evidence), (99, Warning, Cleared)]);
        let told = play(&story);
        let end = "40: Flapped epoch 9 times 5\n89: Refreshed epoch 9 times 5\n\
                   91: Updated, Refreshed epoch 10 times 5\n99: Resolved epoch 11 times 5\n";
        assert!(told.ends_with(end), "{told}");
    }

    #[test]
    fn what_eases_to_info_is_over() {
        let told = play(&[(0, Warning, Began), (10, Info, Eased), (20, Info, Evidence), (30, Warning, Worsened)]);
        assert!(
            told.contains("10: Resolved") && told.contains("20: Nothing") && told.contains("30: Reopened"),
            "{told}"
        );
    }

    #[test]
    fn the_proof_outlives_the_fault() {
        let (mut incident, _) =
            Incident::opened("I".into(), &finding(3, Warning, Began), Sight { epoch: None, at: at(3) }, at(3));
        incident.hear(&finding(9, Warning, Cleared), Sight { epoch: None, at: at(9) }, &FLAPPING, at(9));
        assert_eq!((incident.row().evidence.as_str(), incident.row().summary.as_str()), (r#"{"at":3}"#, "seen at 9"));
    }

    #[test]
    fn history_of_another_life_changes_nothing() {
        let epoch = |name: char| Epoch::try_from(name.to_string().repeat(26)).ok();
        let (mut incident, _) =
            Incident::opened("I".into(), &finding(50, Warning, Began), Sight { epoch: epoch('B'), at: at(50) }, at(50));
        incident.hear(&finding(60, Warning, Cleared), Sight { epoch: epoch('B'), at: at(60) }, &FLAPPING, at(60));
        // The older buffer is drained late: its beginning was over long ago.
        let late =
            incident.hear(&finding(40, Critical, Began), Sight { epoch: epoch('A'), at: at(40) }, &FLAPPING, at(70));
        assert!(matches!(late, Heard::Nothing), "{late:?}");
        // The same life is in order whatever the agent's clock says.
        let stepped =
            incident.hear(&finding(10, Warning, Began), Sight { epoch: epoch('B'), at: at(10) }, &FLAPPING, at(70));
        assert!(matches!(stepped, Heard::Changed(_)), "{stepped:?}");
    }

    #[test]
    fn news_held_back_survives_a_restart() {
        let (mut incident, _) =
            Incident::opened("I".into(), &finding(0, Warning, Began), Sight { epoch: None, at: at(0) }, at(0));
        incident.hear(&finding(5, Warning, Evidence), Sight { epoch: None, at: at(5) }, &FLAPPING, at(5));
        let mut again = Incident::loaded(incident.row().clone());
        assert!(again.release(at(59)).is_none());
        let change = again.release(at(60)).expect("its time has come");
        assert_eq!((change.kind, change.incident.evidence.as_str()), (ChangeKind::Updated, r#"{"at":5}"#));
        assert!(again.release(at(200)).is_none());
    }
}
