//! What explains what: random histories of databases and their pools.

use super::*;

/// A database that cannot be reached explains the pools of the same key; one of another key does not.
fn of_database() -> Policy {
    let matchers = |text: &str| vec![text.parse::<Matcher>().expect("a matcher")];
    let rule = Inhibition {
        at: "inhibit_rules[0]".into(),
        sources: matchers("check=db.connect"),
        targets: matchers("check=~\"pool\\..*|db\\..*\""),
        equal: vec!["sub_key".into()],
    };
    // What explains something else, too, is known when the first rule is gone.
    let other = Inhibition { targets: matchers("check=http.status"), at: "inhibit_rules[1]".into(), ..rule.clone() };
    Policy { inhibitions: vec![rule, other], ..Policy::from(vec![Receiver::new("ops")]) }
}

/// Eight incidents: two of a database and two of its pools, for each of two keys.
struct Estate {
    policy: Policy,
    state: State,
    rows: Vec<IncidentRow>,
    decisions: Vec<DecisionRow>,
    outbox: Vec<OutboxRow>,
    withheld: BTreeMap<(String, String), WithheldRow>,
    now: Timestamp,
}

impl Estate {
    fn new() -> Self {
        let row = |number: usize| IncidentRow {
            id: format!("01JCZZZZZZZZZZZZZZZZZZZZZ{number}"),
            sub_key: Some(if number < 4 { "shop" } else { "till" }.into()),
            status: Status::Resolved,
            ..incident(if number.is_multiple_of(4) || number % 4 == 1 { "db.connect" } else { "pool.leak" }, Warning, 0)
        };
        Self {
            policy: of_database(),
            state: State::default(),
            rows: (0..8).map(row).collect(),
            decisions: Vec::new(),
            outbox: Vec::new(),
            withheld: BTreeMap::new(),
            now: at(0),
        }
    }

    /// Whether pools are explained at all now.
    fn explains(&self) -> bool {
        self.policy.inhibitions.iter().any(|it| it.at == "inhibit_rules[0]")
    }

    fn fires(&self, number: usize) -> bool {
        self.rows[number].status == Status::Firing
    }

    /// Whether a database of its key fires: what is explained.
    fn is_explained(&self, number: usize) -> bool {
        let is_pool = number % 4 > 1;
        let is_source = |of: usize| {
            of % 4 < 2
                && self.fires(of)
                && !self.rows[of].is_calm()
                && self.rows[of].sub_key == self.rows[number].sub_key
        };
        self.explains() && is_pool && (0..8).any(is_source)
    }

    fn believes(&self, number: usize) -> bool {
        let told = self.decisions.iter().rfind(|it| it.incident == self.rows[number].id && it.told);
        told.is_some_and(|it| it.kind != "incident.resolved")
    }

    /// It flaps, and goes away for now or comes back.
    fn flap(&mut self, number: usize, is_calm: bool) {
        let flap = FlapRow { since: Some(at(0)), calm_since: is_calm.then(|| at(0)), ..FlapRow::default() };
        self.rows[number].flap = Some(Box::new(flap));
        self.change(number, Flapped);
    }

    fn change(&mut self, number: usize, kind: ChangeKind) {
        let row = &mut self.rows[number];
        if [Opened, Reopened, Resolved].contains(&kind) {
            row.flap = None;
        }
        row.state_epoch += 1;
        row.status = if kind == Resolved { Status::Resolved } else { Status::Firing };
        let change = IncidentChange { incident: row.clone(), kind, reason: format!("{kind:?}") };
        let explained = self.is_explained(number);
        for decision in self.state.decide(&change, None, &self.policy, self.now) {
            let row = decision.row;
            assert!(!row.told || !explained || kind == Resolved, "told though it is explained: {row:?}");
            assert!(!row.told || !change.incident.is_calm(), "told though it has gone away: {row:?}");
            let key = (row.incident.clone(), row.receiver.clone());
            let is_same =
                |it: &DecisionRow| (&it.incident, &it.receiver, it.state_epoch) == (&key.0, &key.1, row.state_epoch);
            assert!(!self.decisions.iter().any(is_same), "decided twice: {row:?}");
            assert!(!row.reason.is_empty(), "nobody knows why: {row:?}");
            match decision.withheld {
                Withheld::Put(held) => drop(self.withheld.insert(key, held)),
                Withheld::Gone => assert!(self.withheld.remove(&key).is_some()),
                Withheld::Nothing => (),
            }
            self.decisions.push(row);
            self.outbox.extend(decision.message);
        }
    }

    /// What the ledger does each second, for so long that what was held back could clear.
    fn tick(&mut self) {
        self.now = self.now.saturating_add(GRACE).expect("in range");
        for lapse in self.state.lapses(&self.policy, self.now) {
            for number in 0..8 {
                if lapse.incidents.contains(&self.rows[number].id) && self.fires(number) {
                    self.change(number, Reconsidered);
                }
            }
        }
    }

    fn restart(&mut self) {
        let mut told: BTreeMap<String, DecisionRow> = BTreeMap::new();
        for row in self.decisions.iter().filter(|it| it.told) {
            told.insert(row.incident.clone(), row.clone());
        }
        self.state = State::load(told.into_values().collect(), self.outbox.clone())
            .with_withheld(self.withheld.values().cloned().collect())
            .with_sources(self.rows.iter().map(|it| (it, None)), &self.policy);
        self.state.look_for_strays(self.rows.iter().map(|it| (it, None)), &self.policy, false, self.now);
    }

    /// What stands for a label is another one from now on.
    fn relabel(&mut self, number: usize) {
        let row = &mut self.rows[number];
        row.sub_key = Some(if row.sub_key.as_deref() == Some("shop") { "till" } else { "shop" }.into());
        if row.status == Status::Firing {
            let agent = an_agent();
            self.state.relabelled([&self.rows[number]].into_iter(), &agent, &self.policy, self.now);
        }
    }
}

proptest! {
    #[test]
    fn what_is_explained_is_told_when_its_explanation_ends_and_everything_else_at_once(
        acts in proptest::collection::vec((0..26_usize, any::<bool>()), 1..60),
    ) {
        let mut estate = Estate::new();
        for (number, fires) in acts {
            match number {
                8 => estate.restart(),
                9 => {
                    // The rule is taken out of the configuration, or put back.
                    let mut rules = of_database().inhibitions;
                    estate.policy.inhibitions = if fires { rules } else { rules.split_off(1) };
                    estate.restart();
                }
                10..18 => estate.relabel(number - 10),
                18.. if estate.fires(number - 18) && estate.rows[number - 18].is_calm() != fires => {
                    estate.flap(number - 18, fires);
                }
                18.. => (),
                _ if fires && !estate.fires(number) => {
                    let kind = if estate.rows[number].state_epoch == 0 { Opened } else { Reopened };
                    estate.change(number, kind);
                }
                _ if !fires && estate.fires(number) => estate.change(number, Resolved),
                _ => (),
            }
            estate.tick();
            for number in 0..8 {
                if estate.fires(number) && !estate.is_explained(number) && !estate.rows[number].is_calm() {
                    prop_assert!(estate.believes(number), "{number} fires, nothing explains it, and nobody knows");
                }
                prop_assert!(estate.fires(number) || !estate.believes(number), "{number} is over, and somebody believes it");
            }
        }
    }
}

#[test]
fn why_it_is_held_back_names_the_incident_that_explains_it() {
    let mut estate = Estate::new();
    estate.change(0, Opened);
    estate.change(2, Opened);
    estate.change(6, Opened);
    let reasons: Vec<_> = estate.decisions.iter().map(|it| it.reason.as_str()).collect();
    let why = "inhibited by incident 01JCZZZZZZZZZZZZZZZZZZZZZ0, db.connect of pool:shop, by inhibit_rules[0]";
    assert_eq!(reasons, ["Opened", why, "Opened"]);
}
