//! What falls due at once and does not fit into one turn is gone on with, and does not wait for the next second.

use std::time::Duration;

use tickbird_shared::{Change, Severity};

use super::*;
use crate::alert::Receiver;
use crate::store::SilenceRow;
use crate::testbed::{TENANT, Testbed, clock};

/// Two turns, and as many as may fire of one agent.
const HELD: usize = 1_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_silence_of_many_is_over_without_a_tick_after_its_end() {
    let mut bed = Testbed::new(vec![Receiver::new("ops")]);
    let now = clock();
    let silence = "sil_01JCZZZZZZZZZZZZZZZZZZZZZ0".to_owned();
    let row = SilenceRow {
        tenant: TENANT.into(),
        id: silence.clone(),
        matchers: vec!["check=\"http.status\"".into()],
        author: "ana".into(),
        reason: "a move".into(),
        created_at: now,
        starts_at: now,
        ends_at: now.saturating_add(Duration::from_secs(3_600)).expect("in range"),
        over_at: None,
    };
    assert_eq!(bed.ledger.silence(Silencing::Begin(Box::new(row))).await.ok(), Some(true));
    for number in 0..HELD {
        bed.finds("http.status", &format!("endpoint:http://web/{number}"), Severity::Warning, Change::Began).await;
    }
    let ends = Silencing::End { tenant: TENANT.into(), silence };
    assert_eq!(bed.ledger.silence(ends).await.ok(), Some(true));
    // There is no other event that could give it another turn.
    let all = async {
        while bed.outbox().await.len() < HELD {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("goes on");
    bed.ends().await;
}
