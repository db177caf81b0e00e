//! What is kept, what goes, and in which order it is read.

use std::collections::BTreeMap;
use std::time::Duration;

use tempfile::TempDir;
use tickbird_shared::{Change, Epoch, Fingerprint, Lane, Severity, Status, Timestamp};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

struct Scene {
    room: TempDir,
    writer: Writer,
}

impl Scene {
    fn new() -> Self {
        let room = tempfile::tempdir().expect("a directory");
        let writer = Writer::create(&room.path().join("store.db")).expect("creates");
        Self { room, writer }
    }

    fn write<T>(&mut self, act: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>) -> T {
        let transaction = self.writer.transaction().expect("begins");
        let done = act(&transaction).expect("writes");
        transaction.commit().expect("commits");
        done
    }

    fn summaries(&self, filter: FindingFilter) -> Vec<String> {
        let filter = FindingFilter { tenant: "default".into(), limit: 100, ..filter };
        self.writer.rows().findings(&filter).expect("reads").into_iter().map(|it| it.summary).collect()
    }
}

fn day(number: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + number * 24 * 3600).expect("in range")
}

fn epoch() -> Epoch {
    Epoch::try_from("01JD7Z5W0000000000000000AA".to_owned()).expect("a ULID")
}

fn finding(agent: &str, summary: &str, received_at: Timestamp) -> FindingRow {
    FindingRow {
        id: 0,
        tenant: "default".into(),
        agent: agent.into(),
        fingerprint: Fingerprint::of("default", agent, "pool.leak", "shop", None),
        check: "pool.leak".into(),
        target: "shop".into(),
        sub_key: None,
        status: Status::Firing,
        severity: Severity::Warning,
        change: Change::EvidenceLost,
        summary: summary.into(),
        reason: "r".into(),
        advice: Some("a".into()),
        evidence: "{\"pid\":1}".into(),
        since: received_at,
        observed_at: received_at,
        received_at,
        incident: None,
    }
}

fn incident(id: &str, resolved_at: Option<Timestamp>) -> IncidentRow {
    IncidentRow {
        tenant: "default".into(),
        id: id.into(),
        fingerprint: Fingerprint::of("default", "a-1", id, "shop", None),
        agent: "a-1".into(),
        check: "pool.leak".into(),
        target: "shop".into(),
        sub_key: Some("0".into()),
        status: if resolved_at.is_some() { Status::Resolved } else { Status::Firing },
        severity: Severity::Critical,
        summary: "s".into(),
        advice: None,
        evidence: "{}".into(),
        evidence_lost: false,
        since: day(0),
        opened_at: day(0),
        updated_at: day(0),
        resolved_at,
        resolved_reason: resolved_at.map(|_| "cleared".into()),
        occurrences: 1,
        state_epoch: 1,
        state_since: day(0),
        seen_epoch: Some(epoch()),
        seen_at: day(0),
        flap: None,
    }
}

fn message(id: &str, incident: &str) -> OutboxRow {
    OutboxRow {
        tenant: "default".into(),
        id: id.into(),
        receiver: "ops".into(),
        incident: incident.into(),
        kind: "incident.firing".into(),
        form: Some("webhook".into()),
        body: b"{}".to_vec(),
        decided_at: day(0),
        state: MessageState::Waiting,
        attempts: 0,
        uncertain: 0,
        next_attempt_at: day(0),
        settled_at: None,
        said: None,
    }
}

fn decision(incident: &str, state_epoch: u64, reason: &str) -> DecisionRow {
    DecisionRow {
        tenant: "default".into(),
        incident: incident.into(),
        receiver: "ops".into(),
        state_epoch,
        told: true,
        kind: "incident.firing".into(),
        reason: reason.into(),
        decided_at: day(0),
        message: None,
        in_group: None,
    }
}

#[test]
fn rows_come_back_as_they_were_written() {
    let mut scene = Scene::new();
    let (mut row, open) = (finding("a-1", "say \"leak\"", day(1)), incident("01A", None));
    row.id = scene.write(|it| it.add_finding(&row));
    scene.write(|it| it.put_incident(&open));
    let rows = scene.writer.rows();
    let all = FindingFilter { tenant: "default".into(), limit: 9, ..FindingFilter::default() };
    assert_eq!(rows.findings(&all).expect("reads"), [row]);
    assert_eq!(rows.incident("default", "01A").expect("reads"), Some(open));
    assert_eq!(rows.incident("other", "01A").expect("reads"), None, "another tenant sees nothing");
}

#[test]
fn pages_follow_each_other_without_a_gap_while_new_findings_arrive() {
    let mut scene = Scene::new();
    for number in 0..5 {
        scene.write(|it| it.add_finding(&finding("a-1", &number.to_string(), day(0))));
    }
    assert_eq!(scene.summaries(FindingFilter::default()), ["4", "3", "2", "1", "0"]);
    let all = FindingFilter { tenant: "default".into(), limit: 2, ..FindingFilter::default() };
    let first = scene.writer.rows().findings(&all).expect("reads");
    scene.write(|it| it.add_finding(&finding("a-2", "new", day(0))));
    let next = FindingFilter { before: first.last().map(|it| it.id), ..FindingFilter::default() };
    assert_eq!(scene.summaries(next), ["2", "1", "0"]);
    let of = |agent: &str| FindingFilter { agent: Some(agent.into()), ..FindingFilter::default() };
    assert_eq!(scene.summaries(of("a-2")), ["new"]);
    let critical = FindingFilter { severity: Some(Severity::Critical), ..of("a-1") };
    assert!(scene.summaries(critical).is_empty());
}

#[test]
fn what_is_too_old_goes_and_what_fires_or_waits_stays() {
    let mut scene = Scene::new();
    scene.write(|it| {
        it.add_finding(&finding("a-1", "old", day(0)))?;
        it.add_finding(&finding("a-1", "new", day(20)))?;
        it.put_incident(&incident("firing", None))?;
        it.put_incident(&incident("ended", Some(day(0))))?;
        it.put_incident(&incident("untold", Some(day(0))))?;
        it.add_decision(&decision("ended", 1, "began"))?;
        it.add_message(&message("msg_1", "untold"))
    });
    let bounds = Bounds { findings: 30 * DAY, incidents: 30 * DAY, ..Bounds::default() };
    let kept = scene.write(|it| it.keep_within(&bounds, day(40)));
    assert_eq!((kept.expired, kept.evicted, kept.more), (3, 0, false));
    assert_eq!(scene.summaries(FindingFilter::default()), ["new"]);
    let rows = scene.writer.rows();
    let is_there = |id: &str| rows.incident("default", id).expect("reads").is_some();
    assert_eq!((is_there("firing"), is_there("ended"), is_there("untold")), (true, false, true));
    assert!(rows.decisions("default", "ended").expect("reads").is_empty());
}

#[test]
fn over_the_bound_on_bytes_the_oldest_go_bodies_first_in_slices() {
    let mut scene = Scene::new();
    let body = |first: u64| BodyRow {
        tenant: "default".into(),
        agent: "a-1".into(),
        epoch: epoch(),
        lane: Lane::Bulk,
        first,
        through: first,
        received_at: day(0),
        body: vec![7; 20_000],
    };
    scene.write(|it| {
        (1..=100).try_for_each(|first| it.add_body(&body(first)))?;
        it.add_finding(&finding("a-1", "kept", day(0)))?;
        it.put_incident(&incident("firing", None))
    });
    assert!(scene.writer.rows().bytes_in_use().expect("reads") > 2_000_000);
    let small = Bounds { bytes: 1_000_000, ..Bounds::default() };
    let kept = scene.write(|it| it.keep_within(&small, day(0)));
    assert_eq!((kept.evicted, kept.more), (100, true));
    assert!(scene.writer.rows().bytes_in_use().expect("reads") < 1_000_000);
    let kept = scene.write(|it| it.keep_within(&small, day(0)));
    assert_eq!((kept.evicted, kept.more), (0, false), "what fits now stays");
    assert_eq!(scene.summaries(FindingFilter::default()), ["kept"]);
    let tiny = Bounds { bytes: 1, ..Bounds::default() };
    for _ in 0..5 {
        scene.write(|it| it.keep_within(&tiny, day(0)));
    }
    assert!(scene.writer.rows().incident("default", "firing").expect("reads").is_some(), "whatever the bound");
}

#[test]
fn a_state_is_decided_once_and_the_first_decision_stands() {
    let mut scene = Scene::new();
    scene.write(|it| it.put_incident(&incident("01A", None)));
    assert!(scene.write(|it| it.add_decision(&decision("01A", 1, "began"))));
    assert!(!scene.write(|it| it.add_decision(&decision("01A", 1, "again"))));
    assert!(scene.write(|it| it.add_decision(&decision("01A", 2, "worsened"))));
    let rows = scene.writer.rows();
    let reasons = |of: Vec<DecisionRow>| of.into_iter().map(|it| it.reason).collect::<Vec<_>>();
    assert_eq!(reasons(rows.decisions("default", "01A").expect("reads")), ["began", "worsened"]);
    assert_eq!(reasons(rows.told(day(0)).expect("reads")), ["worsened"], "what the receiver believes");
}

#[test]
fn a_receiver_believes_what_it_was_told_of_and_not_told_to_be_over() {
    let mut scene = Scene::new();
    let of = |id: &str, epoch: u64, kind: &str, told: bool| DecisionRow {
        kind: kind.into(),
        told,
        ..decision(id, epoch, kind)
    };
    let decisions = [
        of("01A", 1, "incident.firing", true),
        of("01A", 2, "incident.worsened", false),
        of("01B", 1, "incident.firing", true),
        of("01B", 2, "incident.resolved", true),
        of("01C", 1, "incident.firing", false),
        of("01D", 1, "incident.resolved", true),
        of("01D", 2, "incident.firing", true),
    ];
    scene.write(|it| {
        ["01A", "01B", "01C", "01D"].into_iter().try_for_each(|id| it.put_incident(&incident(id, None)))?;
        it.put_incident(&incident("01E", Some(day(1))))
    });
    for row in decisions.iter().chain([&of("01E", 1, "incident.firing", true)]) {
        assert!(scene.write(|it| it.add_decision(row)));
    }
    let believes = |who: &str| -> Vec<String> {
        let found = scene.writer.rows().believed_by(who).expect("reads");
        found.into_iter().map(|it| it.id).collect()
    };
    assert_eq!(believes(&decisions[0].receiver), ["01A", "01D"], "neither over, nor told to be, nor never told");
    assert!(believes("nobody").is_empty());
}

#[test]
fn messages_of_one_incident_leave_in_order_and_do_not_hold_up_others() {
    let mut scene = Scene::new();
    scene.write(|it| {
        it.add_message(&OutboxRow { attempts: 1, next_attempt_at: day(9), ..message("msg_1", "01A") })?;
        it.add_message(&message("msg_2", "01A"))?;
        // Decided by a clock that was ahead, and not tried yet.
        it.add_message(&OutboxRow { next_attempt_at: day(9), ..message("msg_3", "01B") })
    });
    let beside = |scene: &Scene, partly: &[&str]| {
        let (rows, partly) = (scene.writer.rows(), partly.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>());
        let due = rows.outbox_due("ops", day(1), Duration::from_secs(30 * 86_400), 10, &partly).expect("reads");
        due.into_iter().map(|it| it.id).collect::<Vec<_>>()
    };
    let due = |scene: &Scene| beside(scene, &[]);
    assert_eq!(due(&scene), ["msg_3"]);
    assert_eq!(beside(&scene, &["msg_1"]), ["msg_2", "msg_3"], "some have the first");
    assert_eq!(beside(&scene, &["msg_1", "msg_2"]), ["msg_3"], "and the second, which the others get after it");
    let waits = scene.writer.rows().outbox_waits("ops", &["msg_1".into(), "msg_9".into()]).expect("reads");
    assert_eq!(waits, ["msg_1"]);
    assert!(scene.write(|it| it.supersede_message("default", "msg_1", day(1))));
    assert_eq!(due(&scene), ["msg_2", "msg_3"]);
    scene.write(|it| it.update_message(&OutboxRow { uncertain: 1, ..message("msg_2", "01A") }));
    assert!(!scene.write(|it| it.supersede_message("default", "msg_2", day(1))), "it may have been heard");
}

#[test]
fn what_is_told_anew_each_time_gives_up_what_waits_and_nothing_else() {
    let mut scene = Scene::new();
    scene.write(|it| {
        // It may have been heard, and is told anew all the same.
        it.add_message(&OutboxRow { attempts: 2, uncertain: 1, ..message("msg_1", "canary") })?;
        it.add_message(&message("msg_2", "01A"))?;
        it.add_message(&OutboxRow { tenant: "other".into(), ..message("msg_3", "canary") })
    });
    let waiting = |scene: &Scene| {
        let rows = scene.writer.rows().outbox_waiting().expect("reads");
        rows.into_iter().map(|it| it.id).collect::<Vec<_>>()
    };
    scene.write(|it| it.supersede_all_of(Some("default"), "canary", day(1)));
    assert_eq!(waiting(&scene), ["msg_2", "msg_3"]);
    scene.write(|it| it.supersede_all_of(None, "canary", day(1)));
    assert_eq!(waiting(&scene), ["msg_2"]);
    scene.write(|it| it.delete_message("default", "msg_1").and_then(|()| it.delete_message("default", "msg_2")));
    let is_there = |id| scene.writer.rows().message("default", id).expect("reads").is_some();
    assert_eq!((is_there("msg_1"), is_there("msg_2")), (false, true), "what waits is not deleted");
}

#[test]
fn what_a_clock_that_was_ahead_put_off_is_due_once_the_clock_is_right() {
    let mut scene = Scene::new();
    let hour = Duration::from_secs(3_600);
    let later = |seconds: u64| day(1).saturating_add(Duration::from_secs(seconds)).expect("in range");
    scene.write(|it| {
        it.add_message(&OutboxRow { attempts: 3, next_attempt_at: day(4), ..message("msg_1", "01A") })?;
        it.add_message(&OutboxRow { attempts: 3, next_attempt_at: later(3_600), ..message("msg_2", "01B") })?;
        it.add_message(&OutboxRow { attempts: 3, next_attempt_at: later(3_601), ..message("msg_3", "01C") })
    });
    let due = |now: Timestamp| {
        let rows = scene.writer.rows().outbox_due("ops", now, hour, 10, &[]).expect("reads");
        rows.into_iter().map(|it| it.id).collect::<Vec<_>>()
    };
    assert_eq!(due(day(1)), ["msg_1", "msg_3"], "no wait is longer than an hour");
    assert_eq!(due(later(3_600)), ["msg_1", "msg_2"]);
    assert_eq!(scene.writer.rows().outbox_next_at("ops", day(1)).expect("reads"), Some(later(3_600)));
}

#[test]
fn a_tenant_has_a_thousand_silences_that_have_not_ended() {
    let mut scene = Scene::new();
    let silence = |number: u32| SilenceRow {
        tenant: "default".into(),
        id: format!("sil_{number:05}"),
        matchers: vec!["team=db".into()],
        author: "anna".into(),
        reason: "they move".into(),
        created_at: day(1),
        starts_at: day(1),
        ends_at: day(2),
        over_at: None,
    };
    let taken = scene.write(|it| {
        let taken = (0..=MAX_SILENCES).map(|number| it.add_silence(&silence(number)));
        taken.collect::<Result<Vec<_>, _>>()
    });
    assert_eq!(taken.iter().filter(|it| **it).count(), MAX_SILENCES as usize);
    assert_eq!(taken.last(), Some(&false));
    scene.write(|it| it.silence_over("default", "sil_00000", day(2)));
    assert!(scene.write(|it| it.add_silence(&silence(9_999))), "one has ended");
    assert!(
        scene.write(|it| it.add_silence(&SilenceRow { tenant: "other".into(), ..silence(1) })),
        "of another tenant"
    );
}

#[test]
fn only_what_was_given_up_and_not_followed_waits_again() {
    let mut scene = Scene::new();
    let dead = |id: &str, incident: &str| OutboxRow {
        state: MessageState::Dead,
        attempts: 9,
        uncertain: 2,
        settled_at: Some(day(8)),
        next_attempt_at: day(7),
        ..message(id, incident)
    };
    let of = |id: &str, incident: &str, state| OutboxRow { state, ..message(id, incident) };
    scene.write(|it| {
        it.add_message(&dead("msg_1", "01A"))?;
        it.add_message(&dead("msg_2", "01A"))?;
        it.add_message(&dead("msg_3", "01B"))?;
        it.add_message(&of("msg_4", "01B", MessageState::Delivered))?;
        // Of another receiver, and one that says nothing because another says it.
        it.add_message(&OutboxRow { receiver: "pager".into(), ..of("msg_5", "01A", MessageState::Delivered) })?;
        it.add_message(&of("msg_6", "01A", MessageState::Superseded))
    });
    let listed = |scene: &Scene, receiver: Option<&str>| {
        let rows = scene.writer.rows().dead_letters("default", receiver, 10).expect("reads");
        rows.into_iter().map(|it| it.id).collect::<Vec<_>>()
    };
    assert_eq!(listed(&scene, None), ["msg_1", "msg_2", "msg_3"]);
    assert_eq!(listed(&scene, Some("pager")), [""; 0]);
    let mut resend = |id: &str| scene.write(|it| it.resend("default", id, day(9)));
    assert_eq!(resend("msg_3"), Resent::Followed("msg_4".into()), "the receiver would believe what is over");
    assert_eq!(resend("msg_4"), Resent::NotDead(MessageState::Delivered));
    assert_eq!(resend("msg_0"), Resent::Unknown);
    assert_eq!(resend("msg_1"), Resent::Waits);
    assert_eq!(resend("msg_2"), Resent::Waits, "in order, behind the one before it");
    let row = scene.writer.rows().message("default", "msg_1").expect("reads").expect("is there");
    let waits = OutboxRow { attempts: 9, uncertain: 2, next_attempt_at: day(9), ..message("msg_1", "01A") };
    assert_eq!(row, waits);
    assert_eq!(listed(&scene, None), ["msg_3"]);
    let count = |receiver| scene.writer.rows().outbox_dead(receiver).expect("reads");
    assert_eq!((count("ops"), count("pager")), (1, 0));
}

#[test]
fn what_was_heard_of_a_message_is_kept_in_order_and_bounded() {
    let mut row = message("msg_1", "01A");
    assert_eq!((row.answer(), row.last_error(), row.failures().len()), (None, None, 0));
    for words in ["answered 500", "answered 500"] {
        row.hears(words);
    }
    assert_eq!(row.last_error(), Some("answered 500"), "its words alone");
    for words in ["answered 50", "no answer\nwithin 400 ms", "answered 500"] {
        row.hears(words);
    }
    let failures = ["answered 500 (2 times)", "answered 50", "no answer within 400 ms", "answered 500"];
    assert_eq!((row.answer(), row.last_error(), row.failures()), (None, Some("answered 500"), failures.to_vec()));
    row.hears("answered 204");
    row.state = MessageState::Delivered;
    assert_eq!((row.answer(), row.last_error(), row.failures()), (Some("answered 204"), None, failures.to_vec()));
    for number in 0..1_000 {
        row.hears(&format!("{} {number}", "long ".repeat(200)));
    }
    assert!(row.said.as_ref().is_some_and(|it| it.len() < 3_000 && it.lines().count() <= 8), "{row:?}");
}

/// Of what was given up only the newest word is true.
#[test]
fn what_is_true_no_more_is_not_sent_again() {
    let mut scene = Scene::new();
    let dead = |id: &str, incident: &str, kind: &str| OutboxRow {
        state: MessageState::Dead,
        kind: kind.into(),
        ..message(id, incident)
    };
    scene.write(|it| {
        it.add_message(&dead("msg_1", "01A", "incident.firing"))?;
        it.add_message(&dead("msg_2", "01A", "incident.resolved"))?;
        it.add_message(&dead("msg_3", "group", "group.firing"))?;
        it.add_message(&dead("msg_4", "group", "group.resolved"))?;
        it.add_message(&dead("msg_5", "group", "group.firing"))
    });
    let mut resend = |id: &str| scene.write(|it| it.resend("default", id, day(9)));
    assert_eq!(resend("msg_1"), Resent::Outdated(Some("msg_2".into())));
    assert_eq!(resend("msg_4"), Resent::Outdated(Some("msg_5".into())), "it fires again");
    assert_eq!(resend("msg_5"), Resent::Outdated(None), "nothing of the group fires");
    assert_eq!(resend("msg_2"), Resent::Waits);
    assert_eq!(resend("msg_1"), Resent::Followed("msg_2".into()));
    let group = GroupRow {
        tenant: "default".into(),
        id: "group".into(),
        receiver: "ops".into(),
        route: "route".into(),
        labels: BTreeMap::new(),
        message: None,
        due_at: None,
        told_at: Some(day(1)),
    };
    scene.write(|it| it.put_group(&group));
    assert_eq!(scene.write(|it| it.resend("default", "msg_5", day(9))), Resent::Waits);
}

#[test]
fn a_rolled_back_transaction_leaves_nothing_and_a_commit_of_another_process_is_noticed() {
    let mut scene = Scene::new();
    let path = scene.room.path().join("store.db");
    let transaction = scene.writer.transaction().expect("begins");
    transaction.add_finding(&finding("a-1", "lost", day(0))).expect("writes");
    drop(transaction);
    assert!(scene.summaries(FindingFilter::default()).is_empty());
    assert!(!scene.writer.changed_elsewhere().expect("reads"));

    let mut other = Writer::open(&path).expect("opens");
    let transaction = other.transaction().expect("begins");
    transaction.add_finding(&finding("a-1", "theirs", day(0))).expect("writes");
    transaction.commit().expect("commits");
    assert!(scene.writer.changed_elsewhere().expect("reads"));
    assert!(!scene.writer.changed_elsewhere().expect("reads"), "said once");
}

#[test]
fn the_store_is_its_owners_and_a_missing_one_is_said_to_be_missing() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    let path = scene.room.path().join("store.db");
    assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
    assert!(matches!(Writer::create(&path), Err(StoreError::Create { .. })), "never overwritten");
    let missing = scene.room.path().join("other.db");
    assert!(matches!(Writer::open(&missing), Err(StoreError::Missing { .. })));
    assert!(!missing.exists());
}

#[tokio::test]
async fn readers_see_what_is_committed_newest_first() {
    let mut scene = Scene::new();
    let readers = Readers::open(&scene.room.path().join("store.db")).expect("opens");
    scene.write(|it| it.put_incident(&incident("01A", None)));
    scene.write(|it| it.put_incident(&incident("01B", Some(day(1)))));
    let list = async |status| {
        let filter = IncidentFilter { tenant: "default".into(), status, limit: 9, ..IncidentFilter::default() };
        let rows = readers.read(move |rows| rows.incidents(&filter)).await.expect("reads");
        rows.into_iter().map(|it| it.id).collect::<Vec<_>>()
    };
    assert_eq!(list(None).await, ["01B", "01A"]);
    assert_eq!(list(Some(Status::Firing)).await, ["01A"]);
    assert_eq!(list(Some(Status::Resolved)).await, ["01B"]);
    readers.ping().await.expect("answers");
}

#[test]
fn a_command_is_not_undone_by_a_ledger_that_has_not_read_it_yet() {
    let mut scene = Scene::new();
    let as_the_ledger_knows_it = AgentRow {
        tenant: "default".into(),
        id: "a-1".into(),
        host: "web-1".into(),
        version: None,
        system: None,
        token_labels: tickbird_shared::Labels::default(),
        own_labels: tickbird_shared::Labels::default(),
        targets: Vec::new(),
        ephemeral: false,
        enrolled_at: day(0),
        certificate_expires_at: day(30),
        denied_at: None,
        forget_at: None,
        last_seen_at: None,
        stopped_at: None,
    };
    scene.write(|it| it.put_agent(&as_the_ledger_knows_it));
    scene.write(|it| it.deny_agent("default", "a-1", day(1)));
    let inventory = AgentRow { host: "web-2".into(), last_seen_at: Some(day(2)), ..as_the_ledger_knows_it };
    scene.write(|it| it.put_agent(&inventory));
    let stored = scene.writer.rows().agent("default", "a-1").expect("reads").expect("it is there");
    assert_eq!((stored.host.as_str(), stored.denied_at), ("web-2", Some(day(1))));
}

#[test]
fn levels_and_use_are_kept_until_they_are_replaced_or_too_old() {
    use tickbird_shared::levels::{FORM, Levels};
    let mut scene = Scene::new();
    let levels = |agent: &str, left_out: u32, at: Timestamp| LevelsRow {
        tenant: "default".into(),
        agent: agent.into(),
        epoch: epoch(),
        seen_at: at,
        received_at: at,
        levels: Levels { form: FORM, observed_at: at, pools: Vec::new(), left_out, servers: Vec::new() },
    };
    let used = |at: Timestamp| UseRow {
        tenant: "default".into(),
        server: "system/7312".into(),
        application: "shop".into(),
        day: at,
        samples: 7,
        peak: 5,
        peak_open: 9,
        counts: vec![(0, 4), (5, 3)],
    };
    scene.write(|it| it.put_levels(&levels("a-1", 1, day(0))));
    scene.write(|it| it.put_levels(&levels("a-1", 2, day(3))));
    scene.write(|it| it.put_levels(&levels("a-2", 0, day(0))));
    scene.write(|it| it.put_pool_use(&used(day(0))));
    scene.write(|it| it.put_pool_use(&used(day(40))));
    assert_eq!(scene.writer.rows().pool_use(day(40)).expect("reads"), [used(day(40))]);
    assert_eq!(scene.writer.rows().levels().expect("reads"), [levels("a-1", 2, day(3)), levels("a-2", 0, day(0))]);

    scene.write(|it| it.keep_within(&Bounds::default(), day(3)));
    assert_eq!(scene.writer.rows().levels().expect("reads"), [levels("a-1", 2, day(3))]);
    scene.write(|it| it.delete_agent("default", "a-1"));
    assert_eq!(scene.writer.rows().levels().expect("reads"), []);
    scene.write(|it| it.keep_within(&Bounds::default(), day(41)));
    assert_eq!(scene.writer.rows().pool_use(day(0)).expect("reads"), [used(day(40))]);
}

/// Each step of the copy has another commit behind it; without one view to the end it would begin anew each time.
#[test]
fn a_copy_of_a_store_that_is_written_all_the_time_is_of_one_moment_and_whole() {
    let mut scene = Scene::new();
    let long = "x".repeat(30_000);
    scene.write(|it| {
        for index in 0..1_500 {
            it.add_finding(&finding("a", &format!("{index} {long}"), day(1)))?;
        }
        Ok(())
    });
    let (from, to) = (scene.room.path().join("store.db"), scene.room.path().join("copy.db"));
    let mut shares = Vec::new();
    let schema = copy(&from, &to, |share| {
        shares.push(share);
        scene.write(|it| it.add_finding(&finding("b", "meanwhile", day(2))));
    })
    .expect("copied");
    assert!(shares.len() > 1 && shares.is_sorted(), "{shares:?}");
    let contents = verify(&to).expect("whole");
    assert_eq!((contents.schema, contents.findings), (schema, 1_500), "nothing that came meanwhile");

    let mut bytes = std::fs::read(&to).expect("read");
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 64].fill(0xff);
    std::fs::write(&to, bytes).expect("written");
    assert!(matches!(verify(&to), Err(StoreError::Damaged { .. })));
    assert!(matches!(copy(&scene.room.path().join("none.db"), &to, |_| ()), Err(StoreError::Missing { .. })));
}
