//! Records that an agent could have made: minutes of pools, and faults that come and go.

use std::borrow::Cow;

use rand::Rng;
use rand::rngs::StdRng;
use serde_json::value::{RawValue, to_raw_value};
use tickbird_shared::batch::{Record, Summary};
use tickbird_shared::{Change, Finding, Fingerprint, Severity, Status, Timestamp};

const CHECK: &str = "pool.idle_in_transaction";

/// `count` minutes of as many pools; the numbers are random, the names always the same.
pub(crate) fn summaries(count: usize, random: &mut StdRng, now: Timestamp) -> Vec<Vec<u8>> {
    let minute = Timestamp::from_second(now.as_second() / 60 * 60).unwrap_or(now);
    let mut summary = |number| {
        let (max, last): (u32, u32) = (random.random_range(1..100), random.random_range(0..100));
        let sum = f64::from(max) * 60.0 * random.random::<f64>();
        let record = Record::Summary(Summary {
            measure: Cow::Borrowed("pool.open"),
            unit: Cow::Borrowed("count"),
            target: target(number).into(),
            minute,
            min: 0.0,
            max: f64::from(max),
            sum,
            count: 60,
            last: f64::from(last.min(max)),
        });
        serde_json::to_vec(&record).unwrap_or_default()
    };
    (0..count).map(&mut summary).collect()
}

/// `count` findings, each of a pool of its own, that fire in one turn and are over in the next.
pub(crate) fn findings(count: usize, turn: u64, (tenant, agent): (&str, &str), now: Timestamp) -> Vec<Vec<u8>> {
    let fires = turn.is_multiple_of(2);
    let (status, change) = if fires { (Status::Firing, Change::Began) } else { (Status::Resolved, Change::Cleared) };
    let evidence: Box<RawValue> =
        to_raw_value(&serde_json::json!({ "backend": turn })).expect("a number and a word are JSON");
    let finding = |number| {
        let target = target(number);
        let record = Record::Finding(Finding {
            fingerprint: Fingerprint::of(tenant, agent, CHECK, &target, None),
            check: CHECK.into(),
            target: target.into(),
            sub_key: None,
            status,
            severity: Severity::Warning,
            change,
            summary: "3 sessions idle in transaction".into(),
            reason: "31 s is over 30 s".into(),
            advice: None,
            evidence: Cow::Borrowed(&*evidence),
            since: now,
            observed_at: now,
        });
        serde_json::to_vec(&record).unwrap_or_default()
    };
    (0..count).map(finding).collect()
}

fn target(number: usize) -> String {
    format!("pool:app-{number}>10.0.0.5:5432/db?user=app")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn every_record_is_one_that_an_agent_could_send() {
        let now = Timestamp::from_second(1_800_000_000).expect("a time");
        let mut random = StdRng::seed_from_u64(1);
        for bytes in summaries(5, &mut random, now) {
            assert!(matches!(serde_json::from_slice(&bytes), Ok(Record::Summary(it)) if it.last <= it.max));
            assert!((180..=260).contains(&bytes.len()), "{} bytes", bytes.len());
        }
        let all = findings(3, 0, ("default", "a-1"), now);
        for bytes in &all {
            let Ok(Record::Finding(it)) = serde_json::from_slice(bytes) else { panic!("no finding") };
            assert_eq!((it.fault(), it.status), (None, Status::Firing));
        }
        assert_ne!(all[0], all[1], "each is of a pool of its own");
        let next = findings(1, 1, ("default", "a-1"), now);
        let Ok(Record::Finding(over)) = serde_json::from_slice(&next[0]) else { panic!("no finding") };
        assert_eq!(over.status, Status::Resolved);
    }
}
