//! The tables that the ledger writes about incidents that are told together, and what a person would have to say of them at any time.

use std::convert::Infallible;
use std::time::Duration;

use serde_json::Value;

use super::super::{Ask, By, Flush, Found, Grouping, Sought, Step};
use super::*;
use crate::alert::hold::SILENCE;
use crate::store::{DependencyRow, Edge, EscalationRow};

pub(super) const WAIT: i64 = 3;
pub(super) const INTERVAL: i64 = 10;
pub(super) const REPEAT: i64 = 60;
/// Until a step; half of it where it is critical.
pub(super) const AFTER: i64 = 24;
/// Incidents of a ward.
pub(super) const ROWS: usize = 5;
/// The one of the server, and the one that is explained by it.
const SERVER: usize = 4;
const CLIENT: usize = 1;
/// Where the server is.
const ADDRESS: &str = "10.0.0.5:5432";

/// That pool:shop leads to the server.
fn edges() -> DependencyRow {
    let edge = Edge {
        pools: ["pool:shop".to_owned()].into(),
        applications: BTreeSet::new(),
        names: [ADDRESS.to_owned()].into(),
        seen_at: at(0),
    };
    DependencyRow {
        tenant: "default".into(),
        agent: "a".into(),
        edges: [(ADDRESS.to_owned(), edge)].into(),
        seen_at: at(0),
    }
}

pub(super) fn seconds(count: i64) -> Duration {
    Duration::from_secs(count.unsigned_abs())
}

pub(super) fn grouping() -> Grouping {
    let repeat = [(Warning, seconds(REPEAT)), (Critical, seconds(REPEAT / 2))].into();
    Grouping { by: By::Labels(vec!["target".into()]), wait: seconds(WAIT), interval: seconds(INTERVAL), repeat }
}

/// Everything leads to one receiver by one route.
pub(super) fn policy(grouping: Option<Grouping>) -> Policy {
    let route = Route {
        at: "route".into(),
        path: "{}".into(),
        receiver: "ops".into(),
        matchers: Vec::new(),
        goes_on: false,
        routes: Vec::new(),
        grouping,
        mute: vec!["night".into()],
        active: Vec::new(),
        escalate: Vec::new(),
    };
    let dependencies = Dependencies::default();
    Policy { route: Some(route), dependencies, ..Policy::from(vec![Receiver::new("ops")]) }
}

/// The same, and somebody else is told of what nobody acknowledges.
pub(super) fn escalating(grouping: Option<Grouping>) -> Policy {
    let after = [(Warning, seconds(AFTER)), (Critical, seconds(AFTER / 2))].into();
    let (name, receiver) = ("1 boss".into(), "boss".into());
    let step = Step { at: "route.escalate[0]".into(), name, receiver, after, min_severity: Severity::Info };
    let mut policy = policy(grouping);
    policy.receivers.push(Receiver::new("boss"));
    policy.route.as_mut().expect("a route").escalate.push(step);
    // The boss is on no route of their own.
    policy
}

/// The tables that the ledger writes, and five incidents: two of each of two targets, and one of the server that the first target uses.
pub(super) struct Ward {
    pub(super) policy: Policy,
    pub(super) state: State,
    pub(super) rows: Vec<IncidentRow>,
    pub(super) decisions: Vec<DecisionRow>,
    pub(super) groups: BTreeMap<String, GroupRow>,
    pub(super) outbox: Vec<OutboxRow>,
    pub(super) withheld: BTreeMap<String, WithheldRow>,
    pub(super) silences: Vec<SilenceRow>,
    /// Silences so far.
    pub(super) begun: u32,
    pub(super) second: i64,
    /// When a route that does not group was last there.
    pub(super) ungrouped_at: i64,
    /// Of each incident since when it is as it is, and nothing holds it back.
    pub(super) steady_since: [i64; ROWS],
    pub(super) acknowledgements: Vec<AcknowledgementRow>,
    /// Those that nobody has any more, and of which whoever was told was not told again since.
    pub(super) owed_again: BTreeSet<usize>,
    pub(super) escalations: BTreeMap<(String, String), EscalationRow>,
    /// Since when `ops` knows of what is nobody's, and how often the boss was told of it since.
    pub(super) nobodys_since: [Option<(i64, u32)>; ROWS],
}

impl Ward {
    pub(super) fn new(policy: Policy) -> Self {
        let row = |number: usize| {
            let (check, target) = match number {
                SERVER => ("db.connect", "server:10.0.0.5:5432/shop"),
                _ if number.is_multiple_of(2) => ("pool.leak", ["pool:shop", "pool:till"][number / 2]),
                _ => ("pool.exhausted", ["pool:shop", "pool:till"][number / 2]),
            };
            IncidentRow {
                id: format!("01JCZZZZZZZZZZZZZZZZZZZZZ{number}"),
                fingerprint: Fingerprint::of("default", "a", "pool.leak", "pool:shop", Some(&number.to_string())),
                sub_key: Some(number.to_string()),
                target: target.into(),
                status: Status::Resolved,
                ..incident(check, Warning, 0)
            }
        };
        Self {
            policy,
            state: State::default().with_dependencies(vec![edges()], []),
            rows: (0..ROWS).map(row).collect(),
            decisions: Vec::new(),
            groups: BTreeMap::new(),
            outbox: Vec::new(),
            withheld: BTreeMap::new(),
            silences: Vec::new(),
            begun: 0,
            second: 0,
            ungrouped_at: i64::MIN / 2,
            steady_since: [0; ROWS],
            acknowledgements: Vec::new(),
            owed_again: BTreeSet::new(),
            escalations: BTreeMap::new(),
            nobodys_since: [None; ROWS],
        }
    }

    pub(super) fn fires(&self, number: usize) -> bool {
        self.rows[number].status == Status::Firing
    }

    /// Whether it flaps, and has gone away for now.
    pub(super) fn is_calm(&self, number: usize) -> bool {
        self.rows[number].is_calm()
    }

    /// Whether `ops` is spared it, since it knows of the server.
    pub(super) fn is_spared(&self, number: usize) -> bool {
        let server = &self.rows[SERVER];
        let explains = self.fires(SERVER) && !self.is_calm(SERVER) && server.severity == Critical;
        let chose =
            self.withheld.get(&server.id).is_some_and(|it| it.held_by.starts_with(SILENCE)) || self.is_owned(SERVER);
        let waits =
            |it: &DecisionRow| it.incident == server.id && it.receiver == "ops" && !it.told && it.message.is_some();
        let knows = self.believes("ops", SERVER) || chose || self.decisions.iter().any(waits);
        number == CLIENT && explains && knows
    }

    /// Whether something that anybody could name keeps `ops` from hearing of it.
    pub(super) fn is_held(&self, number: usize) -> bool {
        let is_silenced = self.is_silenced(&self.rows[number]);
        is_silenced || self.is_mute() || self.is_owned(number) || self.is_calm(number) || self.is_spared(number)
    }

    /// Begins or ends a time in which the route is mute.
    pub(super) fn mute(&mut self, begins: bool) {
        let window = Window { name: "night".into(), spans: vec![Span::default()] };
        self.policy.windows = begins.then_some(window).into_iter().collect();
        self.stir_all();
    }

    /// A finding comes: what the state machine of incidents makes of it. A return is one too many if it `flaps`.
    pub(super) fn hear(&mut self, number: usize, wished: ChangeKind, severity: Severity, flaps: bool) {
        let (fires, is_calm, now) = (self.fires(number), self.is_calm(number), at(self.second));
        let row = &mut self.rows[number];
        let (is_first, worst, flapping) = (row.state_epoch == 0, row.worst(), row.flaps());
        let flap = &mut row.flap;
        let away = |is_away: bool, worst: Severity| {
            let calm_since = is_away.then_some(now);
            Some(Box::new(FlapRow { since: Some(now), calm_since, worst: Some(worst), ..FlapRow::default() }))
        };
        let kind = match (fires, wished) {
            (false, Resolved) => return,
            (false, _) => {
                // A first time is no return; here it may be, so that short histories come further.
                *flap = flaps.then(|| away(false, severity)).flatten();
                if is_first { Opened } else { Reopened }
            }
            (true, Resolved) if flapping && !is_calm => {
                *flap = away(true, worst);
                Flapped
            }
            (true, Opened | Worsened | Eased | Updated) if flapping && severity > worst => {
                *flap = away(false, severity);
                Worsened
            }
            (true, Worsened | Eased) if flapping => {
                *flap = away(false, worst);
                Flapped
            }
            (true, Opened | Updated) if is_calm => {
                *flap = away(false, worst);
                Flapped
            }
            (true, Opened | Updated) => {
                // It has stayed for long enough.
                *flap = None;
                Updated
            }
            (true, kind) => kind,
        };
        self.change(number, kind, severity);
    }

    pub(super) fn is_silenced(&self, row: &IncidentRow) -> bool {
        let matches = |it: &SilenceRow| Silence::new(it.clone()).is_ok_and(|it| it.matches(&facts(row, None)));
        self.silences.iter().any(|it| it.ends_at > at(self.second) && matches(it))
    }

    pub(super) fn is_mute(&self) -> bool {
        !self.policy.windows.is_empty()
    }

    pub(super) fn change(&mut self, number: usize, kind: ChangeKind, severity: Severity) {
        self.wait_for_the_server();
        let row = &mut self.rows[number];
        row.state_epoch += 1;
        row.severity = severity;
        row.status = if kind == Resolved { Status::Resolved } else { Status::Firing };
        if kind == Resolved {
            row.flap = None;
        }
        let mut change = IncidentChange { incident: row.clone(), kind, reason: format!("{kind:?}") };
        self.stir(number);
        let now = at(self.second);
        let outgrown = if kind == Resolved { None } else { self.state.ends_acknowledgement(&change, now) };
        if let Some(row) = outgrown {
            change.reason += &format!("; {}", row.ended());
            self.mark(row);
            self.state.escalate_anew("default", &self.rows[number].id, now);
            self.nobodys_since[number] = self.nobodys_since[number].map(|_| (self.second, 0));
        }
        if kind == Reopened && self.is_told_to_fire(number) {
            self.nobodys_since[number].get_or_insert((self.second, 0));
        }
        if kind == Unacknowledged && self.is_told_to_fire(number) {
            self.owed_again.insert(number);
        }
        for decision in self.state.decide(&change, None, &self.policy, at(self.second)) {
            let row = decision.row;
            let key = |it: &DecisionRow| (it.incident.clone(), it.receiver.clone(), it.state_epoch);
            let same = |it: &DecisionRow| key(it) == key(&row);
            assert!(!self.decisions.iter().any(same), "decided twice: {row:?}");
            assert!(!row.reason.is_empty(), "nobody knows why: {row:?}");
            if let Some(why) = decision.ungathers {
                assert!(self.ungather(&row.incident, &row.receiver, &why) > 0, "nothing waited: {row:?}");
            }
            match decision.withheld {
                Withheld::Put(held) => drop(self.withheld.insert(row.incident.clone(), held)),
                Withheld::Gone => assert!(self.withheld.remove(&row.incident).is_some()),
                Withheld::Nothing => (),
            }
            if let Some(group) = decision.group {
                self.groups.insert(group.id.clone(), group);
            }
            if decision.message.is_some() && kind != Resolved {
                assert!(!self.is_owned(number), "somebody has it: {row:?}");
                assert!(!self.is_calm(number), "it has gone away for now: {row:?}");
            }
            self.decisions.push(row);
            self.supersede(&decision.supersedes);
            if let Some(message) = &decision.message {
                self.hears(message);
            }
            self.outbox.extend(decision.message);
        }
        if kind == Resolved {
            self.withheld.remove(&self.rows[number].id);
            self.owed_again.remove(&number);
            self.nobodys_since[number] = None;
            if let Some(row) = self.state.ends_acknowledgement(&change, now) {
                self.mark(row);
            }
        }
        self.save();
    }

    /// Writes how far escalations have come.
    fn save(&mut self) {
        for ((_, incident), receiver, row) in self.state.take_unsaved_escalations() {
            match row {
                Some(row) => drop(self.escalations.insert((incident, receiver), row)),
                None => assert!(self.escalations.remove(&(incident, receiver)).is_some()),
            }
        }
    }

    /// What a message means to whoever hears it.
    fn hears(&mut self, message: &OutboxRow) {
        for (number, change) in changes(message) {
            let news = !["incident.resolved", "unchanged"].contains(&&*change);
            let is_escalated = change == "incident.escalated";
            assert!(message.receiver != "boss" || news == is_escalated, "{change}");
            let of_steps = self.policy.route.as_ref().map_or(&[][..], |it| &it.escalate);
            let is_of_step = message.receiver == "boss" || of_steps.iter().any(|it| it.receiver == message.receiver);
            assert!(!is_escalated || is_of_step, "{}", message.receiver);
            if news && message.receiver == "ops" {
                self.owed_again.remove(&number);
                self.nobodys_since[number].get_or_insert((self.second, 0));
            }
            if change == "incident.escalated" {
                let (since, times) = self.nobodys_since[number].as_mut().expect("others were told before");
                *times += 1;
                assert_eq!(*times, 1, "the boss is told twice of {number}");
                let least = if self.rows[number].severity == Critical { AFTER / 2 } else { AFTER };
                // It may have eased since it was decided.
                assert!(self.second - *since >= least.min(AFTER / 2), "the boss is told too soon");
            }
        }
    }

    /// Writes what became of an acknowledgement.
    pub(super) fn mark(&mut self, row: AcknowledgementRow) {
        let place = self.acknowledgements.iter_mut().find(|it| it.id == row.id).expect("it is known");
        assert!(place.over_at.is_none(), "its end is noticed twice: {place:?}");
        *place = row;
    }

    /// Whether somebody has an incident, as far as anybody can say before the next look.
    pub(super) fn is_owned(&self, number: usize) -> bool {
        let holds = |it: &&AcknowledgementRow| it.over_at.is_none() && it.incident == self.rows[number].id;
        self.acknowledgements.iter().any(|it| holds(&it))
    }

    /// Somebody takes an incident for some seconds.
    pub(super) fn acknowledge(&mut self, number: usize, length: i64) {
        let now = at(self.second);
        let row = &self.rows[number];
        let millis = u64::try_from(now.as_millisecond()).unwrap_or_default();
        let ask = Ask {
            id: Ulid::from_parts(millis, self.acknowledgements.len() as u128),
            tenant: row.tenant.clone(),
            incident: row.id.clone(),
            owner: "anna".into(),
            note: None,
            ends_at: at(self.second + length),
        };
        let new = AcknowledgementRow { taken_at: Some(now), ..ask.of(Some(row), now).expect("it fires") };
        // The store closes whichever there was.
        let before = self.acknowledgements.iter_mut().filter(|it| it.over_at.is_none() && it.incident == new.incident);
        before.for_each(|it| it.over_at = Some(now));
        let why = new.why();
        self.acknowledgements.push(new);
        self.load_acknowledgements();
        let row = &mut self.rows[number];
        row.state_epoch += 1;
        let change = IncidentChange { incident: row.clone(), kind: ChangeKind::Acknowledged, reason: why };
        for decision in self.state.decide(&change, None, &self.policy, now) {
            assert!(!decision.row.told && decision.message.is_none() && decision.row.kind == "incident.acknowledged");
            self.decisions.push(decision.row);
        }
        self.stir(number);
    }

    /// Nobody has it from now on.
    pub(super) fn unacknowledge(&mut self, number: usize) {
        let now = at(self.second);
        let live = |it: &&mut AcknowledgementRow| it.over_at.is_none() && it.incident == self.rows[number].id;
        self.acknowledgements.iter_mut().filter(live).for_each(|it| it.ends_at = it.ends_at.min(now));
        self.load_acknowledgements();
    }

    fn load_acknowledgements(&mut self) {
        let live = self.acknowledgements.iter().filter(|it| it.over_at.is_none());
        self.state.take_acknowledgements(live.cloned().collect());
    }

    pub(super) fn ungather(&mut self, incident: &str, receiver: &str, why: &str) -> usize {
        let is_its = |it: &DecisionRow| it.incident == incident && it.receiver == receiver;
        let waits = |it: &&mut DecisionRow| is_its(it) && !it.told && it.message.is_some();
        let mut count = 0;
        for row in self.decisions.iter_mut().filter(waits) {
            (row.message, row.in_group) = (None, None);
            row.reason = format!("{}; {why}", row.reason);
            count += 1;
        }
        count
    }

    pub(super) fn supersede(&mut self, ids: &[String]) {
        for row in self.outbox.iter_mut().filter(|it| ids.contains(&it.id)) {
            assert_eq!(row.state, MessageState::Waiting);
            if row.uncertain == 0 {
                row.state = MessageState::Superseded;
            }
        }
    }

    /// One second, as the ledger has it.
    pub(super) fn tick(&mut self) {
        self.wait_for_the_server();
        self.second += 1;
        let now = at(self.second);
        if self.policy.route.as_ref().is_none_or(|it| it.grouping.is_none()) {
            self.ungrouped_at = self.second;
        }
        let mut anew = BTreeMap::new();
        for lapse in self.state.lapses(&self.policy, now) {
            if lapse.ends_silence {
                self.silences.retain(|it| it.id != lapse.holder);
            }
            anew.extend(lapse.incidents.into_iter().map(|it| (it, Reconsidered)));
        }
        for row in self.state.acknowledgements_over(now) {
            anew.insert(row.incident.clone(), Unacknowledged);
            self.state.escalate_anew("default", &row.incident, now);
            for number in 0..ROWS {
                if self.rows[number].id == row.incident {
                    self.nobodys_since[number] = self.nobodys_since[number].map(|_| (self.second, 0));
                }
            }
            self.mark(row);
        }
        for number in 0..ROWS {
            if let Some(kind) = anew.get(&self.rows[number].id).filter(|_| self.fires(number)) {
                self.change(number, *kind, self.rows[number].severity);
            }
        }
        let rows = self.rows.clone();
        let find = |(_, id): &IncidentKey| {
            let found = rows.iter().find(|it| it.id == *id);
            Ok::<_, Infallible>(found.map(|it| -> Found<'_> { (Sought::Known(it), None) }))
        };
        let Ok(due) = self.state.escalations_due(&self.policy, now, find);
        for number in 0..ROWS {
            if due.iter().any(|it| it.1 == self.rows[number].id) {
                self.change_nothing(number, Escalated);
            }
        }
        let rows = &self.rows;
        let find = |(_, id): &IncidentKey, fingerprint: Option<Fingerprint>| {
            let found = rows.iter().find(|it| it.id == *id);
            assert!(fingerprint.is_none() || fingerprint == found.map(|it| it.fingerprint));
            Ok::<_, Infallible>(found.map(|it| -> Found<'_> { (Sought::Known(it), None) }))
        };
        let Ok(flushes) = self.state.flush(&self.policy, now, find);
        for flush in flushes {
            self.write(flush);
        }
        self.save();
    }

    /// An incident is otherwise from now on, or what holds it back is.
    fn stir(&mut self, number: usize) {
        self.steady_since[number] = self.steady_since[number].max(self.second);
    }

    fn stir_all(&mut self) {
        self.wait_for_the_server();
        (0..ROWS).for_each(|number| self.stir(number));
    }

    /// What a server explains mostly clears with it: it is told a while later.
    fn wait_for_the_server(&mut self) {
        if self.is_spared(CLIENT) {
            self.steady_since[CLIENT] = self.second + GRACE.as_secs().cast_signed();
        }
    }

    /// Something is decided, and nothing is otherwise since.
    fn change_nothing(&mut self, number: usize, kind: ChangeKind) {
        let steady = self.steady_since[number];
        self.change(number, kind, self.rows[number].severity);
        self.steady_since[number] = steady;
    }

    pub(super) fn write(&mut self, flush: Flush) {
        for (incident, why) in &flush.ungathered {
            assert!(self.ungather(incident, &flush.group.receiver, why) > 0, "nothing waited: {incident}");
        }
        for row in flush.withheld {
            self.withheld.insert(row.incident.clone(), row);
        }
        if let Some(message) = &flush.message {
            for row in self.decisions.iter_mut().filter(|it| it.message.as_ref() == Some(&message.id)) {
                assert!(!row.told, "told twice: {row:?}");
                row.told = true;
            }
        }
        self.supersede(&flush.supersedes);
        if let Some(message) = flush.message {
            let before = self.outbox.iter().rfind(|it| it.incident == message.incident);
            assert!(before.is_none_or(|it| it.id < message.id), "a message of a group follows the one before");
            let least = before.map_or(i64::MAX, |it| message.decided_at.as_second() - it.decided_at.as_second());
            let is_grouped = self.second - self.ungrouped_at > WAIT;
            assert!(least.abs() >= WAIT || !is_grouped, "two messages of a group within {least} s");
            for (number, change) in changes(&message) {
                let news = !["incident.resolved", "unchanged"].contains(&&*change);
                assert!(change == "incident.resolved" || !self.is_owned(number), "somebody has it: {number}");
                let row = &self.rows[number];
                assert!(!news || self.fires(number), "told to fire, and does not: {number}");
                assert!(!news || !self.is_silenced(row), "told though it is silenced: {number}");
                assert!(!news || !self.is_mute(), "told by a route that is mute: {number}");
                assert!(!news || !self.is_calm(number), "told while it has gone away: {number}");
                let is_spared = self.is_spared(number) && message.receiver == "ops";
                assert!(!news || !is_spared, "told though the server explains it: {number}");
            }
            self.hears(&message);
            self.outbox.push(message);
        }
        if flush.is_over {
            self.groups.remove(&flush.group.id);
        } else {
            self.groups.insert(flush.group.id.clone(), flush.group);
        }
    }

    pub(super) fn pass(&mut self, seconds: i64) {
        (0..seconds).for_each(|_| self.tick());
    }

    pub(super) fn restart(&mut self) {
        // Nobody saw whether what held it back is gone.
        for number in 0..ROWS {
            let held = self.withheld.get(&self.rows[number].id);
            let of_step = self.escalations.iter().filter(|(key, _)| key.0 == self.rows[number].id);
            let is_step_held = of_step.flat_map(|it| it.1.steps.values()).any(|it| it == "held back");
            if is_step_held || held.is_some_and(|it| it.held_by == self.rows[SERVER].id) {
                self.steady_since[number] = self.steady_since[number].max(self.second + GRACE.as_secs().cast_signed());
            }
        }
        let firing: BTreeSet<_> = self.rows.iter().filter(|it| it.status == Status::Firing).map(|it| &it.id).collect();
        let mut told: BTreeMap<_, DecisionRow> = BTreeMap::new();
        for row in self.decisions.iter().filter(|it| it.told && firing.contains(&it.incident)) {
            told.insert((row.incident.clone(), row.receiver.clone()), row.clone());
        }
        let waiting = self.outbox.iter().filter(|it| it.state == MessageState::Waiting).cloned().collect();
        let gathered: Vec<_> = self.decisions.iter().filter(|it| !it.told && it.message.is_some()).cloned().collect();
        let groups = self.groups.values().cloned().collect();
        self.state = State::load(told.into_values().collect(), waiting)
            .after(self.outbox.last().map(|it| it.id.as_str()))
            .with_withheld(self.withheld.values().cloned().collect())
            .with_acknowledgements(self.acknowledgements.iter().filter(|it| it.over_at.is_none()).cloned().collect())
            .with_groups(groups, &gathered, self.rows.iter(), &self.policy, at(self.second));
        let escalations = self.escalations.values().cloned().collect();
        let (rows, now) = (self.rows.iter().map(|it| (it, None)), at(self.second));
        self.state = std::mem::take(&mut self.state)
            .with_dependencies(vec![edges()], [])
            .with_sources(rows.clone(), &self.policy)
            .with_escalations(escalations, rows, &self.policy, now);
        self.save();
        self.load_silences();
        self.state.look_for_strays(self.rows.iter().map(|it| (it, None)), &self.policy, false, now);
    }

    pub(super) fn load_silences(&mut self) {
        self.state.silence(self.silences.iter().map(|it| Silence::new(it.clone()).expect("sound")).collect());
    }

    pub(super) fn silence(&mut self, matcher: Option<&str>) {
        match matcher {
            Some(matcher) => {
                self.begun += 1;
                let id = format!("sil_{}", self.begun);
                self.silences.push(silence(&id, matcher));
            }
            None => {
                let now = at(self.second);
                self.silences.iter_mut().for_each(|it| it.ends_at = it.ends_at.min(now));
            }
        }
        self.stir_all();
        self.load_silences();
    }

    /// The last that was queued of an incident for `ops`: whether it fires.
    pub(super) fn is_told_to_fire(&self, number: usize) -> bool {
        self.believes("ops", number)
    }

    /// The same for anybody.
    pub(super) fn believes(&self, receiver: &str, number: usize) -> bool {
        let mut fires = false;
        for row in self.outbox.iter().filter(|it| it.receiver == receiver && it.state != MessageState::Superseded) {
            for (_, change) in changes(row).into_iter().filter(|it| it.0 == number) {
                fires = change != "incident.resolved";
            }
        }
        fires
    }

    pub(super) fn kinds(&self) -> Vec<&str> {
        self.outbox.iter().map(|it| it.kind.as_str()).collect()
    }
}

pub(super) fn body(row: &OutboxRow) -> Value {
    serde_json::from_slice(&row.body).expect("JSON")
}

/// What a message says of which incident.
pub(super) fn changes(row: &OutboxRow) -> Vec<(usize, String)> {
    let body = body(row);
    let number = |id: &Value| id.as_str().and_then(|it| it.chars().last()?.to_digit(10)).expect("an id") as usize;
    let Some(members) = body["incidents"].as_array() else {
        return vec![(number(&body["incident"]["id"]), row.kind.clone())];
    };
    let of = |it: &Value| (number(&it["incident"]["id"]), it["change"].as_str().expect("a change").to_owned());
    members.iter().map(of).collect()
}
