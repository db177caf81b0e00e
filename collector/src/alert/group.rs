//! Incidents that are told together: which group one is gathered in, and when that is told. Alertmanager's words and meaning.
//!
//! What is decided for a receiver by a route that groups waits for the next message of its group. The first message of a group
//! comes `group_wait` after its first incident, the next ones `group_interval` after the one before. A group of which
//! nothing new is known is told again after `repeat_interval`, as long as something of it fires.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tickbird_shared::{Fingerprint, Severity, Timestamp};

use super::by_receiver::ByReceiver;
use super::route::Facts;
use super::{IncidentKey, Kind, Route};
use crate::store::{DecisionRow, GroupRow, IncidentRow};

/// Groups that are looked at in one turn at most: some 20 ms of the ledger where each is of one incident.
pub(super) const AT_ONCE: usize = 500;
/// What waits for a receiver that is in no configuration is kept for so long, as a message would be.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// What fell due while nobody served for longer than this
const DOWN: Duration = Duration::from_secs(60);
/// waits so long at most for agents to say what is over.
const SETTLING: Duration = Duration::from_secs(10);

/// How a route groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grouping {
    /// Incidents of one group have the same values of these labels.
    pub by: By,
    /// From the first incident of a group to its first message.
    pub wait: Duration,
    /// From one message of a group to the next with something new, at least.
    pub interval: Duration,
    /// From one message to the next with nothing new, while something fires: by the highest severity of it.
    pub repeat: BTreeMap<Severity, Duration>,
}

/// What a route groups by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// These labels; without one the whole route is one group.
    Labels(Vec<String>),
    /// Each incident by itself: `["..."]`.
    Each,
}

impl Grouping {
    /// `group_wait` where a route that groups names none.
    pub const WAIT: Duration = Duration::from_secs(30);
    /// `group_interval`.
    pub const INTERVAL: Duration = Duration::from_secs(5 * 60);
    /// `repeat_interval`.
    pub const REPEAT: Duration = Duration::from_secs(4 * 3600);

    fn repeat(&self, severity: Severity) -> Duration {
        self.repeat.get(&severity).copied().unwrap_or(Self::REPEAT)
    }

    /// The values by which an incident is grouped.
    fn labels(&self, incident: &IncidentRow, facts: &Facts) -> BTreeMap<String, String> {
        match &self.by {
            By::Each => BTreeMap::from([("incident".into(), incident.id.clone())]),
            By::Labels(names) => {
                let of = |name: &String| (name.clone(), facts.get(name).cloned().unwrap_or_default());
                names.iter().map(of).collect()
            }
        }
    }
}

/// One incident within a group, and what is to be said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gathered {
    pub(super) kind: Kind,
    pub(super) fingerprint: Option<Fingerprint>,
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) row: GroupRow,
    /// Its id: fifty thousand incidents may point to it.
    pub(super) id: Arc<str>,
    /// As its route says now; none when there is no such route any more: what waits is told at once, and nothing again.
    grouping: Option<Grouping>,
    /// What waits for the next message.
    pub(super) gathered: BTreeMap<String, Gathered>,
    /// What was told to fire, and not yet to be over.
    pub(super) firing: BTreeMap<String, Option<Fingerprint>>,
    /// When it is told again, as far as is known.
    repeat_at: Option<Timestamp>,
}

impl Group {
    fn new(row: GroupRow, grouping: Option<Grouping>) -> Self {
        let id = row.id.as_str().into();
        Self { row, id, grouping, gathered: BTreeMap::new(), firing: BTreeMap::new(), repeat_at: None }
    }

    /// Nothing of it fires or waits.
    pub(super) fn is_over(&self) -> bool {
        self.gathered.is_empty() && self.firing.is_empty()
    }

    /// Incidents in it.
    fn len(&self) -> usize {
        self.gathered.len() + self.firing.len()
    }

    /// Whether something of it has to be looked at now. What waits for longer than it may was put off by a clock that was ahead.
    fn is_due(&self, is_configured: bool, now: Timestamp) -> bool {
        if self.is_over() {
            return true;
        }
        if !is_configured {
            return !self.gathered.is_empty() && self.row.due_at.is_none_or(|due| later(due, KEPT) <= now);
        }
        let Some(grouping) = &self.grouping else { return !self.gathered.is_empty() };
        if !self.gathered.is_empty() {
            let longest = later(now, grouping.wait.max(grouping.interval));
            return self.row.due_at.is_none_or(|due| due <= now || due > longest);
        }
        let longest = grouping.repeat.values().max().copied().unwrap_or_default().max(grouping.interval);
        self.repeat_at.is_none_or(|at| at <= now || at > later(now, longest))
    }

    /// Something waits from now on: the next message has an id, and a time.
    fn begin(&mut self, message: impl FnOnce() -> String, now: Timestamp) {
        let (wait, interval) =
            self.grouping.as_ref().map_or((Duration::ZERO, Duration::ZERO), |it| (it.wait, it.interval));
        let first = later(now, wait);
        let due = match self.row.told_at {
            // Not later than that, whatever the clock said then.
            Some(at) => first.max(later(at, interval)).min(later(now, interval.max(wait))),
            None => first,
        };
        self.row.due_at = Some(due);
        self.row.message = Some(message());
    }

    /// A message of it is queued, or there was nothing to say; `highest` is the severity of what fires, and something else of it may be
    /// held back.
    pub(super) fn told(&mut self, is_queued: bool, highest: Option<Severity>, holds_back: bool, now: Timestamp) {
        self.row.message = None;
        self.row.due_at = None;
        if is_queued {
            self.row.told_at = Some(now);
        }
        self.schedule(highest, holds_back, now);
    }

    /// When it is told again. Of what is held back now, something may be told again sooner: it is looked at anew after an interval.
    fn schedule(&mut self, highest: Option<Severity>, holds_back: bool, now: Timestamp) {
        let Some(grouping) = &self.grouping else { return };
        let anew = later(now, grouping.interval);
        let after = match highest {
            Some(severity) => self.row.told_at.map(|at| later(at, grouping.repeat(severity))),
            None => Some(anew),
        };
        self.repeat_at = if holds_back { after.map(|it| it.min(anew)) } else { after };
    }

    /// Whether it is told again may be otherwise now.
    pub(super) const fn look_again(&mut self) {
        self.repeat_at = None;
    }

    /// Whether the repeat's time has come, given the severity of what fires.
    pub(super) fn repeats(&mut self, highest: Option<Severity>, holds_back: bool, now: Timestamp) -> bool {
        let Some(grouping) = &self.grouping else { return false };
        // A clock that was ahead said so, or the row was lost.
        let told = self.row.told_at.unwrap_or(now).min(now);
        self.row.told_at = Some(told);
        let repeats = highest.is_some_and(|severity| later(told, grouping.repeat(severity)) <= now);
        if !repeats {
            self.schedule(highest, holds_back, now);
        }
        repeats
    }
}

/// All groups, and what is in them.
#[derive(Debug, Default)]
pub(super) struct Groups {
    all: HashMap<IncidentKey, Group>,
    /// By tenant and incident, the group in which something waits for each receiver.
    waiting: HashMap<IncidentKey, ByReceiver<Arc<str>>>,
}

impl Groups {
    /// As stored: all groups, what waits in them, and who was told with one that an incident fires.
    pub(super) fn load(
        rows: Vec<GroupRow>,
        gathered: &[DecisionRow],
        told: &[(IncidentKey, Arc<str>)],
        fingerprints: &HashMap<IncidentKey, Fingerprint>,
        top: Option<&Route>,
        now: Timestamp,
    ) -> Self {
        let mut groups = Self::default();
        for mut row in rows {
            let grouping = grouping_of(top, &row);
            let is_long_due = row.due_at.is_some_and(|due| later(due, DOWN) < now);
            if let Some(grouping) = grouping.as_ref().filter(|_| is_long_due) {
                row.due_at = Some(later(now, grouping.wait.min(SETTLING)));
            }
            groups.all.insert((row.tenant.clone(), row.id.clone()), Group::new(row, grouping));
        }
        for row in gathered {
            let (Some(id), Some(kind)) = (&row.in_group, Kind::named(&row.kind)) else { continue };
            let key = (row.tenant.clone(), row.incident.clone());
            // A group that was lost with its page is told at once.
            let group = groups.all.entry((row.tenant.clone(), id.clone())).or_insert_with(|| {
                let (message, none) = (row.message.clone(), None);
                let (tenant, receiver) = (row.tenant.clone(), row.receiver.clone());
                let (route, labels) = (String::new(), BTreeMap::new());
                Group::new(
                    GroupRow { tenant, id: id.clone(), receiver, route, labels, message, due_at: none, told_at: none },
                    None,
                )
            });
            let fingerprint = fingerprints.get(&key).copied();
            group.gathered.insert(row.incident.clone(), Gathered { kind, fingerprint });
            groups.waiting.entry(key).or_default().insert(&row.receiver, group.id.clone());
        }
        for (incident, group) in told {
            if let Some(group) = groups.all.get_mut(&(incident.0.clone(), String::from(&**group))) {
                group.firing.insert(incident.1.clone(), fingerprints.get(incident).copied());
            }
        }
        groups
    }

    /// The id of the group of an incident for the receiver of a route.
    pub(super) fn id_of(route: &Route, grouping: &Grouping, incident: &IncidentRow, facts: &Facts) -> String {
        name(&incident.tenant, &route.receiver, &route.path, &grouping.labels(incident, facts))
    }

    pub(super) fn has(&self, tenant: &str, id: &str) -> bool {
        self.all.contains_key(&(tenant.to_owned(), id.to_owned()))
    }

    /// The group in which something of an incident waits for a receiver.
    pub(super) fn waits_in(&self, key: &IncidentKey, receiver: &str) -> Option<String> {
        self.waiting.get(key)?.get(receiver).map(ToString::to_string)
    }

    /// What of an incident waits for a receiver.
    pub(super) fn gathered(&self, key: &IncidentKey, receiver: &str) -> Option<Kind> {
        let group = self.waiting.get(key)?.get(receiver)?;
        self.all.get(&(key.0.clone(), group.to_string()))?.gathered.get(&key.1).map(|it| it.kind)
    }

    /// The group of an incident for the receiver of a route, made if there is none.
    pub(super) fn of(&mut self, route: &Route, grouping: &Grouping, incident: &IncidentRow, facts: &Facts) -> String {
        let labels = grouping.labels(incident, facts);
        let id = name(&incident.tenant, &route.receiver, &route.path, &labels);
        let (tenant, receiver, path) = (incident.tenant.clone(), route.receiver.clone(), route.path.clone());
        match self.all.entry((tenant.clone(), id.clone())) {
            Entry::Vacant(place) => {
                let (message, due_at, told_at) = (None, None, None);
                let row = GroupRow { tenant, id: id.clone(), receiver, route: path, labels, message, due_at, told_at };
                place.insert(Group::new(row, Some(grouping.clone())));
            }
            Entry::Occupied(mut place) => {
                // One whose row was lost is whole again.
                let group = place.get_mut();
                if group.grouping.is_none() {
                    (group.row.route, group.row.labels, group.grouping) = (path, labels, Some(grouping.clone()));
                }
            }
        }
        id
    }

    /// Lets something wait for the next message of a group; its id, and the row of the group where that changed.
    pub(super) fn gather(
        &mut self,
        incident: &IncidentRow,
        id: &str,
        (kind, latest): (Kind, Option<Timestamp>),
        message: impl FnOnce() -> String,
        now: Timestamp,
    ) -> Option<(String, Option<GroupRow>)> {
        let group = self.all.get_mut(&(incident.tenant.clone(), id.to_owned()))?;
        let begins = group.gathered.is_empty() || group.row.message.is_none();
        if begins {
            group.begin(message, now);
        }
        let hurries = latest.is_some_and(|latest| group.row.due_at.is_none_or(|due| due > latest));
        if hurries {
            group.row.due_at = latest;
        }
        group.gathered.insert(incident.id.clone(), Gathered { kind, fingerprint: Some(incident.fingerprint) });
        let waiting = self.waiting.entry((incident.tenant.clone(), incident.id.clone())).or_default();
        waiting.insert(&group.row.receiver, group.id.clone());
        Some((group.row.message.clone()?, (begins || hurries).then(|| group.row.clone())))
    }

    /// What waits for a receiver does so no more, unless it waits in that group; true when it did.
    pub(super) fn leave(&mut self, key: &IncidentKey, receiver: &str, unless: Option<&str>) -> bool {
        let Some(waiting) = self.waiting.get_mut(key) else { return false };
        let Some(group) = waiting.get(receiver).filter(|it| Some(&***it) != unless).cloned() else { return false };
        waiting.remove(receiver);
        if waiting.is_empty() {
            self.waiting.remove(key);
        }
        if let Some(group) = self.all.get_mut(&(key.0.clone(), group.to_string())) {
            group.gathered.remove(&key.1);
        }
        true
    }

    /// An incident is none of those any more that a group was told to fire.
    pub(super) fn forget(&mut self, key: &IncidentKey, id: &str) {
        if let Some(group) = self.all.get_mut(&(key.0.clone(), id.to_owned())) {
            group.firing.remove(&key.1);
        }
    }

    /// Those that have to be looked at now: news before everything else, and the longest due first; not all of them at once.
    pub(super) fn due(&self, is_configured: impl Fn(&str) -> bool, now: Timestamp) -> Vec<IncidentKey> {
        let is_due = |it: &Group| it.is_due(is_configured(&it.row.receiver), now);
        let order = |it: &Group| (it.gathered.is_empty(), it.row.due_at);
        let mut due: Vec<_> = self.all.iter().filter(|(_, it)| is_due(it)).map(|(key, it)| (order(it), key)).collect();
        due.sort_unstable();
        due.into_iter().take(AT_ONCE).map(|(_, key)| key.clone()).collect()
    }

    /// How many incidents are in a group.
    pub(super) fn len(&self, key: &IncidentKey) -> usize {
        self.all.get(key).map_or(0, Group::len)
    }

    /// What fires in a group may be told again now, though nothing of it is new: something does not hold back any more.
    pub(super) fn look_again(&mut self) {
        self.all.values_mut().for_each(Group::look_again);
    }

    pub(super) fn get_mut(&mut self, key: &IncidentKey) -> Option<&mut Group> {
        self.all.get_mut(key)
    }

    /// Takes out what waits in a group.
    pub(super) fn take_gathered(&mut self, key: &IncidentKey) -> BTreeMap<String, Gathered> {
        let Some(group) = self.all.get_mut(key) else { return BTreeMap::new() };
        let gathered = std::mem::take(&mut group.gathered);
        for incident in gathered.keys() {
            let place = (key.0.clone(), incident.clone());
            if let Some(waiting) = self.waiting.get_mut(&place) {
                waiting.remove(&group.row.receiver);
                if waiting.is_empty() {
                    self.waiting.remove(&place);
                }
            }
        }
        gathered
    }

    pub(super) fn remove(&mut self, key: &IncidentKey) {
        self.all.remove(key);
    }
}

/// How the route groups that made a group, if it is still there and leads to the same receiver.
fn grouping_of(top: Option<&Route>, row: &GroupRow) -> Option<Grouping> {
    let all = top?.all();
    let of_step = all.iter().find_map(|it| it.grouping_of_step(&row.route, &row.receiver));
    if of_step.is_some() {
        return of_step.cloned();
    }
    let mut of_receiver = all.iter().filter(|it| it.receiver == row.receiver);
    match of_receiver.clone().find(|it| it.path == row.route) {
        Some(route) => route.grouping.clone(),
        // Somebody changed its matchers: what fires goes on being told again as its receiver is told of others.
        None => of_receiver.find_map(|it| it.grouping.clone()),
    }
}

impl Route {
    /// The labels by which an incident is in the group of an id, as this route and those below it group now; none where none of them
    /// leads it there.
    pub(super) fn labels_of_group(
        &self,
        id: &str,
        incident: &IncidentRow,
        facts: &Facts,
    ) -> Option<BTreeMap<String, String>> {
        let routes = self.all();
        // It may have been told when it was worse, or not as bad.
        [Severity::Info, Severity::Warning, Severity::Critical].into_iter().find_map(|severity| {
            let mut facts = facts.clone();
            facts.insert("severity".into(), severity.as_str().into());
            routes.iter().find_map(|route| {
                let labels = route.grouping.as_ref()?.labels(incident, &facts);
                let is = |receiver: &str, path: &str| name(&incident.tenant, receiver, path, &labels) == id;
                let of_step = || route.escalate.iter().any(|it| is(&it.receiver, &route.path_of_steps()));
                (is(&route.receiver, &route.path) || of_step()).then_some(labels)
            })
        })
    }
}

/// The same for the same receiver, route and labels, so that it is one thread to whoever is told, also when a group begins anew.
fn name(tenant: &str, receiver: &str, path: &str, labels: &BTreeMap<String, String>) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    };
    [tenant, receiver, path].into_iter().for_each(&mut add);
    for (label, value) in labels {
        add(label);
        add(value);
    }
    let mut id = String::with_capacity(36);
    id.push_str("grp_");
    for byte in &hash.finalize()[..16] {
        id.extend([byte >> 4, byte & 15].map(|it| char::from_digit(it.into(), 16).unwrap_or_default()));
    }
    id
}

fn later(than: Timestamp, by: Duration) -> Timestamp {
    than.saturating_add(by).unwrap_or(Timestamp::MAX)
}

/// Counts what there is of each check, in words: `5 pool.exhausted of pool:shop, 2 http.status of 2 targets`.
pub(super) fn in_words<'a>(rows: impl Iterator<Item = &'a IncidentRow>) -> String {
    /// Checks that are named.
    const NAMED: usize = 3;
    let mut checks: BTreeMap<&str, (usize, BTreeSet<&str>)> = BTreeMap::new();
    for row in rows {
        let (count, targets) = checks.entry(&row.check).or_default();
        *count += 1;
        targets.insert(&row.target);
    }
    let mut checks: Vec<_> = checks.into_iter().collect();
    checks.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
    let word = |(check, (count, targets)): &(&str, (usize, BTreeSet<&str>))| match targets.first() {
        Some(target) if targets.len() == 1 => format!("{count} {check} of {target}"),
        _ => format!("{count} {check} of {} targets", targets.len()),
    };
    let mut words: Vec<_> = checks.iter().take(NAMED).map(word).collect();
    if checks.len() > NAMED {
        let rest: usize = checks[NAMED..].iter().map(|(_, (count, _))| count).sum();
        words.push(format!("{rest} of {} other checks", checks.len() - NAMED));
    }
    words.join(", ")
}
