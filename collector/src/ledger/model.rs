//! Random histories of a whole ledger over a real store: what an agent finds, silences, acknowledgements, attempts to deliver that end in any
//! way, reloads, tidy starts and kills. Whatever happened, people know what is true once nothing happens any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};

use proptest::prelude::*;
use serde_json::Value;
use tickbird_shared::{Change, Severity, Status, Timestamp};
use ulid::Ulid;

use super::*;
use crate::alert::{Ask, Policy, facts};
use crate::config::Config;
use crate::store::{self, IncidentRow, SilenceRow, Writer};
use crate::testbed::{TENANT, Testbed};

/// Milliseconds of the tests' own clock.
static NOW: AtomicI64 = AtomicI64::new(1_790_000_000_000);

fn clock() -> Timestamp {
    Timestamp::from_millisecond(NOW.load(Ordering::Relaxed)).expect("in range")
}

fn passes(milliseconds: i64) {
    NOW.fetch_add(milliseconds, Ordering::Relaxed);
}

const NAMES: [&str; 2] = ["ops", "pager"];
const TARGETS: [&str; 3] = ["pool:shop", "pool:till", "pool:shelf"];
/// No silence and no acknowledgement is longer, in seconds.
const LONGEST: i64 = 30;
/// After so many seconds in which nothing happens all that waits was told: what was held back, a group's wait and its interval.
const QUIET: i64 = LONGEST + 50;

const TOP: &str = "[[receiver]]\nname = \"ops\"\nwebhook.url = \"http://127.0.0.1:1/\"\n";
const PAGER: &str = "[[receiver]]\nname = \"pager\"\nwebhook.url = \"http://127.0.0.1:1/\"\n";
const GROUPED: &str =
    "group_by = [\"target\"]\ngroup_wait = \"3s\"\ngroup_interval = \"7s\"\nrepeat_interval = \"40s\"\n";
const BY_SEVERITY: &str = "[[route.routes]]\nreceiver = \"pager\"\nmatchers = [\"severity=critical\"]\n";
const STEPS: &str = "[[route.escalate]]\nafter = \"12s\"\nreceiver = \"pager\"\n";

/// What the collector may be told to go by.
fn policy(number: usize) -> Policy {
    let text = match number {
        0 => format!("{TOP}{PAGER}"),
        1 => format!("{TOP}{PAGER}[route]\nreceiver = \"ops\"\n"),
        2 => format!("{TOP}{PAGER}[route]\nreceiver = \"ops\"\n{BY_SEVERITY}"),
        3 => format!("{TOP}{PAGER}[route]\nreceiver = \"pager\"\n{GROUPED}"),
        4 => format!("{TOP}{PAGER}[route]\nreceiver = \"ops\"\n{GROUPED}{BY_SEVERITY}"),
        5 => format!("{TOP}{PAGER}[route]\nreceiver = \"ops\"\n{STEPS}"),
        6 => format!("{TOP}min_severity = \"critical\"\n{PAGER}[flapping]\nenabled = false\n"),
        _ => TOP.to_owned(),
    };
    Config::parse(&text, Path::new("/nonexistent")).expect("is read").policy
}
const POLICIES: usize = 8;

#[derive(Debug, Clone)]
enum Act {
    /// The agent says that a target fails so badly, or that it is well.
    Find(usize, Option<Severity>),
    Pass(i64),
    /// Of one target, or of everything, for so many seconds.
    Silence(Option<usize>, i64),
    Acknowledge(usize, i64),
    /// Whoever has it gives it back.
    GiveBack(usize),
    /// The oldest message that waits for a receiver is heard, is not, is perhaps, or is given up.
    Attempt(usize, Attempt),
    Reload(usize),
    Start(usize),
    Kill(usize),
}

#[derive(Debug, Clone, Copy)]
enum Attempt {
    Heard,
    Failed,
    Perhaps,
    GivenUp,
}

fn act() -> impl Strategy<Value = Act> {
    let severity = prop_oneof![Just(Severity::Warning), Just(Severity::Critical)];
    let attempt = prop_oneof![4 => Just(Attempt::Heard), 1 => Just(Attempt::Failed), 1 => Just(Attempt::Perhaps), 1 => Just(Attempt::GivenUp)];
    let target = || 0..TARGETS.len();
    prop_oneof![
        8 => (target(), proptest::option::weighted(0.6, severity)).prop_map(|(target, found)| Act::Find(target, found)),
        5 => (1..15_i64).prop_map(Act::Pass),
        2 => (proptest::option::of(target()), 1..LONGEST).prop_map(|(target, for_)| Act::Silence(target, for_)),
        2 => (target(), 1..LONGEST).prop_map(|(target, for_)| Act::Acknowledge(target, for_)),
        1 => target().prop_map(Act::GiveBack),
        4 => (0..NAMES.len(), attempt).prop_map(|(receiver, attempt)| Act::Attempt(receiver, attempt)),
        3 => (0..POLICIES).prop_map(Act::Reload),
        1 => (0..POLICIES).prop_map(Act::Start),
        2 => (0..POLICIES).prop_map(Act::Kill),
    ]
}

/// A message as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    receiver: String,
    kind: String,
    body: Vec<u8>,
}

impl Message {
    /// Incidents that it tells of, each with what happened to it.
    fn changes(&self) -> Vec<(String, String)> {
        let body: Value = serde_json::from_slice(&self.body).expect("JSON");
        let id = |it: &Value| it["incident"]["id"].as_str().expect("an id").to_owned();
        match body["incidents"].as_array() {
            Some(members) => {
                members.iter().map(|it| (id(it), it["change"].as_str().expect("a change").to_owned())).collect()
            }
            None => vec![(id(&body), self.kind.clone())],
        }
    }
}

struct World {
    bed: Testbed,
    /// Of the policy that holds.
    number: usize,
    fails: [Option<Severity>; TARGETS.len()],
    /// All messages that were ever seen: an id says the same for ever.
    messages: BTreeMap<String, Message>,
    silences: usize,
    /// Since when each receiver has been configured without a break.
    since: BTreeMap<&'static str, Timestamp>,
}

impl World {
    fn new() -> Self {
        let (number, bed) = (0, Testbed::by(clock, policy(0)));
        let since = NAMES.map(|it| (it, clock())).into();
        Self { bed, number, fails: [None; TARGETS.len()], messages: BTreeMap::new(), silences: 0, since }
    }

    /// What is stored of incidents, in order of their beginning.
    fn incidents(&self) -> Vec<IncidentRow> {
        Writer::open(&self.bed.store()).expect("opens").rows().live_incidents(Timestamp::MIN).expect("reads")
    }

    fn firing(&self, target: usize) -> Option<IncidentRow> {
        self.incidents().into_iter().find(|it| it.target == TARGETS[target] && it.status == Status::Firing)
    }

    async fn tick(&self) {
        self.bed.ledger.tick().await.expect("is there");
        // What is asked together with a tick is answered before it, the next after it.
        for _ in 0..2 {
            self.bed.ledger.presence(Vec::new()).await.expect("answers");
        }
    }

    async fn pass(&mut self, seconds: i64) {
        for _ in 0..seconds {
            passes(1_000);
            self.tick().await;
        }
    }

    async fn finds(&mut self, target: usize, found: Option<Severity>) {
        let change = match (self.fails[target], found) {
            (None, None) => return,
            (None, Some(_)) => Change::Began,
            (Some(_), None) => Change::Cleared,
            (Some(before), Some(now)) if now > before => Change::Worsened,
            (Some(before), Some(now)) if now < before => Change::Eased,
            (Some(_), Some(_)) => Change::Evidence,
        };
        let severity = found.or(self.fails[target]).unwrap_or(Severity::Warning);
        self.fails[target] = found;
        self.bed.finds("pool.leak", TARGETS[target], severity, change).await;
    }

    async fn silence(&mut self, target: Option<usize>, seconds: i64) {
        self.silences += 1;
        let matcher = target.map_or("check=~\".+\"".to_owned(), |it| format!("target=\"{}\"", TARGETS[it]));
        let row = SilenceRow {
            tenant: TENANT.into(),
            id: format!("sil_{}", self.silences),
            matchers: vec![matcher],
            author: "anna".into(),
            reason: "they move".into(),
            created_at: clock(),
            starts_at: clock(),
            ends_at: clock() + Duration::from_secs(seconds.unsigned_abs()),
            over_at: None,
        };
        assert!(self.bed.ledger.silence(Silencing::Begin(Box::new(row))).await.expect("answers"));
    }

    async fn acknowledge(&self, target: usize, seconds: i64) {
        let Some(incident) = self.firing(target) else { return };
        let ask = Ask {
            id: Ulid::from_datetime(std::time::UNIX_EPOCH + Duration::from_millis(clock().as_millisecond() as u64)),
            tenant: TENANT.into(),
            incident: incident.id,
            owner: "anna".into(),
            note: None,
            ends_at: clock() + Duration::from_secs(seconds.unsigned_abs()),
        };
        self.bed.ledger.acknowledge(Acknowledging::Begin(Box::new(ask))).await.expect("answers").expect("it fires");
    }

    async fn give_back(&self, target: usize) {
        let Some(incident) = self.firing(target) else { return };
        let end = Acknowledging::End { tenant: TENANT.into(), incident: incident.id, by: "anna".into() };
        // Nobody has it, perhaps.
        drop(self.bed.ledger.acknowledge(end).await.expect("answers"));
    }

    async fn attempt(&self, receiver: &str, attempt: Attempt) {
        let oldest = "SELECT id FROM outbox WHERE receiver = ?1 AND state = 'waiting' ORDER BY id LIMIT 1";
        let Ok(message) =
            store::outside(&self.bed.store()).query_row(oldest, [receiver], |row| row.get::<_, String>(0))
        else {
            return;
        };
        let (at, error) = (clock(), "refused".to_owned());
        let outcome = match attempt {
            Attempt::Heard => Outcome::Delivered { answer: "204".into() },
            Attempt::Failed => Outcome::Retry { at, uncertain: false, error },
            Attempt::Perhaps => Outcome::Retry { at, uncertain: true, error },
            Attempt::GivenUp => Outcome::Dead { uncertain: false, error },
        };
        let delivery = Delivery { tenant: TENANT.into(), message, at, outcome, is_counted: false };
        self.bed.ledger.delivered(delivery).await.expect("is written");
    }

    async fn reload(&mut self, number: usize) {
        let rules = |number| Rules {
            policy: policy(number),
            fleet: Vec::new(),
            bounds: crate::store::Bounds::default(),
            abandoned: Vec::new(),
        };
        // Whoever is owed an end is not left out.
        if self.bed.ledger.reload(rules(number)).await.expect("answers").is_ok() {
            self.number = number;
            let policy = policy(number);
            for name in NAMES {
                if policy.receivers.iter().all(|it| it.name != name) {
                    self.since.remove(name);
                } else {
                    self.since.entry(name).or_insert_with(clock);
                }
            }
        }
    }

    /// Of each incident everybody can learn why who was there heard of it, or did not.
    fn is_explained(&self, incident: &IncidentRow) {
        let writer = Writer::open(&self.bed.store()).expect("opens");
        let decisions = writer.rows().decisions(TENANT, &incident.id).expect("reads");
        assert!(decisions.iter().all(|it| !it.reason.is_empty()), "{decisions:?}");
        for (name, since) in &self.since {
            let was_there = *since < incident.opened_at;
            let is_explained = decisions.iter().any(|it| it.receiver == *name);
            assert!(is_explained || !was_there, "nobody knows why {name} heard of {} or not", incident.target);
        }
    }

    async fn does(mut self, act: &Act) -> Self {
        passes(10);
        match *act {
            Act::Find(target, found) => self.finds(target, found).await,
            Act::Pass(seconds) => self.pass(seconds).await,
            Act::Silence(target, seconds) => self.silence(target, seconds).await,
            Act::Acknowledge(target, seconds) => self.acknowledge(target, seconds).await,
            Act::GiveBack(target) => self.give_back(target).await,
            Act::Attempt(receiver, attempt) => self.attempt(NAMES[receiver], attempt).await,
            Act::Reload(number) => self.reload(number).await,
            // A start cannot refuse to leave somebody out, so it goes by what a reload took.
            Act::Start(number) => {
                self.reload(number).await;
                let bed = self.bed.goes_on(policy(self.number)).await;
                self = Self { bed, ..self };
            }
            Act::Kill(number) => {
                self.reload(number).await;
                let bed = self.bed.dies(policy(self.number)).await;
                self = Self { bed, ..self };
            }
        }
        self.is_lasting();
        self
    }

    /// What was told once stays what it was.
    fn is_lasting(&mut self) {
        let outside = store::outside(&self.bed.store());
        let mut query = outside.prepare("SELECT id, receiver, kind, body FROM outbox").expect("reads");
        let rows = query.query_map([], |row| {
            Ok((row.get::<_, String>(0)?, Message { receiver: row.get(1)?, kind: row.get(2)?, body: row.get(3)? }))
        });
        for row in rows.expect("reads") {
            let (id, message) = row.expect("reads");
            let before = self.messages.entry(id.clone()).or_insert_with(|| message.clone());
            assert_eq!(*before, message, "{id} says something else now");
        }
    }

    /// Who believes of which incident that it fires, when all that is queued was heard.
    fn believers(&self) -> BTreeSet<(String, String)> {
        let outside = store::outside(&self.bed.store());
        let mut query = outside.prepare("SELECT id FROM outbox WHERE state = 'superseded'").expect("reads");
        let superseded: BTreeSet<String> =
            query.query_map([], |row| row.get(0)).and_then(Iterator::collect).expect("reads");
        let mut believe = BTreeSet::new();
        let heard = self.messages.iter().filter(|(id, _)| !superseded.contains(*id));
        for (incident, change, receiver) in
            heard.flat_map(|(_, it)| it.changes().into_iter().map(|(id, change)| (id, change, it.receiver.clone())))
        {
            match change.as_str() {
                "incident.resolved" => believe.remove(&(receiver, incident)),
                _ => believe.insert((receiver, incident)),
            };
        }
        believe
    }

    /// Nothing happens for a while: whoever what fires leads to knows that it does, and nobody believes that of what is over.
    async fn comes_to_rest(&mut self) {
        self.pass(QUIET).await;
        self.is_lasting();
        let (believe, policy, incidents) = (self.believers(), policy(self.number), self.incidents());
        let agents = Writer::open(&self.bed.store()).expect("opens").rows().all_agents().expect("reads");
        let agents: HashMap<_, _> = agents.iter().map(|it| (it.id.as_str(), it)).collect();
        for (target, fails) in TARGETS.iter().zip(self.fails) {
            let firing: Vec<_> =
                incidents.iter().filter(|it| it.target == *target && it.status == Status::Firing).collect();
            assert!(firing.len() <= 1 && (fails.is_none() || firing.len() == 1), "{target}: {fails:?}, {firing:?}");
            assert!(fails.is_some() || firing.iter().all(|it| it.is_calm()), "{target} is well: {firing:?}");
        }
        for incident in &incidents {
            self.is_explained(incident);
            let facts = facts(incident, agents.get(incident.agent.as_str()).copied());
            let led = policy.foresee(&facts, &[], clock()).into_iter().filter(|it| it.silent.is_none());
            let led: BTreeSet<_> = led.map(|it| it.receiver).collect();
            for name in NAMES {
                let believes = believe.contains(&(name.to_owned(), incident.id.clone()));
                if incident.status == Status::Firing {
                    let must = led.contains(name) && !incident.is_calm();
                    assert!(believes || !must, "{name} does not know of {} of {}", incident.check, incident.target);
                } else {
                    assert!(!believes, "{name} was never told that {} of {} is over", incident.check, incident.target);
                }
            }
        }
    }
}

async fn history(acts: &[Act]) {
    let mut world = World::new();
    for act in acts {
        world = world.does(act).await;
    }
    world.comes_to_rest().await;
    for target in 0..TARGETS.len() {
        world.finds(target, None).await;
    }
    world.comes_to_rest().await;
    world.bed.ends().await;
}

proptest! {
    // Each is a store on the disk, and as many acts as a thousand of the pure models.
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_happens_people_know_what_is_true_once_nothing_does(acts in proptest::collection::vec(act(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        runtime.block_on(history(&acts));
    }
}
