//! How long certificates live, and what is due when. Pure: the caller says what time it is.
//!
//! ```text
//! authority  ├────────────────────────────────┼───────┼───────┤            one life
//!                                   next: ├───┼───────┼────────────── …
//!                                      published   signs   the old one ends
//! ```
//!
//! Everything is renewed at two thirds of its life. A new authority is published for half of what the old one has left
//! before it signs anything, so that every agent has heard of it with its own renewal.

use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tickbird_shared::Timestamp;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// An agent whose certificate ended this long ago, and not longer, may still renew it.
pub const RETURNS_WITHIN: Duration = DAY.saturating_mul(90);
/// Certificates begin before they are made, for agents whose clock is behind; a short-lived one by a tenth of its life.
const BACKDATED: Duration = Duration::from_secs(3600);
/// A certificate that was not renewed is worth a look so long before its end, or in the last fifth of its life.
const SOON: Duration = DAY.saturating_mul(30);
/// It is urgent so long before, or in the last fifteenth.
const URGENT: Duration = DAY.saturating_mul(7);

/// How long what the authority signs is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lives {
    /// An agent's certificate.
    pub agent: Duration,
    /// The collector's own.
    pub server: Duration,
    /// The authority itself.
    pub authority: Duration,
}

impl Default for Lives {
    fn default() -> Self {
        Self { agent: DAY * 30, server: DAY * 825, authority: DAY * 3_650 }
    }
}

/// From when to when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Its first moment.
    pub begins: Timestamp,
    /// Its last.
    pub ends: Timestamp,
}

/// A certificate of the collector itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// `server`, `authority`.
    pub name: &'static str,
    /// From when to when it is valid.
    pub validity: Validity,
}

/// The collector's own certificates, and why they stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Each of them.
    pub lives: Vec<Life>,
    /// Why the last look could not renew or read what it should.
    pub failure: Option<String>,
}

/// How a certificate stands that should have been renewed in time. The order is that of badness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Nothing needs doing.
    Good,
    /// It should have been renewed; there is time.
    Soon,
    /// There is little time.
    Urgent,
    /// Its life is over.
    Ended,
}

impl Validity {
    /// Of a certificate that is made now and not to outlive `until`. Whole seconds, as certificates have them.
    pub fn new(now: Timestamp, life: Duration, until: Option<Timestamp>) -> Self {
        let ends = now.saturating_add(life).unwrap_or(Timestamp::MAX).min(until.unwrap_or(Timestamp::MAX));
        let begins = now.saturating_sub(BACKDATED.min(life / 10)).unwrap_or(Timestamp::MIN);
        Self { begins: whole(begins), ends: whole(ends) }
    }

    /// Of a certificate that exists; `None` when it cannot be read.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let at = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
        Some(Self { begins: at(certificate.validity().not_before)?, ends: at(certificate.validity().not_after)? })
    }

    /// Whether `now` is within it.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.begins <= now && now < self.ends
    }

    /// Whether two thirds of it have passed, or of `life` when that is shorter: who shortens lives means those that exist too.
    pub fn is_due(&self, life: Duration, now: Timestamp) -> bool {
        let life = self.life().min(life.saturating_add(BACKDATED.min(life / 10)));
        elapsed(self.begins, now) >= life * 2 / 3
    }

    /// Whether it did not end too long ago for an agent to return by it. One that has not begun was made by a clock that was
    /// put right since.
    pub fn may_return(&self, now: Timestamp) -> bool {
        elapsed(self.ends, now) < RETURNS_WITHIN
    }

    /// How it stands.
    pub fn standing(&self, now: Timestamp) -> Standing {
        let left = elapsed(now, self.ends);
        if now >= self.ends {
            Standing::Ended
        } else if left < (self.life() / 15).min(URGENT) {
            Standing::Urgent
        } else if left < (self.life() / 5).min(SOON) {
            Standing::Soon
        } else {
            Standing::Good
        }
    }

    fn life(&self) -> Duration {
        elapsed(self.begins, self.ends)
    }
}

/// When an authority begins to sign, whose forerunner ends at `end`: half of their common time after it was made, or at
/// once when there is none.
pub fn signs_from(made: Timestamp, end: Timestamp) -> Timestamp {
    made.saturating_add(elapsed(made, end) / 2).unwrap_or(made)
}

/// From the first to the second; nothing when it is the other way round.
fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

fn whole(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds as i64).expect("in range")
    }

    #[test]
    fn a_certificate_is_due_at_two_thirds_and_warned_of_only_when_that_failed() {
        let days = |days: u64| at(days * 86_400);
        let it = Validity::new(at(0), DAY * 825, None);
        assert!(!it.is_due(DAY * 825, days(549)) && it.is_due(DAY * 825, days(551)));
        assert!(it.is_due(DAY * 30, days(20)), "lives were shortened since");
        assert_eq!(it.standing(days(794)), Standing::Good);
        assert_eq!(it.standing(days(796)), Standing::Soon);
        assert_eq!(it.standing(days(819)), Standing::Urgent);
        assert_eq!(it.standing(days(825)), Standing::Ended);
        assert!(it.may_return(days(914)) && !it.may_return(days(915)));
        let before = Timestamp::from_second(1_799_900_000).expect("in range");
        assert!(it.may_return(before) && !it.holds(before), "the clock was set back");
    }

    #[test]
    fn nothing_outlives_the_authority_that_signed_it() {
        assert_eq!(Validity::new(at(0), DAY, Some(at(60))).ends, at(60));
    }

    proptest! {
        /// Whatever the lives: renewal comes before the warning, and a new authority is known before it signs.
        #[test]
        fn what_is_renewed_in_time_is_never_warned_of(life in 10_u64..400_000_000) {
            let it = Validity::new(at(0), Duration::from_secs(life), None);
            let due = it.begins.saturating_add(it.life() * 2 / 3 + Duration::from_secs(1)).expect("in range");
            prop_assert!(it.is_due(Duration::from_secs(life), due));
            prop_assert_eq!(it.standing(due), Standing::Good);
            let signs = signs_from(due, it.ends);
            prop_assert!(due <= signs && signs <= it.ends);
        }
    }
}
