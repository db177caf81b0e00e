//! A canary goes the whole way of a finding, again and again: through the buffer, the wire and the collector to a receiver. Whoever waits
//! for it there knows that a real one would come through.
//!
//! It is a finding like any other, so that nothing on its way treats it better. Each costs one append, one sync and some 300 bytes.

use std::borrow::Cow;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::value::to_raw_value;
use tickbird_shared::batch::Record;
use tickbird_shared::protocol::{CANARY_CHECK, CANARY_EVERY};
use tickbird_shared::{Change, Finding, Fingerprint, Lane, Severity, Status};

use super::{Watcher, host_name};
use crate::identity::Identity;

/// Between two canaries, unless the configuration says otherwise: a hundredth of what an agent sends anyway.
pub const EVERY: Duration = Duration::from_secs(60);

/// When the next one goes.
#[derive(Debug)]
pub(super) struct Canaries {
    /// None when none goes.
    every: Option<Duration>,
    due: Duration,
}

impl Canaries {
    /// The first one goes in the second half of an interval, at `phase` (0 to 1) of it: while a host starts there is enough to do, and a
    /// fleet that starts at once does not sing at once. That none goes is said at once.
    pub(super) fn begin(every: Option<Duration>, now: Duration, phase: f64) -> Self {
        Self { every, due: every.map_or(now, |every| now + every.mul_f64(phase.mul_add(0.5, 0.5))) }
    }

    /// When there is something to do.
    pub(super) const fn due_at(&self) -> Duration {
        self.due
    }

    /// Whether one is to go now, or the word that none goes. Those whose time was slept through do not go later.
    fn take(&mut self, now: Duration) -> bool {
        let is_due = now >= self.due;
        if is_due {
            self.due = self.every.map_or(Duration::MAX, |every| now + every);
        }
        is_due
    }

    /// The word that none goes is said until it is taken: else one would be waited for.
    fn was_refused(&mut self, now: Duration) {
        if self.every.is_none() {
            self.due = now + EVERY;
        }
    }
}

impl Watcher {
    /// Other intervals hold from here on.
    pub(super) fn canaries_anew(&mut self, phase: f64) {
        self.canaries = Canaries::begin(self.config.canary, self.clock.now(), phase);
    }

    /// Lets a canary go when one is due. One that the buffer does not take is no loss: it is missed where it was waited for, which is what it
    /// is for.
    pub(super) async fn let_canary_go(&mut self) {
        let (Some(shipping), Some(identity)) = (&self.shipping, &self.identity) else { return };
        if !self.canaries.take(self.clock.now()) {
            return;
        }
        let canary = canary(identity, self.canaries.every, super::wall());
        let Ok(encoded) = serde_json::to_vec(&Record::Finding(canary)) else { return };
        if let Err(error) = shipping.buffer.append(Lane::Urgent, vec![encoded]).await {
            tracing::debug!(%error, "a canary was not buffered");
            self.canaries.was_refused(self.clock.now());
        }
    }
}

fn canary(identity: &Identity, every: Option<Duration>, now: Timestamp) -> Finding<'static> {
    let card = identity.card();
    let target = format!("agent:{}", host_name());
    let seconds = every.map(|it| it.as_secs().max(1));
    let evidence = serde_json::json!({ CANARY_EVERY: seconds });
    Finding {
        fingerprint: Fingerprint::of(&card.tenant, &card.agent, CANARY_CHECK, &target, None),
        check: CANARY_CHECK.into(),
        target: target.into(),
        sub_key: None,
        status: if every.is_some() { Status::Firing } else { Status::Resolved },
        severity: Severity::Info,
        change: if every.is_some() { Change::Began } else { Change::Cleared },
        summary: if every.is_some() { "a canary" } else { "no canary comes from here" }.into(),
        reason: "canary.interval".into(),
        advice: None,
        evidence: Cow::Owned(to_raw_value(&evidence).expect("a number serialises")),
        since: now,
        observed_at: now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn one_goes_each_interval_and_a_host_that_slept_sends_one() {
        let mut canaries = Canaries::begin(Some(s(60)), s(100), 0.0);
        assert_eq!(canaries.due_at(), s(130));
        assert!(!canaries.take(s(129)) && canaries.take(s(130)) && !canaries.take(s(189)) && canaries.take(s(190)));
        assert!(canaries.take(s(10_000)) && !canaries.take(s(10_001)) && canaries.due_at() == s(10_060));
        assert_eq!(Canaries::begin(Some(s(60)), s(100), 1.0).due_at(), s(160));
    }

    #[test]
    fn that_none_goes_is_said_once() {
        let mut canaries = Canaries::begin(None, s(100), 0.7);
        assert!(canaries.take(s(100)) && !canaries.take(s(100_000)));
        canaries.was_refused(s(100_000));
        assert!(
            !canaries.take(s(100_059)) && canaries.take(s(100_060)) && !canaries.take(s(999_999)),
            "until it is taken"
        );
    }
}
