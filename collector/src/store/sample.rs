//! A store with something in every table, and what a store holds, for the tests of damage.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::prelude::{BASE64_STANDARD, Engine};
use rusqlite::Connection;
use rusqlite::types::Value;
use tickbird_shared::levels::{FORM, Levels};
use tickbird_shared::{Change, Epoch, Fingerprint, Labels, Lane, Severity, Status, Timestamp};

use super::*;

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).expect("in range")
}

pub(super) fn epoch(number: u32) -> Epoch {
    Epoch::try_from(format!("01JD7Z5W{number:018}")).expect("a ULID")
}

pub(super) fn agent(number: u32) -> AgentRow {
    AgentRow {
        tenant: "default".into(),
        id: format!("agent-{number:04}"),
        host: format!("web-{number}"),
        version: Some("0.1.0".into()),
        system: None,
        token_labels: Labels::default(),
        own_labels: Labels::default(),
        targets: vec![format!("pool:shop-{number}/main")],
        ephemeral: false,
        enrolled_at: at(0),
        certificate_expires_at: at(1_000_000),
        denied_at: None,
        forget_at: None,
        last_seen_at: Some(at(60)),
        stopped_at: None,
    }
}

pub(super) fn incident(number: u32) -> IncidentRow {
    IncidentRow {
        tenant: "default".into(),
        id: format!("01JINCIDENT{number:015}"),
        fingerprint: Fingerprint::of("default", "agent-0001", "pool.leak", &number.to_string(), None),
        agent: "agent-0001".into(),
        check: "pool.leak".into(),
        target: number.to_string(),
        sub_key: None,
        status: if number.is_multiple_of(3) { Status::Firing } else { Status::Resolved },
        severity: Severity::Warning,
        summary: "two sessions are held".into(),
        advice: Some("see the evidence".into()),
        evidence: "{}".into(),
        evidence_lost: false,
        since: at(1),
        opened_at: at(1),
        updated_at: at(2),
        resolved_at: (!number.is_multiple_of(3)).then(|| at(3)),
        resolved_reason: None,
        occurrences: 1,
        state_epoch: 1,
        state_since: at(1),
        seen_epoch: Some(epoch(1)),
        seen_at: at(2),
        flap: None,
    }
}

/// A store with some hundred pages of everything that a collector keeps.
pub(super) fn filled(path: &Path) {
    let mut writer = Writer::create(path).expect("creates");
    let transaction = writer.transaction().expect("begins");
    for number in 0..120 {
        transaction.put_agent(&agent(number)).expect("writes");
        for lane in [Lane::Urgent, Lane::Bulk] {
            let row = LaneRow {
                tenant: "default".into(),
                agent: format!("agent-{number:04}"),
                epoch: epoch(number),
                lane,
                through: 7,
                last_first: 3,
                last_digest: [7; 32],
                updated_at: at(7),
                start: None,
            };
            transaction.put_lane(&row).expect("writes");
        }
        let edge = Edge {
            pools: ["pool:shop/main>10.0.0.5:5432".to_owned()].into(),
            applications: ["shop".to_owned()].into(),
            names: ["db.internal:5432".to_owned()].into(),
            seen_at: at(2),
        };
        let row = DependencyRow {
            tenant: "default".into(),
            agent: format!("agent-{number:04}"),
            edges: [(format!("db.internal:{number}"), edge)].into(),
            seen_at: at(2),
        };
        transaction.put_dependencies(&row).expect("writes");
        let row = incident(number);
        transaction.put_incident(&row).expect("writes");
        let decision = DecisionRow {
            tenant: "default".into(),
            incident: row.id.clone(),
            receiver: "ops".into(),
            state_epoch: 1,
            told: true,
            kind: "incident.firing".into(),
            reason: "began".into(),
            decided_at: at(2),
            message: Some(format!("msg_{number:026}")),
            in_group: None,
        };
        assert!(transaction.add_decision(&decision).expect("writes"));
        let silence = SilenceRow {
            tenant: "default".into(),
            id: format!("sil_{number:026}"),
            matchers: vec!["team=\"shop\"".into()],
            author: "anna".into(),
            reason: "they move".into(),
            created_at: at(1),
            starts_at: at(1),
            ends_at: at(9),
            over_at: None,
        };
        assert!(transaction.add_silence(&silence).expect("writes"));
        let withheld = WithheldRow {
            tenant: "default".into(),
            incident: row.id.clone(),
            receiver: "pager".into(),
            kind: "incident.firing".into(),
            held_by: silence.id,
        };
        transaction.put_withheld(&withheld).expect("writes");
        let acknowledgement = AcknowledgementRow {
            tenant: "default".into(),
            incident: row.id.clone(),
            id: format!("ack_{number:026}"),
            owner: "anna".into(),
            note: Some("we are on it".into()),
            severity: Severity::Warning,
            created_at: at(2),
            ends_at: at(9),
            taken_at: Some(at(3)),
            over_why: None,
            over_at: None,
        };
        transaction.acknowledge(&acknowledgement).expect("writes");
        let escalation = EscalationRow {
            tenant: "default".into(),
            incident: row.id.clone(),
            receiver: "night".into(),
            since: at(2),
            steps: BTreeMap::from([("1 boss".into(), "told".into())]),
        };
        transaction.put_escalation(&escalation).expect("writes");
        let heard = HeardRow {
            tenant: "default".into(),
            incident: row.id.clone(),
            receiver: "page".into(),
            labels: BTreeMap::from([("severity".into(), "warning".into())]),
        };
        transaction.put_heard(&heard).expect("writes");
        let mut returned = incident(number);
        returned.occurrences = 2;
        returned.flap = Some(Box::new(FlapRow {
            returns: vec![at(2)],
            since: Some(at(2)),
            calm_since: None,
            worst: Some(Severity::Warning),
        }));
        transaction.put_incident(&returned).expect("writes");
        let group = GroupRow {
            tenant: "default".into(),
            id: format!("grp_{number:032}"),
            receiver: "desk".into(),
            route: "route.routes[1]".into(),
            labels: BTreeMap::from([("target".into(), "pool:shop".into())]),
            message: Some(format!("msg_{:026}", 1_000 + number)),
            due_at: Some(at(5)),
            told_at: None,
        };
        transaction.put_group(&group).expect("writes");
        let message = OutboxRow {
            tenant: "default".into(),
            id: format!("msg_{number:026}"),
            receiver: "ops".into(),
            incident: row.id,
            kind: "incident.firing".into(),
            form: Some("webhook".into()),
            body: vec![b'x'; 300],
            decided_at: at(2),
            state: MessageState::Waiting,
            attempts: 0,
            uncertain: 0,
            next_attempt_at: at(2),
            settled_at: None,
            said: None,
        };
        transaction.add_message(&message).expect("writes");
    }
    for number in 0..600_u32 {
        let finding = FindingRow {
            id: 0,
            tenant: "default".into(),
            agent: format!("agent-{:04}", number % 120),
            fingerprint: Fingerprint::of("default", "agent-0001", "pool.leak", "shop", None),
            check: "pool.leak".into(),
            target: "pool:shop/main".into(),
            sub_key: None,
            status: Status::Firing,
            severity: Severity::Warning,
            change: Change::Began,
            summary: format!("finding {number}"),
            reason: "held".into(),
            advice: None,
            evidence: format!("{{\"text\":\"{}\"}}", "e".repeat(number as usize % 700)),
            since: at(1),
            observed_at: at(1),
            received_at: at(1),
            incident: None,
        };
        transaction.add_finding(&finding).expect("writes");
    }
    for number in 0..40_u32 {
        let body = BodyRow {
            tenant: "default".into(),
            agent: format!("agent-{number:04}"),
            epoch: epoch(number),
            lane: Lane::Bulk,
            first: 1,
            through: 7,
            received_at: at(number.into()),
            body: vec![b'b'; 200 * number as usize],
        };
        transaction.add_body(&body).expect("writes");
    }
    (0..40).for_each(|number| few(&transaction, number));
    transaction.prove_writable(at(100)).expect("writes");
    transaction.commit().expect("commits");
    writer.close().expect("closes");
}

/// One row of each table that has few.
fn few(transaction: &Transaction<'_>, number: u32) {
    let (tenant, agent) = ("default".to_owned(), format!("agent-{number:04}"));
    let token = TokenRow {
        tenant: tenant.clone(),
        id: format!("token-{number:02}"),
        hash: [number.to_le_bytes()[0]; 32],
        labels: Labels::default(),
        ephemeral: false,
        uses: 5,
        used: 1,
        created_at: at(0),
        expires_at: at(9_000),
        revoked_at: None,
    };
    transaction.add_token(&token).expect("writes");
    let api_token = ApiTokenRow {
        tenant: tenant.clone(),
        name: format!("person-{number}"),
        hash: [number.to_le_bytes()[0]; 32],
        role: "viewer".into(),
        created_at: at(0),
    };
    assert!(transaction.add_api_token(&api_token).expect("writes"));
    let loss = LossRow {
        tenant: tenant.clone(),
        agent: agent.clone(),
        epoch: epoch(number),
        lane: Lane::Bulk,
        from: 8,
        to: 11,
        count: 4,
        outcome: "evicted".into(),
        received_at: at(3),
    };
    transaction.add_loss(&loss).expect("writes");
    let levels = Levels { form: FORM, observed_at: at(3), pools: Vec::new(), left_out: number, servers: Vec::new() };
    let levels = LevelsRow {
        tenant: tenant.clone(),
        agent: agent.clone(),
        epoch: epoch(number),
        seen_at: at(3),
        received_at: at(3),
        levels,
    };
    transaction.put_levels(&levels).expect("writes");
    let used = UseRow {
        tenant: tenant.clone(),
        server: "system/7312".into(),
        application: format!("shop-{number}"),
        day: at(0),
        samples: 7,
        peak: 5,
        peak_open: 9,
        counts: vec![(0, 4), (5, 3)],
    };
    transaction.put_pool_use(&used).expect("writes");
    let excess = ExcessRow { tenant, agent, limit: "rate_limited".into(), times: 3, last_at: at(4) };
    transaction.add_excess(&excess).expect("writes");
    let tally = Tally { received: 70, committed: 60, duplicate: 7, refused: 3, lost: 4 };
    transaction.add_tally(&format!("tenant-{number}"), tally).expect("writes");
}

/// What each table holds, row by row in words: without what a start writes, and without the checksums.
pub(super) fn contents(path: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let connection = Connection::open(path).expect("opens");
    let mut tables = connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").expect("asks");
    let tables = tables.query_map([], |row| row.get::<_, String>(0)).expect("asks");
    let tables = tables.map(|name| name.expect("reads")).filter(|name| name != "pulse");
    tables.map(|table| (table.clone(), rows(&connection, &table))).collect()
}

fn rows(connection: &Connection, table: &str) -> BTreeSet<String> {
    let mut query = connection.prepare(&format!("SELECT * FROM {table} NOT INDEXED")).expect("asks");
    let columns: Vec<usize> =
        query.column_names().enumerate().filter_map(|(at, name)| (name != "sum").then_some(at)).collect();
    let rows = query.query_map([], |row| {
        let word = |at: &usize| match row.get(*at)? {
            Value::Blob(bytes) => Ok(BASE64_STANDARD.encode(bytes)),
            value => Ok(format!("{value:?}")),
        };
        let words = columns.iter().map(word).collect::<rusqlite::Result<Vec<_>>>()?.join(" ");
        // An older schema has fewer columns at the end.
        Ok(words.trim_end_matches(" Null").to_owned())
    });
    rows.expect("asks").map(|row| row.unwrap_or_else(|error| format!("a row that cannot be read: {error}"))).collect()
}
