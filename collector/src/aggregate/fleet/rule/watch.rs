//! One rule over time: what is over a bound for the hold fires, what is not for the other hold is over. What cannot be said
//! for certain neither begins nor ends anything.
//!
//! Time is time in which the collector listened. A start begins every hold anew, a reload none; what fires goes on until it is known to
//! be over.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tickbird_shared::{Change, Severity, Timestamp};

use super::super::{GRACE, LOOK_EVERY, Outcome};
use super::evidence::{self, Seen, Top};
use super::group::Group;
use super::series::{Series, Source, Span};
use super::{BEYOND, Bounds, MAX_GROUPS, Rule, Side, fingerprint, labels_of, write_key};
use crate::store::IncidentRow;

/// After so long without a certain word, what fires is said to be out of sight.
const LOST: Duration = Duration::from_secs(30);
/// Evidence of what goes on firing is kept anew after this, and then ever less often.
const FIRST_REFRESH: Duration = Duration::from_secs(10);
const LAST_REFRESH: Duration = Duration::from_secs(600);

/// What a rule has seen.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Every group that had a value at the last look, or fires.
    groups: BTreeMap<String, Looks>,
    /// Since when there are not too many groups any more, of the tenants that were told of it.
    beyond: BTreeMap<String, Option<Duration>>,
    next: Duration,
}

/// What was seen of one group.
#[derive(Debug, Default)]
struct Looks {
    fires: Option<Severity>,
    since: Option<Timestamp>,
    /// Since when it is certainly over each bound, certainly not, and neither; since when nothing is there.
    over: [Option<Duration>; 2],
    under: [Option<Duration>; 2],
    open: Option<Duration>,
    absent: Option<Duration>,
    is_lost: bool,
    told: Option<Span>,
    /// When evidence is kept anew, and the wait before that.
    refresh: (Duration, Duration),
}

/// Where a value stands to a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stand {
    Over,
    Under,
    Open,
}

impl Bounds {
    /// Of a warning and of what is critical.
    const fn both(self) -> [Option<f64>; 2] {
        [self.warning, self.critical]
    }

    /// The one that is crossed first.
    pub(super) fn lowest(self) -> usize {
        usize::from(self.warning.is_none())
    }

    /// The bound of a severity.
    pub(super) fn of(self, severity: Severity) -> f64 {
        let wanted = if severity == Severity::Critical { self.critical } else { self.warning };
        wanted.or(self.warning).or(self.critical).unwrap_or_default()
    }
}

impl Side {
    fn stand(self, bound: f64, Span { low, high }: Span) -> Stand {
        let (is_over, is_under) = match self {
            Self::Above => (low > bound, high <= bound),
            Self::Below => (high < bound, low >= bound),
        };
        match (is_over, is_under) {
            (true, _) => Stand::Over,
            (false, true) => Stand::Under,
            (false, false) => Stand::Open,
        }
    }
}

/// What is to be said of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Fires(Change),
    Clears,
    Gone,
}

impl Watch {
    /// The first look of each rule has a second of its own.
    pub(super) fn at_place(place: usize) -> Self {
        let seconds = place as u64 % LOOK_EVERY.as_secs();
        Self { next: Duration::from_secs(seconds), ..Self::default() }
    }

    pub(super) fn is_due(&self, listened: Duration) -> bool {
        listened >= self.next
    }

    /// When it looks again.
    pub(super) const fn next_look(&self) -> Duration {
        self.next
    }

    /// Takes over what fired before a start; false when it is no group of this rule.
    pub(super) fn resume(&mut self, rule: &Rule, row: &IncidentRow) -> bool {
        if row.target == BEYOND {
            self.beyond.insert(row.tenant.clone(), None);
            return true;
        }
        let of_rule = |labels: &Vec<(String, String)>| labels.iter().map(|(name, _)| name).eq(&rule.by);
        if !labels_of(&row.target).as_ref().is_some_and(of_rule) {
            return false;
        }
        let refresh = (LAST_REFRESH, LAST_REFRESH);
        let (fires, since, is_lost) = (Some(row.severity), Some(row.since), row.evidence_lost);
        let looks = Looks { fires, since, is_lost, refresh, ..Looks::default() };
        self.groups.insert(format!("{}\0{}", row.tenant, row.target), looks);
        true
    }

    /// What fires, by tenant and target.
    pub(super) fn firing(&self) -> impl Iterator<Item = (&str, Severity)> {
        self.groups.iter().filter_map(|(key, looks)| Some((split(key).1, looks.fires?)))
    }

    /// Looks at everything.
    pub(super) fn look(
        &mut self,
        rule: &Rule,
        source: &dyn Source,
        now: Timestamp,
        listened: Duration,
    ) -> Vec<Outcome> {
        self.next = listened + LOOK_EVERY;
        let (groups, wholes, beyond) = self.add_up(rule, source);
        let mut words = Vec::new();
        self.groups.retain(|key, looks| {
            let group = &groups[key];
            let value = group.span(rule.aggregate);
            let whole = wholes.as_ref().and_then(|it| it.get(key)?.span(rule.aggregate));
            let judged = match (value, rule.of) {
                // Of what nobody tells of any more nothing is a share.
                (Some(value), Some(_)) => whole.map(|it| value.share_of(it)),
                (value, _) => value,
            };
            let before = looks.fires;
            if let Some(word) = looks.look(rule, judged, listened) {
                if before.is_none() {
                    let crossed = looks.over.iter().flatten().min().map_or(Duration::ZERO, |it| listened - *it);
                    looks.since = now.checked_sub(crossed).ok();
                }
                let severity = looks.fires.or(before).unwrap_or(Severity::Warning);
                let since = looks.since.unwrap_or(now);
                let seen =
                    Seen { value, whole, judged, severity, since, certain: group.certain, doubtful: group.doubtful };
                words.push((key.clone(), word, seen));
            }
            looks.fires.is_some() || !group.is_empty()
        });
        let mut outcomes = tell(rule, source, words, now);
        outcomes.extend(self.too_many(rule, &beyond, now, listened));
        outcomes
    }

    /// The groups of this look, what they are parts of, and by tenant how many values had no room.
    #[expect(clippy::type_complexity, reason = "three parts of one sum, taken apart at once")]
    fn add_up(
        &mut self,
        rule: &Rule,
        source: &dyn Source,
    ) -> (HashMap<String, Group>, Option<HashMap<String, Group>>, BTreeMap<String, u64>) {
        // Those that are known come first: what fires cannot lose its place.
        let mut groups: HashMap<String, Group> = self.groups.keys().map(|it| (it.clone(), Group::default())).collect();
        let mut of_tenant: BTreeMap<String, usize> = BTreeMap::new();
        groups.keys().for_each(|it| *of_tenant.entry(split(it).0.to_owned()).or_default() += 1);
        let (mut key, mut beyond) = (String::new(), BTreeMap::new());
        let with_servers = rule.names(super::series::SERVER);
        source.each(rule.measure, with_servers, &mut |series| {
            if !rule.takes(series) {
                return;
            }
            write_key(&mut key, &rule.by, series);
            if let Some(group) = groups.get_mut(&key) {
                group.add(rule.aggregate, series);
            } else if of_tenant.get(series.tenant()).is_none_or(|it| *it < MAX_GROUPS) {
                *of_tenant.entry(series.tenant().to_owned()).or_default() += 1;
                groups.entry(key.clone()).or_default().add(rule.aggregate, series);
                self.groups.insert(key.clone(), Looks::default());
            } else {
                *beyond.entry(series.tenant().to_owned()).or_default() += 1;
            }
        });
        let wholes = rule.of.map(|of| {
            let mut wholes: HashMap<String, Group> = HashMap::new();
            source.each(of, with_servers, &mut |series| {
                if !rule.takes(series) {
                    return;
                }
                write_key(&mut key, &rule.by, series);
                if let Some(whole) = wholes.get_mut(&key) {
                    whole.add(rule.aggregate, series);
                } else if groups.contains_key(&key) {
                    wholes.entry(key.clone()).or_default().add(rule.aggregate, series);
                }
            });
            wholes
        });
        (groups, wholes, beyond)
    }

    /// Tells of groups beyond the bound, and of the end of that.
    fn too_many(
        &mut self,
        rule: &Rule,
        beyond: &BTreeMap<String, u64>,
        now: Timestamp,
        listened: Duration,
    ) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for (tenant, values) in beyond {
            if self.beyond.insert(tenant.clone(), None).is_none() {
                outcomes.push(Outcome::Fires(Box::new(evidence::beyond(tenant, rule, *values, now))));
            }
        }
        self.beyond.retain(|tenant, within| {
            if beyond.contains_key(tenant) {
                return true;
            }
            let since = *within.get_or_insert(listened);
            let is_over = listened - since >= GRACE;
            if is_over {
                let reason = format!("at most {MAX_GROUPS} groups for {} s", GRACE.as_secs());
                outcomes.push(Outcome::Ends(fingerprint(tenant, rule, BEYOND), "cleared", reason));
            }
            !is_over
        });
        outcomes
    }
}

/// Makes findings of words. What is largest is sought only where something is told.
fn tell(rule: &Rule, source: &dyn Source, words: Vec<(String, Word, Seen)>, now: Timestamp) -> Vec<Outcome> {
    let told = words.iter().filter(|(_, word, _)| matches!(word, Word::Fires(_)));
    let mut tops: HashMap<&str, Top> = told.map(|(key, ..)| (key.as_str(), Top::of(rule))).collect();
    if !tops.is_empty() {
        let mut key = String::new();
        let mut add = |series: &Series<'_>| {
            if rule.takes(series) {
                write_key(&mut key, &rule.by, series);
                if let Some(top) = tops.get_mut(key.as_str()) {
                    top.add(series);
                }
            }
        };
        source.each(rule.measure, rule.names(super::series::SERVER), &mut add);
    }
    let outcome = |(key, word, seen): &(String, Word, Seen)| {
        let (tenant, target) = split(key);
        match word {
            Word::Fires(change) => {
                let top = tops.get(key.as_str());
                let finding = evidence::finding((tenant, target), rule, seen, top, *change, now);
                Outcome::Fires(Box::new(finding))
            }
            Word::Clears => Outcome::Ends(fingerprint(tenant, rule, target), "cleared", evidence::cleared(rule, seen)),
            Word::Gone => {
                let missing = rule.of.filter(|_| seen.value.is_some()).unwrap_or(rule.measure);
                let reason = format!("no agent has told of {} there for {} s", missing.as_str(), GRACE.as_secs());
                Outcome::Ends(fingerprint(tenant, rule, target), "target gone", reason)
            }
        }
    };
    words.iter().map(outcome).collect()
}

/// Tenant and target of a key.
fn split(key: &str) -> (&str, &str) {
    key.split_once('\0').unwrap_or(("", key))
}

impl Looks {
    fn look(&mut self, rule: &Rule, judged: Option<Span>, listened: Duration) -> Option<Word> {
        let Some(span) = judged else { return self.miss(listened) };
        self.absent = None;
        let stands = rule.bounds.both().map(|bound| bound.map(|it| rule.bounds.side.stand(it, span)));
        let since = |before: Option<Duration>, is_so: bool| is_so.then(|| before.unwrap_or(listened));
        for (at, stand) in stands.into_iter().enumerate() {
            self.over[at] = since(self.over[at], stand == Some(Stand::Over));
            // A bound that was taken out is crossed by nothing.
            self.under[at] = since(self.under[at], stand.is_none_or(|it| it == Stand::Under));
        }
        let lowest = rule.bounds.lowest();
        self.open = since(self.open, stands[lowest] == Some(Stand::Open));
        let held = |since: Option<Duration>, hold: Duration| since.is_some_and(|it| listened - it >= hold);
        let is_over = |at: usize| held(self.over[at], rule.hold);
        let is_under = |at: usize| held(self.under[at], rule.clear_hold);
        let before = self.fires;
        self.fires = match before {
            _ if is_over(1) => Some(Severity::Critical),
            Some(_) if is_under(lowest) => None,
            Some(Severity::Critical) if lowest == 0 && is_under(1) => Some(Severity::Warning),
            None if is_over(0) => Some(Severity::Warning),
            unchanged => unchanged,
        };
        let word = match (before, self.fires) {
            (None, None) => return None,
            (Some(_), None) => {
                (self.since, self.told, self.is_lost) = (None, None, false);
                return Some(Word::Clears);
            }
            (before, now) if before != now => {
                self.refresh = (listened + FIRST_REFRESH, FIRST_REFRESH);
                Some(Change::Evidence)
            }
            _ if !self.is_lost && held(self.open, LOST) => {
                self.is_lost = true;
                return Some(Word::Fires(Change::EvidenceLost));
            }
            _ if self.is_lost && self.open.is_none() => Some(Change::EvidenceBack),
            _ if listened >= self.refresh.0 && self.open.is_none() && self.told != Some(span) => {
                let wait = (self.refresh.1 * 2).min(LAST_REFRESH);
                self.refresh = (listened + wait, wait);
                // Kept, and told to nobody: a value that moves is no news.
                Some(Change::Began)
            }
            _ => None,
        }?;
        (self.told, self.is_lost) = (Some(span), false);
        Some(Word::Fires(word))
    }

    /// Nothing is there to be added up.
    fn miss(&mut self, listened: Duration) -> Option<Word> {
        (self.over, self.under, self.open) = Default::default();
        let since = *self.absent.get_or_insert(listened);
        if listened - since < GRACE || self.fires.take().is_none() {
            return None;
        }
        (self.since, self.told, self.is_lost) = (None, None, false);
        Some(Word::Gone)
    }
}
