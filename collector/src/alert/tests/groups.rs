//! Incidents that are told together: moment by moment, then random histories with what a person would have to say of them.

use std::convert::Infallible;
use std::time::Duration;

use proptest::prelude::*;

use super::super::{By, Found, Grouping, Sought};
use super::ward::{AFTER, INTERVAL, REPEAT, ROWS, WAIT, Ward, body, changes, escalating, grouping, policy, seconds};
use super::*;

#[test]
fn the_first_message_waits_for_others_and_the_next_for_the_interval() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.pass(2);
    ward.change(1, Opened, Critical);
    ward.change(2, Opened, Warning);
    assert_eq!(ward.kinds(), [""; 0], "group_wait is not over");
    ward.pass(1);
    assert_eq!(ward.kinds(), ["group.firing"], "of one target; the other one's wait has begun later");
    let said = body(&ward.outbox[0]);
    assert_eq!(said["group"]["labels"], serde_json::json!({ "target": "pool:shop" }));
    assert_eq!(said["group"]["summary"], "2 firing: 1 pool.exhausted of pool:shop, 1 pool.leak of pool:shop");
    assert_eq!((&said["group"]["severity"], &said["group"]["firing"]), (&"critical".into(), &2.into()));
    let listed: Vec<_> =
        said["incidents"].as_array().expect("a list").iter().map(|it| &it["incident"]["check"]).collect();
    assert_eq!(listed, ["pool.exhausted", "pool.leak"], "the gravest first");
    ward.pass(2);
    assert_eq!(ward.kinds(), ["group.firing", "group.firing"]);

    // What follows waits for the interval, whatever it is.
    ward.change(0, Resolved, Warning);
    ward.pass(INTERVAL - WAIT);
    assert_eq!(ward.kinds().len(), 2);
    ward.pass(WAIT);
    assert_eq!(ward.kinds()[2..], ["group.updated"]);
    assert_eq!(changes(&ward.outbox[2]), [(0, "incident.resolved".into()), (1, "unchanged".into())]);
    ward.change(1, Resolved, Critical);
    ward.pass(INTERVAL);
    assert_eq!(ward.kinds()[3..], ["group.resolved"]);
    assert_eq!(body(&ward.outbox[3])["group"]["status"], "resolved");
    assert_eq!(ward.groups.len(), 1, "a group of which nothing fires is over");
}

#[test]
fn what_a_group_is_of_follows_from_its_id_where_the_routes_still_make_it() {
    let by = |label: &str| Grouping { by: By::Labels(vec![label.into()]), ..grouping() };
    let mut ward = Ward::new(escalating(Some(by("severity"))));
    ward.change(0, Opened, Warning);
    ward.pass(AFTER + WAIT);
    let ids: BTreeSet<_> = ward.groups.values().map(|it| (it.receiver.clone(), it.id.clone())).collect();
    assert_eq!(ids.iter().map(|it| it.0.as_str()).collect::<Vec<_>>(), ["boss", "ops"]);
    // It is worse by now, and the groups were of what it was.
    let row = IncidentRow { severity: Critical, ..ward.rows[0].clone() };
    let facts = facts(&row, None);
    let of = |by| escalating(Some(by)).route.expect("a route");
    for (receiver, id) in &ids {
        let labels = of(by("severity")).labels_of_group(id, &row, &facts);
        assert_eq!(labels, Some(BTreeMap::from([("severity".into(), "warning".into())])), "{receiver}");
        assert_eq!(of(by("target")).labels_of_group(id, &row, &facts), None, "{receiver}: other routes");
    }
}

#[test]
fn what_fires_outside_of_the_active_intervals_of_its_route_is_told_when_one_begins() {
    let mut policy = policy(None);
    policy.route.as_mut().expect("a route").active = vec!["day".into(), "fair".into()];
    let mut ward = Ward::new(policy);
    ward.change(0, Opened, Warning);
    ward.pass(5);
    assert_eq!(ward.kinds(), [""; 0]);
    assert_eq!(ward.decisions[0].reason, "none of the active_time_intervals of route holds");
    ward.policy.windows = vec![Window { name: "fair".into(), spans: vec![Span::default()] }];
    ward.pass(1);
    assert_eq!(ward.kinds(), ["incident.firing"], "one of them is enough");
    // Its end is told at any time.
    ward.policy.windows.clear();
    ward.change(0, Resolved, Warning);
    assert_eq!(ward.kinds(), ["incident.firing", "incident.resolved"]);
}

#[test]
fn what_clears_before_its_group_is_told_is_not_told_and_says_so() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.change(1, Opened, Warning);
    ward.pass(1);
    ward.change(0, Resolved, Warning);
    ward.pass(WAIT);
    assert_eq!(changes(&ward.outbox[0]), [(1, "incident.firing".into())]);
    let reasons: Vec<_> = ward.decisions.iter().map(|it| it.reason.as_str()).collect();
    let over = "Opened, by route; it was over before its group was told";
    assert_eq!(reasons, [over, "Opened, by route", "was not told that it fires"]);
    // All of it cleared: nobody hears anything.
    ward.change(2, Opened, Warning);
    ward.change(2, Resolved, Warning);
    ward.pass(REPEAT / 2);
    assert_eq!(ward.outbox.len(), 1);
    assert_eq!(ward.groups.len(), 1);
}

#[test]
fn a_group_is_told_again_while_something_of_it_fires_and_what_is_critical_more_often() {
    for (severity, repeat) in [(Warning, REPEAT), (Critical, REPEAT / 2)] {
        let mut ward = Ward::new(policy(Some(grouping())));
        ward.change(0, Opened, severity);
        ward.pass(WAIT + repeat - 1);
        assert_eq!(ward.kinds(), ["group.firing"]);
        ward.restart();
        ward.pass(1);
        assert_eq!(ward.kinds(), ["group.firing", "group.repeated"], "also when a restart was between");
        assert_eq!(changes(&ward.outbox[1]), [(0, "unchanged".into())]);
        // While it is silenced it is not, and after it at the next look.
        ward.silence(Some("check=pool.leak"));
        ward.pass(2 * repeat);
        assert_eq!(ward.outbox.len(), 2);
        ward.silence(None);
        ward.pass(INTERVAL);
        assert_eq!(ward.kinds()[2..], ["group.repeated"]);
        assert_eq!(ward.outbox[1].state, MessageState::Superseded, "nobody heard it, and the newer one says the same");
        ward.change(0, Resolved, severity);
        ward.pass(INTERVAL);
        assert_eq!(ward.kinds()[3..], ["group.resolved"]);
        ward.pass(2 * repeat);
        assert_eq!(ward.outbox.len(), 4, "nothing fires");
    }
}

/// Whatever comes first, whoever is told of the server with a message is spared its clients in the same one.
#[test]
fn of_a_server_and_its_clients_in_one_group_the_server_is_told() {
    for order in [[1, 4], [4, 1]] {
        let mut ward = Ward::new(policy(Some(Grouping { by: By::Labels(Vec::new()), ..grouping() })));
        for number in order {
            ward.change(number, Opened, Critical);
        }
        ward.pass(WAIT);
        assert_eq!(changes(&ward.outbox[0]), [(4, "incident.firing".into())], "{order:?}");
        ward.change(4, Resolved, Critical);
        ward.pass(INTERVAL + GRACE.as_secs().cast_signed());
        let told: Vec<_> = ward.outbox.iter().flat_map(changes).filter(|it| it.1 != "unchanged").collect();
        let client = (1, "incident.firing".to_owned());
        assert_eq!(told[1..], [(4, "incident.resolved".into()), client], "{order:?}: what is left is told");
    }
}

/// The route that was mute does not lead there any more, though another stands where it stood.
#[test]
fn what_a_mute_route_held_is_told_once_a_reload_leads_it_another_way() {
    let mut policy = policy(None);
    let top = policy.route.as_mut().expect("a route");
    let of_shop = Route {
        at: "route.routes[0]".into(),
        path: "{target=shop}".into(),
        matchers: vec!["target=~\".*shop\"".parse().expect("a matcher")],
        ..top.clone()
    };
    (top.mute, top.routes) = (Vec::new(), vec![of_shop]);
    let mut ward = Ward::new(policy);
    ward.mute(true);
    ward.change(0, Opened, Critical);
    ward.pass(5);
    assert_eq!(ward.kinds(), [""; 0]);
    let matcher = "target=~\".*till\"".parse().expect("a matcher");
    ward.policy.route.as_mut().expect("a route").routes[0].matchers = vec![matcher];
    ward.restart();
    ward.pass(1);
    assert_eq!(ward.kinds(), ["incident.firing"]);
}

/// One of two routes that lead there begins to speak while the other is mute: one that speaks is enough.
#[test]
fn what_two_mute_routes_held_is_told_when_one_of_them_speaks() {
    let mute = |name: &str| Window { name: name.into(), spans: vec![Span::default()] };
    for restarts in [false, true] {
        let mut policy = policy(None);
        let top = policy.route.as_mut().expect("a route");
        let child = |number: usize, window: &str| Route {
            at: format!("route.routes[{number}]"),
            path: format!("{{{window}}}"),
            goes_on: true,
            mute: vec![window.into()],
            ..top.clone()
        };
        (top.routes, top.mute) = (vec![child(0, "night"), child(1, "late")], Vec::new());
        let mut ward = Ward::new(policy);
        ward.policy.windows = vec![mute("night"), mute("late")];
        ward.pass(1);
        ward.change(0, Opened, Critical);
        ward.pass(5);
        assert_eq!(ward.kinds(), [""; 0]);
        ward.policy.windows = vec![mute("night")];
        if restarts {
            ward.restart();
        }
        ward.pass(1);
        assert_eq!(ward.kinds(), ["incident.firing"], "restarts: {restarts}");
        assert!(ward.decisions.last().is_some_and(|it| it.reason.ends_with("by route.routes[1]")));
    }
}

/// What is critical is silenced when it would have been repeated, and no more soon after.
#[test]
fn of_a_group_the_gravest_is_repeated_as_often_also_after_a_silence_of_it() {
    let told_at = |restarts: bool| {
        let mut ward = Ward::new(policy(Some(grouping())));
        ward.change(0, Opened, Warning);
        ward.change(1, Opened, Critical);
        ward.pass(WAIT + REPEAT / 2 - 5);
        ward.silence(Some("check=pool.exhausted"));
        ward.pass(10);
        if restarts {
            ward.restart();
        }
        ward.pass(3);
        assert_eq!(ward.kinds(), ["group.firing"]);
        ward.silence(None);
        ward.pass(1);
        ward.kinds().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let expected = ["group.firing", "group.repeated"];
    assert_eq!(told_at(false), expected);
    assert_eq!(told_at(true), expected, "a restart changes nothing of it");
}

/// It flaps and eases into a route that it did not lead to: whoever that is hears of it before it stops to flap.
#[test]
fn what_eases_while_it_flaps_is_told_to_whom_it_leads_then() {
    let mut policy = policy(None);
    let top = policy.route.as_mut().expect("a route");
    let of_pager = Route {
        at: "route.routes[0]".into(),
        path: "{severity=critical}".into(),
        receiver: "pager".into(),
        matchers: vec!["severity=critical".parse().expect("a matcher")],
        ..top.clone()
    };
    top.routes = vec![of_pager];
    policy.receivers.push(Receiver::new("pager"));
    let mut ward = Ward::new(policy);
    ward.hear(0, Opened, Critical, true);
    ward.pass(1);
    let heard = |ward: &Ward| ward.outbox.iter().map(|it| it.receiver.clone()).collect::<Vec<_>>();
    assert_eq!(heard(&ward), ["pager"]);
    ward.hear(0, Eased, Warning, true);
    assert_eq!(ward.decisions.last().map(|it| it.kind.as_str()), Some("incident.flapped"));
    ward.pass(1);
    assert_eq!(heard(&ward), ["pager", "ops"]);
    ward.hear(0, Worsened, Critical, true);
    ward.hear(0, Eased, Warning, true);
    ward.pass(5);
    assert_eq!(heard(&ward).len(), 2, "once");
}

#[test]
fn what_is_silenced_within_the_wait_is_held_back_and_told_with_its_group_afterwards() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.change(1, Opened, Warning);
    ward.silence(Some("check=pool.leak"));
    ward.pass(WAIT);
    assert_eq!(changes(&ward.outbox[0]), [(1, "incident.firing".into())]);
    assert!(ward.decisions[0].reason.contains("; silenced until"), "{:?}", ward.decisions[0]);
    assert!(!ward.decisions[0].told && ward.decisions[1].told);
    ward.silence(None);
    ward.pass(INTERVAL + 1);
    assert_eq!(changes(&ward.outbox[1]), [(0, "incident.firing".into()), (1, "unchanged".into())]);
}

#[test]
fn the_end_goes_to_the_group_that_heard_of_it_whatever_the_routes_say() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.pass(WAIT);
    let group = ward.outbox[0].incident.clone();
    ward.policy = policy(None);
    ward.restart();
    ward.change(0, Resolved, Warning);
    ward.pass(1);
    assert_eq!(ward.kinds(), ["group.firing", "group.resolved"], "there is nothing to wait for any more");
    assert_eq!(ward.outbox[1].incident, group);
    assert!(ward.groups.is_empty());

    // What gets worse by a route that does not group is told at once, in the thread that has heard of it, and ends there.
    ward.policy = policy(Some(grouping()));
    ward.restart();
    ward.change(0, Reopened, Warning);
    ward.pass(WAIT);
    ward.policy = policy(None);
    ward.restart();
    ward.change(0, Worsened, Critical);
    ward.restart();
    ward.pass(1);
    assert_eq!(changes(&ward.outbox[3]), [(0, "incident.worsened".into())]);
    ward.restart();
    ward.change(0, Resolved, Critical);
    ward.pass(1);
    assert_eq!(ward.kinds()[2..], ["group.firing", "group.firing", "group.resolved"]);
    assert!(ward.outbox.iter().all(|it| it.incident == group));
    assert!(ward.groups.is_empty());
}

#[test]
fn what_waits_for_a_receiver_that_is_gone_waits_for_a_week_and_the_record_says_so() {
    let mut ward = Ward::new(policy(Some(grouping())));
    // It does not want what fires here.
    let desk = || Receiver { min_severity: Severity::Critical, ..Receiver::new("desk") };
    ward.change(0, Opened, Warning);
    ward.change(2, Opened, Warning);
    ward.pass(WAIT);
    ward.change(0, Updated, Warning);
    ward.change(2, Resolved, Warning);
    ward.policy = Policy::from(vec![desk()]);
    ward.restart();
    ward.pass(INTERVAL);
    assert_eq!((ward.outbox.len(), ward.groups.len()), (2, 2));
    // It was taken out by mistake.
    ward.policy = policy(Some(grouping()));
    ward.restart();
    ward.pass(WAIT);
    assert_eq!(ward.kinds()[2..], ["group.updated", "group.resolved"]);

    ward.change(0, Resolved, Warning);
    ward.policy = Policy::from(vec![desk()]);
    ward.restart();
    for _ in 0..8 {
        ward.second += 24 * 3_600;
        ward.restart();
        ward.pass(1);
    }
    assert!(ward.outbox.len() == 4 && ward.groups.is_empty());
    let last = ward.decisions.iter().rfind(|it| it.receiver == "ops").expect("one");
    assert_eq!(last.reason, "Resolved; the receiver is not configured any more");
}

#[test]
fn what_fires_and_is_held_back_now_keeps_a_group_from_being_over() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.change(1, Opened, Warning);
    ward.pass(WAIT);
    ward.silence(Some("check=pool.leak"));
    ward.change(1, Resolved, Warning);
    ward.pass(INTERVAL);
    assert_eq!(ward.kinds()[1..], ["group.updated"]);
    let said = body(&ward.outbox[1]);
    assert_eq!((&said["group"]["status"], &said["group"]["held"]), (&"firing".into(), &1.into()));
    let summary = "1 firing (1 of them held back), 1 resolved: 1 pool.exhausted of pool:shop";
    assert_eq!(said["group"]["summary"], summary);
}

#[test]
fn a_clock_that_was_ahead_puts_off_neither_news_nor_repeats_for_long() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.second += 365 * 24 * 3_600;
    ward.change(0, Opened, Warning);
    ward.pass(WAIT);
    ward.change(1, Opened, Warning);
    ward.second -= 365 * 24 * 3_600;
    ward.pass(INTERVAL);
    assert_eq!(ward.kinds(), ["group.firing", "group.firing"]);
    ward.second -= 3_600;
    ward.pass(2 * REPEAT);
    assert_eq!(ward.kinds()[2..], ["group.repeated"], "with the time of now");
}

#[test]
fn news_in_the_thread_of_another_route_waits_no_longer_than_its_own_route_lets_it() {
    let mut ward = Ward::new(policy(Some(grouping())));
    let quick = Grouping { wait: seconds(1), ..grouping() };
    let route = ward.policy.route.as_mut().expect("a route");
    let matchers = vec!["severity=critical".parse().expect("a matcher")];
    let child = Route { path: "{}/{critical}".into(), matchers, grouping: Some(quick), ..route.clone() };
    route.routes.push(child);
    ward.change(0, Opened, Warning);
    ward.pass(WAIT);
    ward.ungrouped_at = ward.second; // messages of this thread may be closer than its own wait
    ward.change(0, Worsened, Critical);
    ward.pass(1);
    assert_eq!(changes(&ward.outbox[1]), [(0, "incident.worsened".into())]);
    assert_eq!(ward.outbox[0].incident, ward.outbox[1].incident);
}

#[test]
fn what_the_collector_says_of_itself_does_not_wait() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.rows[0].agent = "collector".into();
    ward.change(0, Opened, Critical);
    ward.pass(1);
    assert_eq!(ward.kinds(), ["group.firing"]);
}

#[test]
fn an_end_of_what_fires_again_is_not_told_and_its_receiver_goes_on_believing() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.pass(WAIT);
    ward.change(0, Resolved, Warning);
    // It is not configured for as long as the incident needs to come back.
    let before = std::mem::replace(&mut ward.policy, Policy::from(vec![Receiver::new("desk")]));
    ward.restart();
    ward.change(0, Reopened, Warning);
    ward.policy = before;
    ward.restart();
    ward.pass(INTERVAL + WAIT);
    let to_ops = |ward: &Ward| {
        ward.outbox.iter().filter(|it| it.receiver == "ops").map(|it| it.kind.clone()).collect::<Vec<_>>()
    };
    assert_eq!(to_ops(&ward), ["group.firing"], "it has heard that it fires, and it does");
    ward.change(0, Resolved, Warning);
    ward.pass(INTERVAL);
    assert_eq!(to_ops(&ward), ["group.firing", "group.resolved"]);
}

#[test]
fn a_route_whose_matchers_are_others_tells_again_what_was_told_before() {
    let mut ward = Ward::new(policy(Some(grouping())));
    ward.change(0, Opened, Warning);
    ward.pass(WAIT);
    ward.policy.route.as_mut().expect("a route").path = "{}/{env=\"production\"}".into();
    ward.restart();
    ward.pass(REPEAT);
    assert_eq!(ward.kinds(), ["group.firing", "group.repeated"]);
}

#[test]
fn each_by_itself_is_a_group_of_one() {
    let each = Grouping { by: By::Each, wait: Duration::ZERO, ..grouping() };
    let mut ward = Ward::new(policy(Some(each)));
    (0..4).for_each(|number| ward.change(number, Opened, Warning));
    ward.pass(1);
    assert_eq!(ward.kinds(), ["group.firing"; 4]);
    let groups: BTreeSet<_> = ward.outbox.iter().map(|it| &it.incident).collect();
    assert_eq!(groups.len(), 4);
}

/// What held it back was that it had gone away, and the collector was killed before it told anybody that it is back.
#[test]
fn what_is_back_is_told_at_once_after_a_restart() {
    let mut ward = Ward::new(escalating(Some(grouping())));
    ward.silence(Some("check=pool.exhausted"));
    ward.hear(1, Opened, Warning, true);
    ward.pass(WAIT);
    ward.hear(1, Resolved, Warning, false);
    ward.silence(None);
    ward.pass(1);
    ward.hear(1, Opened, Warning, false);
    ward.restart();
    ward.pass(WAIT + INTERVAL + 1);
    assert!(ward.is_told_to_fire(1));
}

/// The return, which nobody was told of while somebody had it, is not taken back by being better than it was.
#[test]
fn what_came_back_while_somebody_had_it_is_told_afterwards_though_it_eased() {
    let mut ward = Ward::new(escalating(Some(grouping())));
    ward.change(0, Opened, Critical);
    ward.pass(WAIT);
    ward.change(0, Resolved, Critical);
    ward.change(0, Reopened, Critical);
    ward.acknowledge(0, 16);
    ward.pass(16);
    ward.change(0, Eased, Warning);
    ward.pass(WAIT + INTERVAL);
    assert_eq!(ward.kinds(), ["group.firing"; 2]);
    assert!(ward.owed_again.is_empty());
}

#[test]
fn of_many_some_are_told_in_full_more_are_named_and_all_are_counted() {
    let all = Grouping { by: By::Labels(Vec::new()), ..grouping() };
    let policy = policy(Some(all));
    let mut state = State::default();
    let rows: Vec<_> = (0..1_500)
        .map(|number| IncidentRow {
            id: format!("01JCZZZZZZZZZZZZZZZZZZ{number:04}"),
            fingerprint: Fingerprint::of("default", "a", "db.connect", "postgres:db-1", Some(&number.to_string())),
            sub_key: Some(format!("app-{number}")),
            target: "postgres:db-1".into(),
            ..incident("db.connect", if number == 1_400 { Critical } else { Warning }, 1)
        })
        .collect();
    for row in &rows {
        let change = IncidentChange { incident: row.clone(), kind: Opened, reason: "began".into() };
        assert!(state.decide(&change, None, &policy, at(0))[0].message.is_none());
    }
    let find = |(_, id): &IncidentKey, _: Option<Fingerprint>| {
        let found = rows.iter().find(|it| it.id == *id);
        Ok::<_, Infallible>(found.map(|it| -> Found<'_> { (Sought::Known(it), None) }))
    };
    let Ok(flushes) = state.flush(&policy, at(WAIT), find);
    let said = body(flushes[0].message.as_ref().expect("told"));
    assert_eq!(said["group"]["summary"], "1500 firing: 1500 db.connect of postgres:db-1");
    assert_eq!(said["group"]["common"]["target"], "postgres:db-1", "what all have in common names the cause");
    assert!(said["group"]["common"].get("sub_key").is_none());
    let count = |list: &str| said[list].as_array().map_or(0, Vec::len);
    assert_eq!((count("incidents"), count("others"), &said["left_out"]), (100, 500, &900.into()));
    assert_eq!(said["incidents"][0]["incident"]["sub_key"], "app-1400", "what is critical is not left out");
    assert!(flushes[0].message.as_ref().is_some_and(|it| it.body.len() < 512 << 10));
}

#[derive(Debug, Clone, Copy)]
enum Outcome {
    Taken,
    /// Nobody knows whether it was heard.
    Uncertain,
    GivenUp,
}

#[derive(Debug, Clone)]
enum Step {
    /// A finding, and whether its return would be one too many.
    Hear(usize, ChangeKind, Severity, bool),
    /// It is over for good, whether it flaps or not.
    End(usize),
    Pass(i64),
    Restart,
    Silence(Option<usize>),
    Mute(bool),
    Group(bool),
    /// What became of an attempt with the oldest message that waits.
    Attempt(Outcome),
    /// Somebody takes an incident for some seconds.
    Acknowledge(usize, i64),
    Unacknowledge(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let severity = prop_oneof![Just(Warning), Just(Critical)];
    let kind = prop_oneof![Just(Opened), Just(Worsened), Just(Eased), Just(Updated), Just(Resolved), Just(Resolved)];
    prop_oneof![
        8 => (0..ROWS, kind, severity, any::<bool>())
            .prop_map(|(number, kind, severity, flaps)| Step::Hear(number, kind, severity, flaps)),
        1 => (0..ROWS).prop_map(Step::End),
        6 => (0..20_i64).prop_map(Step::Pass),
        2 => Just(Step::Restart),
        2 => proptest::option::of(0..3_usize).prop_map(Step::Silence),
        1 => any::<bool>().prop_map(Step::Mute),
        1 => any::<bool>().prop_map(Step::Group),
        2 => prop_oneof![Just(Outcome::Taken), Just(Outcome::Uncertain), Just(Outcome::GivenUp)].prop_map(Step::Attempt),
        2 => (0..ROWS, 1..40_i64).prop_map(|(number, seconds)| Step::Acknowledge(number, seconds)),
        1 => (0..ROWS).prop_map(Step::Unacknowledge),
    ]
}

/// What a person would have to say of a history, at each of its steps and once all is over.
fn lives_through(steps: &[Step]) {
    let mut ward = Ward::new(escalating(Some(grouping())));
    for step in steps {
        match *step {
            Step::Hear(number, wished, severity, flaps) => ward.hear(number, wished, severity, flaps),
            Step::End(number) if ward.fires(number) => ward.change(number, Resolved, Warning),
            Step::End(_) => (),
            Step::Pass(seconds) => ward.pass(seconds),
            Step::Restart => ward.restart(),
            Step::Silence(number) => {
                ward.silence(number.map(|it| ["check=pool.leak", "target=pool:till", "check=db.connect"][it]))
            }
            Step::Mute(begins) => ward.mute(begins),
            Step::Group(groups) => {
                let windows = std::mem::take(&mut ward.policy.windows);
                ward.policy = Policy { windows, ..escalating(groups.then(grouping)) };
                ward.ungrouped_at = ward.second;
                ward.restart();
            }
            Step::Acknowledge(number, seconds) if ward.fires(number) => ward.acknowledge(number, seconds),
            Step::Acknowledge(..) => (),
            Step::Unacknowledge(number) => ward.unacknowledge(number),
            Step::Attempt(outcome) => {
                let Some(row) = ward.outbox.iter_mut().find(|it| it.state == MessageState::Waiting) else { continue };
                match outcome {
                    Outcome::Taken => row.state = MessageState::Delivered,
                    Outcome::Uncertain => row.uncertain += 1,
                    Outcome::GivenUp => row.state = MessageState::Dead,
                }
                if row.state != MessageState::Waiting {
                    let row = row.clone();
                    ward.state.settled(&row);
                }
            }
        }
        for row in &ward.decisions {
            let message = ward.outbox.iter().find(|it| Some(&it.id) == row.message.as_ref());
            assert_eq!(row.told, message.is_some(), "told is what is queued: {:?}", row);
            // The store tells them apart by that.
            let group = row.in_group.as_ref().and_then(|id| ward.groups.get(id));
            let waits = group.is_some_and(|it| it.message.is_some() && it.message == row.message);
            assert!(!(waits && row.told), "what its group waits with is not told: {:?}", row);
            if let Some(id) = row.in_group.as_ref().filter(|_| !row.told) {
                let group = ward.groups.get(id).expect("what waits has its group");
                assert_eq!(&group.message, &row.message, "and waits for its next message");
                assert!(group.due_at.is_some());
            }
        }
        for row in ward.rows.iter().filter(|it| it.status == Status::Firing) {
            for receiver in &ward.policy.receivers {
                let why = ward.decisions.iter().rfind(|it| it.incident == row.id && it.receiver == receiver.name);
                assert!(
                    why.is_some_and(|it| !it.reason.is_empty()),
                    "nobody knows why {} hears of it or not",
                    receiver.name
                );
            }
        }
        for number in 0..ROWS {
            let waited = ward.second - ward.steady_since[number] > WAIT + INTERVAL;
            let held = ward.is_held(number);
            if waited && ward.fires(number) && !held {
                assert!(ward.is_told_to_fire(number), "{number} fires, and nobody knows");
                assert!(!ward.owed_again.contains(&number), "nobody has {number}, and nobody is told again");
            }
            // What is held back is looked at every five seconds.
            let slack = 2 * (WAIT + INTERVAL) + 6;
            let is_long = ward.second - ward.steady_since[number] > slack;
            let is_due = ward.nobodys_since[number].is_some_and(|(since, _)| ward.second - since > AFTER + slack);
            if is_long && is_due && ward.fires(number) && !held {
                assert!(
                    ward.nobodys_since[number].is_some_and(|(_, times)| times == 1),
                    "the boss knows nothing of {number}"
                );
            }
            if waited && !ward.fires(number) {
                assert!(!ward.is_told_to_fire(number), "{number} is over, and somebody believes it");
                assert!(!ward.believes("boss", number), "{number} is over, and the boss believes it");
            }
        }
    }
    ward.policy.windows.clear();
    ward.silence(None);
    (0..ROWS).for_each(|number| ward.unacknowledge(number));
    (0..ROWS).for_each(|number| {
        if ward.fires(number) {
            ward.change(number, Resolved, Warning)
        }
    });
    ward.pass(WAIT + INTERVAL + 1);
    assert!((0..ROWS).all(|number| !ward.is_told_to_fire(number) && !ward.believes("boss", number)));
    assert!(ward.escalations.is_empty());
    assert!(ward.groups.is_empty() && ward.withheld.is_empty(), "{:?}", ward.groups);
}

proptest! {
    #[test]
    fn whoever_is_told_with_a_group_hears_in_time_and_hears_the_end(steps in proptest::collection::vec(step(), 1..60)) {
        lives_through(&steps);
    }
}

/// Histories that broke a promise once.
#[test]
fn what_went_wrong_once_does_not_any_more() {
    let hear = |kind, severity| Step::Hear(0, kind, severity, false);
    lives_through(&[
        hear(Opened, Warning),
        Step::Pass(3),
        hear(Resolved, Warning),
        hear(Opened, Warning),
        Step::Acknowledge(0, 16),
        Step::Pass(1),
        Step::Pass(15),
        hear(Eased, Warning),
        Step::Pass(14),
    ]);
    let regroups = [Step::Pass(16), Step::Pass(8), Step::Group(false), Step::Pass(15), Step::Pass(11)];
    lives_through(&[&[hear(Opened, Warning)], &regroups[..], &[Step::Restart, Step::Pass(10)]].concat());
}
