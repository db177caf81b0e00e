//! What commands wrote right before a reload is noticed all the same.

use tickbird_shared::Status;
use tickbird_shared::levels::{FORM, Levels};

use super::*;
use crate::alert::Receiver;
use crate::store::{Bounds, IncidentFilter, Writer};
use crate::testbed::{AGENT, TENANT, Testbed, clock};

#[tokio::test(flavor = "multi_thread")]
async fn what_fires_of_an_agent_that_was_denied_right_before_a_reload_is_over() {
    let mut bed = Testbed::new(vec![Receiver::new("ops")]);
    bed.begins("pool:shop").await;
    let mut elsewhere = Writer::open(&bed.store()).expect("opens");
    let transaction = elsewhere.transaction().expect("begins");
    assert!(transaction.deny_agent(TENANT, AGENT, clock()).expect("writes"));
    transaction.commit().expect("commits");
    let policy = vec![Receiver::new("ops")].into();
    let rules = Rules { policy, fleet: Vec::new(), bounds: Bounds::default(), abandoned: Vec::new() };
    assert_eq!(bed.ledger.reload(rules).await.expect("answers"), Ok(()));
    bed.ledger.tick().await.expect("is there");
    for _ in 0..2 {
        bed.ledger.presence(Vec::new()).await.expect("answers");
    }
    let filter = IncidentFilter { tenant: TENANT.into(), limit: 9, ..IncidentFilter::default() };
    let found = elsewhere.rows().incidents(&filter).expect("reads");
    let of: Vec<_> = found.iter().map(|it| (it.status, it.resolved_reason.as_deref())).collect();
    assert_eq!(of, [(Status::Resolved, Some("agent denied"))], "{found:?}");
    drop(elsewhere);
    bed.ends().await;
}

/// A disk that was away, or a copy of an old one: what it says of the host was true then.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_buffer_that_was_found_again_says_of_its_host_is_history() {
    let mut bed = Testbed::new(vec![Receiver::new("ops")]);
    let host = async |bed: &Testbed| {
        let read = |rows: crate::store::Rows<'_>| Ok(rows.agent(TENANT, AGENT)?.expect("is there").host);
        bed.readers.read(read).await.expect("reads")
    };
    bed.describes(None, 3_600, "first").await;
    assert_eq!(host(&bed).await, "first", "of the only life that is known");
    let levels = Levels { form: FORM, observed_at: clock(), pools: Vec::new(), left_out: 0, servers: Vec::new() };
    let mut bed = bed.restart(vec![Receiver::new("ops")]).await;
    bed.describes(None, 60, "second").await;
    bed.tells(levels).await;
    bed.describes(Some(('A', 2)), 1_800, "third").await;
    assert_eq!(host(&bed).await, "second");
    bed.describes(None, 0, "fourth").await;
    assert_eq!(host(&bed).await, "fourth");
    bed.ends().await;
}
