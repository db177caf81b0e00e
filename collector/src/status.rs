//! The collector's own health, part by part. Pure: each part is judged from what its stage says of itself.
//!
//! `failed` means that findings cannot be taken or incidents cannot be kept: somebody else should be asked. `degraded`
//! means that it does its work and a person should look: a receiver that is away must not stop agents from reporting.

use serde_json::{Value, json};
use tickbird_shared::Timestamp;

use crate::aggregate::{Judged, Queue, Strain};
use crate::ledger::Health;
use crate::notify::{BreakerState, ReceiverStatus};
use crate::pki::life::{Kept, Life, Standing};
use crate::store::StoreError;

/// How a part is. The order is that of badness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// It works.
    Ok,
    /// It works, and a person should look.
    Degraded,
    /// It does not work.
    Failed,
}

impl Condition {
    /// `ok`, `degraded` or `failed`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
        }
    }
}

/// How one part is, and what there is to say about it. Holds nothing that a stranger should not read.
#[derive(Debug, Clone)]
pub struct Part {
    condition: Condition,
    detail: Value,
}

/// All parts.
#[derive(Debug, Clone)]
pub struct Report {
    /// Whether the store can be read.
    pub store: Part,
    /// Whether there is room for it.
    pub disk: Part,
    /// Whether what comes in is committed.
    pub ledger: Part,
    /// Whether it keeps pace.
    pub queue: Part,
    /// Whether people can be told.
    pub receivers: Part,
    /// Whether our own certificates last.
    pub certificates: Part,
}

impl Report {
    /// The worst of all parts.
    pub fn condition(&self) -> Condition {
        self.parts().iter().map(|(_, part)| part.condition).max().unwrap_or(Condition::Ok)
    }

    /// The document of `/readyz`.
    pub fn document(&self) -> Value {
        let part = |part: &Part| json!({ "status": part.condition.as_str(), "detail": part.detail });
        let parts: serde_json::Map<_, _> =
            self.parts().into_iter().map(|(name, it)| (name.to_owned(), part(it))).collect();
        json!({ "status": self.condition().as_str(), "parts": parts })
    }

    const fn parts(&self) -> [(&'static str, &Part); 6] {
        [
            ("store", &self.store),
            ("disk", &self.disk),
            ("ledger", &self.ledger),
            ("queue", &self.queue),
            ("receivers", &self.receivers),
            ("certificates", &self.certificates),
        ]
    }
}

/// Judges the store by its answer to a question; none came when there is none.
pub fn store(answer: Option<&Result<(), StoreError>>) -> Part {
    match answer {
        Some(Ok(())) => Part { condition: Condition::Ok, detail: Value::Null },
        Some(Err(error)) => Part { condition: Condition::Failed, detail: error.to_string().into() },
        None => Part { condition: Condition::Failed, detail: "the store does not answer".into() },
    }
}

/// Judges the room on the disk: a low one is degraded from its first second on, before anybody is told. That it is full is said
/// by the ledger.
pub fn disk(strain: Option<&Strain>) -> Part {
    let disk = strain.map(|it| &it.disk);
    let room = disk.and_then(|it| it.room);
    let detail = json!({ "free_bytes": room.map(|it| it.free), "low_under_bytes": disk.map(|it| it.bound) });
    Part { condition: of(disk.map(|it| it.judged)), detail }
}

/// Judges what waits for the ledger. The figure is of now; the rest is as old as the last look.
pub fn queue(queue: Queue, strain: Option<&Strain>) -> Part {
    let detail = json!({ "waiting": queue.waiting, "places": queue.places });
    Part { condition: of(strain.map(|it| it.queue.judged)), detail }
}

fn of(judged: Option<Judged>) -> Condition {
    if judged.is_some_and(|it| it.is_strained()) { Condition::Degraded } else { Condition::Ok }
}

/// Judges the ledger by its last transaction.
pub fn ledger(health: Health) -> Part {
    let condition = if health.failing.is_some() { Condition::Failed } else { Condition::Ok };
    let failing = health.failing.map(|why| why.code());
    Part { condition, detail: json!({ "failing": failing, "store_bytes_in_use": health.bytes_in_use }) }
}

/// Judges delivery by the breakers: one that is not closed is degraded, and so is one whose letters do not reach everybody. How many messages to each were given up is told beside it, if
/// the store says so: each is an incident, and past.
pub fn receivers(receivers: &[ReceiverStatus], dead: Option<&[u64]>) -> Part {
    let left_out = |it: &ReceiverStatus| it.left_out.as_ref().map_or(0, Vec::len);
    let is_bad = |it: &ReceiverStatus| it.breaker != BreakerState::Closed || left_out(it) > 0;
    let condition = if receivers.iter().any(is_bad) { Condition::Degraded } else { Condition::Ok };
    let detail = receivers.iter().enumerate().map(|(index, it)| {
        json!({
            "name": it.name, "breaker": it.breaker.as_str(), "failures": it.failures, "delivered_at": it.delivered_at,
            "dead": dead.and_then(|it| it.get(index)), "recipients_left_out": left_out(it),
        })
    });
    Part { condition, detail: detail.collect() }
}

/// Judges our certificates: one that has ended failed; one that should have been renewed, or files that cannot be used, are
/// degraded. Why is in the log, since it names files.
pub fn certificates(kept: &Kept, now: Timestamp) -> Part {
    let judge = |it: &Life| match it.validity.standing(now) {
        Standing::Ended => Condition::Failed,
        Standing::Soon | Standing::Urgent => Condition::Degraded,
        Standing::Good => Condition::Ok,
    };
    let kept_well = if kept.failure.is_some() { Condition::Degraded } else { Condition::Ok };
    let condition = kept.lives.iter().map(judge).fold(kept_well, Condition::max);
    let detail = kept
        .lives
        .iter()
        .map(|it| json!({ "name": it.name, "expires_at": it.validity.ends, "status": judge(it).as_str() }));
    Part { condition, detail: detail.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::{Look, Settings, Strains};
    use crate::ledger::Unavailable;
    use crate::pki::Validity;
    use crate::store::Room;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + day * 86_400).expect("in range")
    }

    fn receiver(breaker: BreakerState) -> ReceiverStatus {
        ReceiverStatus {
            name: "ops".into(),
            address: "hooks.example.org:443".into(),
            breaker,
            is_away: None,
            failures: 5,
            last_error: Some("answered 500".into()),
            delivered_at: None,
            left_out: None,
        }
    }

    #[test]
    fn a_receiver_that_is_away_degrades_and_a_store_that_is_full_fails() {
        let report = |failing, breaker, expires| Report {
            store: store(Some(&Ok(()))),
            disk: disk(None),
            queue: queue(Queue { waiting: 0, places: 1_024 }, None),
            ledger: ledger(Health { failing, bytes_in_use: 1 }),
            receivers: receivers(&[receiver(breaker)], Some(&[3])),
            certificates: certificates(
                &Kept {
                    lives: vec![Life { name: "server", validity: Validity { begins: at(-365), ends: at(expires) } }],
                    failure: None,
                },
                at(0),
            ),
        };
        let of = |failing, breaker, expires| report(failing, breaker, expires).condition();
        assert_eq!(of(None, BreakerState::Closed, 90), Condition::Ok);
        assert_eq!(of(None, BreakerState::Open, 90), Condition::Degraded);
        let partly = ReceiverStatus {
            left_out: Some(vec![("oncall@example.org".into(), 550)]),
            ..receiver(BreakerState::Closed)
        };
        let partly = receivers(&[partly], None);
        assert_eq!((partly.condition, &partly.detail[0]["recipients_left_out"]), (Condition::Degraded, &1.into()));
        assert_eq!(of(None, BreakerState::Closed, 13), Condition::Degraded);
        assert_eq!(of(None, BreakerState::Open, 0), Condition::Failed);
        assert_eq!(of(Some(Unavailable::Full), BreakerState::Closed, 90), Condition::Failed);
        let shown = report(Some(Unavailable::Full), BreakerState::Open, 90).document().to_string();
        assert!(shown.contains("store_full") && !shown.contains("example.org"), "{shown}");
        assert!(shown.contains("\"dead\":3"), "{shown}");
    }

    #[test]
    fn a_low_disk_and_a_full_queue_degrade_with_their_figures_and_a_store_that_does_not_answer_fails() {
        let room = |free| Some(Room { free, size: 400 << 30 });
        let queue_of = |waiting| Queue { waiting, places: 1_024 };
        let strain = |free, waiting| {
            let mut strains = Strains::new(Settings::default());
            let look = Look { room: room(free), queue: queue_of(waiting), receivers: Vec::new() };
            strains.take(look, std::time::Duration::ZERO, at(0))
        };
        let [well, low, full] = [strain(2 << 30, 819), strain(1 << 29, 0), strain(2 << 30, 820)];
        let parts = |it: &Strain| [disk(Some(it)).condition, queue(it.queue.queue, Some(it)).condition];
        assert_eq!(parts(&well), [Condition::Ok; 2]);
        assert_eq!(parts(&low), [Condition::Degraded, Condition::Ok]);
        assert_eq!(parts(&full), [Condition::Ok, Condition::Degraded]);
        assert_eq!(disk(Some(&low)).detail, json!({ "free_bytes": 1 << 29, "low_under_bytes": 1 << 30 }));
        assert_eq!(queue(full.queue.queue, Some(&full)).detail, json!({ "waiting": 820, "places": 1_024 }));
        assert_eq!((disk(None).condition, store(None).condition), (Condition::Ok, Condition::Failed));
    }
}
