//! What commands wrote right before a reload is noticed all the same.

use tickbird_shared::Status;

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
