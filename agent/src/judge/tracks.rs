//! Every check on every target: its state, what was last seen of it, and the findings that its changes make.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::value::RawValue;
use tickbird_shared::protocol::{MAX_FIRING, MAX_KEY_BYTES, MAX_TEXT_BYTES};
use tickbird_shared::{Change, Finding, Fingerprint, Severity, Status};

use super::defaults::{CheckId, FalseAlarm};
use super::evidence::{self, Case};
use super::hold::{Holds, Level, Step};
use super::settings::Thresholds;
use super::threshold::{Bounds, Direction, Seen, Sight};
use super::{CheckState, Moment, State, Who, words};
use crate::discover::{End, TargetKey};
use crate::inspect::{Reason, Unit, Value};

/// Most checks on targets that are kept; a host with more is told by `tickbird-agent doctor`.
const MAX_TRACKS: usize = 8_192;
/// Between two tellings of the same fault's evidence, the first time; it doubles with each.
const EVIDENCE_GAP: Duration = Duration::from_secs(10);
/// The longest such gap.
const LONGEST_GAP: Duration = Duration::from_secs(600);

/// One check on one target.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) check: CheckId,
    pub(super) target: TargetKey,
    pub(super) sub_key: Option<Arc<str>>,
}

/// Where a pool's target lives: its absence is judged by them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// `<application>/<role>`.
    pub(super) who: Arc<str>,
    /// The pool's remote end.
    pub(super) remote: End,
}

/// By what a value is judged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    pub(super) bounds: Bounds,
    pub(super) holds: Holds,
    pub(super) unit: Unit,
}

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) check: CheckId,
    pub(super) target: &'a TargetKey,
    pub(super) sub_key: Option<&'a str>,
    pub(super) place: Option<&'a Place>,
}

impl<'a> Subject<'a> {
    pub(super) const fn of(check: CheckId, target: &'a TargetKey) -> Self {
        Self { check, target, sub_key: None, place: None }
    }
}

/// What a track says for a list of all that fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It fires, or certainly does not.
    Settled,
    /// It does not fire, and has not been seen often enough to say that nothing is wrong.
    Open,
    /// It cannot be seen: it says nothing of other targets that were there before, either.
    Unseen,
}

/// The offence as it was last seen over a bound.
#[derive(Debug, Clone)]
struct Offence {
    summary: String,
    evidence: Box<RawValue>,
    members: Vec<u64>,
    advice: Option<String>,
}

/// State of one check on one target.
#[derive(Debug, Clone)]
pub(super) struct Track {
    pub(super) level: Level,
    pub(super) value: Value,
    pub(super) place: Option<Place>,
    pub(super) seen_at: Duration,
    rule: Rule,
    words: Option<String>,
    offence: Option<Offence>,
    /// When the fault began that fires or waits.
    since: Option<Timestamp>,
    observed_at: Timestamp,
    reason: String,
    change: Change,
    told_at: Duration,
    told_members: Vec<u64>,
    updates: u32,
    looks: u64,
    looks_known: u64,
}

/// All of them, and the findings not yet taken.
#[derive(Debug)]
pub(super) struct Tracks {
    who: Who,
    thresholds: Thresholds,
    ignores_holds: bool,
    all: BTreeMap<Key, Track>,
    found: Vec<Finding<'static>>,
    firing: usize,
}

impl Tracks {
    pub(super) fn new(who: Who, thresholds: Thresholds) -> Self {
        Self { who, thresholds, ignores_holds: false, all: BTreeMap::new(), found: Vec::new(), firing: 0 }
    }

    pub(super) fn ignore_holds(&mut self) {
        self.ignores_holds = true;
    }

    pub(super) const fn ignores_holds(&self) -> bool {
        self.ignores_holds
    }

    pub(super) const fn thresholds(&self) -> &Thresholds {
        &self.thresholds
    }

    /// The findings since the last call.
    pub(super) fn take(&mut self) -> Vec<Finding<'static>> {
        std::mem::take(&mut self.found)
    }

    /// By what a check's values are judged.
    pub(super) fn rule(&self, check: CheckId) -> Rule {
        let it = self.thresholds.of(check);
        Rule { bounds: it.bounds, holds: it.holds, unit: it.unit }
    }

    /// The tracks of one check.
    pub(super) fn of(&self, check: CheckId) -> impl Iterator<Item = (&Key, &Track)> {
        self.all.iter().filter(move |(key, _)| key.check == check)
    }

    /// Every track.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &Track)> {
        self.all.iter()
    }

    /// Takes one look in. `case` is asked for while a bound is crossed or the fault has not cleared.
    pub(super) fn observe(&mut self, subject: Subject<'_>, seen: Seen, now: Moment, case: impl FnOnce() -> Case) {
        let rule = self.rule(subject.check);
        self.observe_by(rule, subject, seen, now, case);
    }

    /// The same, by another rule than the check's own.
    pub(super) fn observe_by(
        &mut self,
        mut rule: Rule,
        subject: Subject<'_>,
        seen: Seen,
        now: Moment,
        case: impl FnOnce() -> Case,
    ) {
        let Subject { check, target, sub_key, place } = subject;
        if !self.thresholds.of(check).enabled || target.as_str().len() > MAX_KEY_BYTES {
            return;
        }
        if self.ignores_holds {
            rule.holds = Holds::NONE;
        }
        let key = Key { check, target: target.clone(), sub_key: sub_key.map(Arc::from) };
        if !self.all.contains_key(&key) && self.all.len() >= MAX_TRACKS {
            return;
        }
        let is_risky = check.check().false_alarm > FalseAlarm::Low && !seen.corroborated;
        let most = if is_risky { Severity::Warning } else { Severity::Critical };
        let sight = rule.bounds.sight(&seen, most);
        let track = self.all.entry(key.clone()).or_insert_with(|| Track::new(rule, now));
        track.saw(sight, seen, rule, place, now);
        let step = track.level.look(sight, &rule.holds, now.mono);
        let is_offence = sight.over().is_some()
            || track.level.firing().is_some() && matches!(sight, Sight::Known { stays: Some(_), .. });
        if is_offence {
            track.remember(case(), now);
        } else if track.level.firing().is_none() && !matches!(step, Step::Cleared(_)) && !matches!(sight, Sight::NotYet)
        {
            (track.offence, track.since) = (None, None);
        }
        if matches!(step, Step::Began(_)) {
            if self.firing >= MAX_FIRING {
                // Beyond what the collector takes of one agent: it waits until another one has cleared.
                track.level.end();
                return;
            }
            self.firing += 1;
        }
        if matches!(step, Step::Cleared(_)) {
            self.firing -= 1;
        }
        let Some((change, severity)) = track.decide(step, sight, now) else { return };
        let finding = track.finding(&self.who, &key, change, severity, now.wall);
        if change == Change::Cleared {
            (track.offence, track.since) = (None, None);
        }
        self.found.push(finding);
    }

    /// What is there of targets that are not seen any more: those for which `is_gone` holds end, and are told if they
    /// fired.
    pub(super) fn end(&mut self, reason: &str, now: Moment, mut is_gone: impl FnMut(&Key, &Track) -> bool) {
        let (who, found, firing) = (&self.who, &mut self.found, &mut self.firing);
        self.all.retain(|key, track| {
            if !is_gone(key, track) {
                return true;
            }
            if let Some(severity) = track.level.end() {
                *firing -= 1;
                track.reason = reason.to_owned();
                found.push(track.finding(who, key, Change::TargetGone, severity, now.wall));
            }
            false
        });
    }

    /// A source is not readable any more: what was judged by it is not seen, which is not the same as gone.
    pub(super) fn lose(&mut self, reason: &Reason, now: Moment, is_lost: impl Fn(&Key, &Track) -> bool) {
        let lost = self.all.iter().filter(|(key, track)| key.sub_key.is_none() && is_lost(key, track));
        let lost: Vec<_> = lost.map(|(key, track)| (key.check, key.target.clone(), track.place.clone())).collect();
        for (check, target, place) in lost {
            let subject = Subject { place: place.as_ref(), ..Subject::of(check, &target) };
            self.observe(subject, Seen::value(Value::Unknown(reason.clone())), now, Case::default);
        }
    }

    /// The target is there, though this check had nothing to look at.
    pub(super) fn keep(&mut self, now: Moment, is_there: impl Fn(&Key, &Track) -> bool) {
        for (key, track) in &mut self.all {
            if is_there(key, track) {
                track.seen_at = now.mono;
            }
        }
    }

    /// Judges by other thresholds from now on. Checks that were switched off end.
    pub(super) fn reconfigure(&mut self, thresholds: Thresholds, now: Moment) {
        self.thresholds = thresholds;
        let off: Vec<_> = CheckId::all().filter(|it| !self.thresholds.of(*it).enabled).collect();
        self.end("the check was switched off", now, |key, _| off.contains(&key.check));
    }

    /// What fires now, as findings with their last evidence.
    pub(super) fn firing(&self) -> Vec<Finding<'static>> {
        let fires = |(key, track): (&Key, &Track)| {
            let severity = track.level.firing()?;
            Some(track.finding(&self.who, key, track.change, severity, track.observed_at))
        };
        self.all.iter().filter_map(fires).collect()
    }

    /// Fingerprints of what fires.
    pub(super) fn fingerprints(&self) -> Vec<Fingerprint> {
        let firing = self.all.iter().filter(|(_, track)| track.level.firing().is_some());
        firing.map(|(key, _)| key.fingerprint(&self.who)).collect()
    }

    pub(super) fn fingerprint(&self, key: &Key) -> Fingerprint {
        key.fingerprint(&self.who)
    }

    pub(super) fn states(&self) -> Vec<CheckState> {
        self.all.iter().map(|(key, track)| track.state(key, self.thresholds.of(key.check).holds)).collect()
    }
}

impl Key {
    fn fingerprint(&self, who: &Who) -> Fingerprint {
        let id = self.check.check().id;
        Fingerprint::of(&who.tenant, &who.agent, id, self.target.as_str(), self.sub_key.as_deref())
    }
}

impl Track {
    fn new(rule: Rule, now: Moment) -> Self {
        Self {
            level: Level::default(),
            value: Value::Unknown(Reason::NotYet("not looked at yet")),
            place: None,
            seen_at: now.mono,
            rule,
            words: None,
            offence: None,
            since: None,
            observed_at: now.wall,
            reason: String::new(),
            change: Change::Began,
            told_at: now.mono,
            told_members: Vec::new(),
            updates: 0,
            looks: 0,
            looks_known: 0,
        }
    }

    fn saw(&mut self, sight: Sight, seen: Seen, rule: Rule, place: Option<&Place>, now: Moment) {
        self.looks += 1;
        self.looks_known += u64::from(matches!(sight, Sight::Known { .. }));
        (self.value, self.words, self.rule) = (seen.value, seen.words, rule);
        (self.seen_at, self.observed_at) = (now.mono, now.wall);
        if self.place.as_ref() != place {
            self.place = place.cloned();
        }
    }

    fn remember(&mut self, case: Case, now: Moment) {
        let age = case.age_seconds.and_then(|it| SignedDuration::try_from_secs_f64(it).ok()).unwrap_or_default();
        // A wall clock that cannot go back that far says when it was seen.
        self.since.get_or_insert_with(|| now.wall.checked_sub(age).unwrap_or(now.wall));
        let mut evidence = case.evidence;
        if self.rule.bounds.direction != Direction::Event {
            evidence.insert("bounds".to_owned(), evidence::bounds(self.rule.bounds, self.rule.unit));
        }
        self.offence = Some(Offence {
            summary: words::cut(case.summary, MAX_TEXT_BYTES / 2),
            evidence: evidence::bounded(evidence),
            members: case.members,
            advice: case.advice,
        });
    }

    /// Whether the step is worth a finding, and with which reason.
    fn decide(&mut self, step: Step, sight: Sight, now: Moment) -> Option<(Change, Severity)> {
        let (change, severity) = match step {
            Step::Began(it) => (Change::Began, it),
            Step::Worsened(it) => (Change::Worsened, it),
            Step::Eased(it) => (Change::Eased, it),
            Step::Cleared(it) => (Change::Cleared, it),
            Step::Lost => (Change::EvidenceLost, self.level.firing()?),
            Step::Back => (Change::EvidenceBack, self.level.firing()?),
            Step::None => {
                let is_seen = sight.over().is_some() || matches!(sight, Sight::Known { .. });
                let firing = self.level.firing().filter(|_| is_seen && self.has_news(now))?;
                (Change::Evidence, firing)
            }
        };
        self.reason = match change {
            Change::Began | Change::Worsened => self.why_over(severity),
            Change::Eased | Change::Cleared => self.why_back(),
            Change::EvidenceLost => format!("{}: the last evidence stands", self.shown()),
            Change::EvidenceBack => format!("seen again: {}", self.shown()),
            Change::Evidence | Change::TargetGone => {
                let now = self.offence.as_ref().map_or(0, |it| it.members.len());
                format!("others offend now: {} were told, {now} are there", self.told_members.len())
            }
        };
        self.updates = if change == Change::Evidence { self.updates + 1 } else { 0 };
        self.told_at = now.mono;
        self.told_members = self.offence.as_ref().map(|it| it.members.clone()).unwrap_or_default();
        self.change = change;
        Some((change, severity))
    }

    /// Whether a quarter of the offenders are others than were told, and enough time has passed.
    fn has_news(&self, now: Moment) -> bool {
        let Some(offence) = &self.offence else { return false };
        let gap = EVIDENCE_GAP.saturating_mul(1 << self.updates.min(6)).min(LONGEST_GAP);
        if now.mono.saturating_sub(self.told_at) < gap {
            return false;
        }
        let (told, there) = (&self.told_members, &offence.members);
        let came = there.iter().filter(|it| told.binary_search(it).is_err()).count();
        let left = told.iter().filter(|it| there.binary_search(it).is_err()).count();
        came + left > 0 && (came + left) * 4 >= told.len()
    }

    fn shown(&self) -> String {
        self.words.clone().unwrap_or_else(|| words::value(&self.value, self.rule.unit))
    }

    fn why_over(&self, severity: Severity) -> String {
        let Rule { bounds, holds, unit } = self.rule;
        let held = self.level.held(severity, holds.of(severity));
        let shown = self.shown();
        let Some(bound) = bounds.of(severity).filter(|_| bounds.direction != Direction::Event && self.words.is_none())
        else {
            return if self.words.is_some() { format!("{shown}, {held}") } else { format!("it is so, {held}") };
        };
        let bound = words::number(bound, unit);
        let certain = if matches!(self.value, Value::Between(..)) { "at its certain end " } else { "" };
        match bounds.direction {
            Direction::Below => format!("{shown} is {certain}under {bound} {held}"),
            _ if shown == bound => format!("{shown} has reached {bound} {held}"),
            _ => format!("{shown} is {certain}over {bound} {held}"),
        }
    }

    fn why_back(&self) -> String {
        let Rule { bounds, holds, unit } = self.rule;
        let looks = words::counted(holds.clearing as usize, "look");
        let left = match self.level.firing() {
            Some(Severity::Warning | Severity::Critical) => bounds.critical,
            Some(Severity::Info) => bounds.warning.or(bounds.critical),
            None => bounds.info.or(bounds.warning).or(bounds.critical),
        };
        let Some(bound) = left.filter(|_| bounds.direction != Direction::Event) else {
            return format!("not so any more for {looks}");
        };
        let side = if bounds.direction == Direction::Below { "over" } else { "under" };
        let (shown, clearing) = (self.shown(), words::number(bounds.clearing(bound), unit));
        format!("{shown} is {side} {clearing} for {looks}")
    }

    fn finding(&self, who: &Who, key: &Key, change: Change, severity: Severity, wall: Timestamp) -> Finding<'static> {
        let check = key.check.check();
        let ended = matches!(change, Change::Cleared | Change::TargetGone);
        let since = self.since.unwrap_or(wall);
        let offence = self.offence.as_ref();
        let was = offence.map_or_else(|| check.meaning.to_owned(), |it| it.summary.clone());
        let summary = if ended {
            let lasted = words::seconds(wall.duration_since(since).as_secs_f64().max(0.0));
            format!("over after {lasted}; it was: {was}")
        } else {
            was
        };
        let advice = offence.and_then(|it| it.advice.clone()).map_or(Cow::Borrowed(check.advice), Cow::Owned);
        Finding {
            fingerprint: key.fingerprint(who),
            check: check.id.into(),
            target: key.target.as_str().to_owned().into(),
            sub_key: key.sub_key.as_deref().map(|it| it.to_owned().into()),
            status: if ended { Status::Resolved } else { Status::Firing },
            severity,
            change,
            summary: words::cut(summary, MAX_TEXT_BYTES).into(),
            reason: words::cut(self.reason.clone(), MAX_TEXT_BYTES).into(),
            advice: (!ended).then_some(advice),
            evidence: Cow::Owned(offence.map_or_else(empty, |it| it.evidence.clone())),
            since,
            observed_at: wall,
        }
    }

    /// Whether the collector may conclude from this track that what does not fire is well.
    pub(super) fn standing(&self) -> Standing {
        let is_enough = self.looks_known >= u64::from(self.rule.holds.clearing);
        match self.value {
            _ if self.level.is_lost() || self.level.is_blind() => Standing::Unseen,
            _ if self.level.firing().is_some() => Standing::Settled,
            Value::Known(_) if is_enough && !self.level.is_pending() => Standing::Settled,
            Value::Known(_) | Value::Between(..) => Standing::Open,
            // What is not judged at all hides nothing; what is not known yet may.
            Value::Unknown(Reason::NotYet(why)) if why.starts_with(super::NOT_JUDGED) => Standing::Settled,
            Value::Unknown(_) => Standing::Unseen,
        }
    }

    fn state(&self, key: &Key, holds: Holds) -> CheckState {
        let state = match (self.level.firing(), &self.value) {
            (Some(severity), _) => State::from(severity),
            (None, Value::Known(_)) => State::Ok,
            (None, Value::Unknown(reason)) if reason.is_blind() => State::Blind,
            (None, Value::Between(..) | Value::Unknown(_)) => State::NotYet,
        };
        let check = key.check.check();
        let advice = match &self.value {
            Value::Unknown(reason) => reason.advice().map(str::to_owned),
            _ => self.offence.as_ref().map(|it| it.advice.clone().unwrap_or_else(|| check.advice.to_owned())),
        };
        CheckState {
            check: check.id,
            target: key.target.clone(),
            sub_key: key.sub_key.clone(),
            state,
            value: self.value.clone(),
            unit: self.rule.unit.as_str(),
            bounds: self.rule.bounds,
            since: self.since.filter(|_| self.level.firing().is_some()),
            pending: self.pending(holds),
            summary: self.offence.as_ref().map(|it| it.summary.clone()),
            reason: self.reason.clone(),
            advice,
            evidence: self.offence.as_ref().map(|it| it.evidence.clone()),
            observed_at: self.observed_at,
            looks: self.looks,
            looks_known: self.looks_known,
        }
    }

    /// What it waits for. `holds` are those of the table, also when holds are ignored.
    fn pending(&self, holds: Holds) -> Option<String> {
        if self.level.is_lost() {
            return Some(format!("fires on its last evidence; now {}", self.shown()));
        }
        let firing = self.level.firing();
        if self.rule.holds == Holds::NONE && holds != Holds::NONE {
            let hold = holds.of(firing?);
            let is_at_once = matches!(hold, super::Hold::Looks(1)) || hold == super::Hold::For(Duration::ZERO);
            return (!is_at_once).then(|| format!("over the bound now; fires after {hold}"));
        }
        let severity = self.level.pending()?;
        let hold = holds.of(severity);
        let held = self.level.held(severity, hold);
        Some(match firing {
            None => format!("over the bound {held}; fires after {hold}"),
            Some(_) => format!("over the bound of {severity} {held}; worsens after {hold}"),
        })
    }
}

fn empty() -> Box<RawValue> {
    RawValue::from_string("{}".to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}
