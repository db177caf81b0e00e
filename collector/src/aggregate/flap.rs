//! Flapping: what ends and returns again and again fires as long as it does so, and is over when it stays away.
//!
//! Between its first return too many and its end people hear nothing but that it got worse. It was told that it fires before, so
//! its end is owed as of any other incident, and comes once.

use std::time::Duration;

use tickbird_shared::Timestamp;

use super::incident::elapsed;
use crate::store::FlapRow;

/// When something flaps, and when it does so no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flapping {
    /// So many returns within [`Self::within`] are flapping. 3 by default, at most [`MOST_RETURNS`]; with 0 nothing flaps.
    pub returns: u32,
    /// One hour by default.
    pub within: Duration,
    /// How long it must stay away, or stay, for the flapping to be over. 15 minutes by default.
    pub calm: Duration,
}

/// More are not remembered of one incident.
pub const MOST_RETURNS: u32 = 20;

impl Default for Flapping {
    fn default() -> Self {
        Self { returns: 3, within: Duration::from_secs(3600), calm: Duration::from_secs(900) }
    }
}

impl Flapping {
    /// Nothing flaps.
    pub const NEVER: Self = Self { returns: 0, within: Duration::ZERO, calm: Duration::ZERO };

    /// Remembers a return that was seen at `at`; true when from now on it flaps. What is drained late came no closer together.
    pub(super) fn returned(&self, flap: &mut FlapRow, at: Timestamp, now: Timestamp) -> bool {
        if self.returns == 0 {
            return false;
        }
        let at = at.min(now);
        flap.returns.push(at);
        // What is later was before the clock was set back.
        flap.returns.retain(|it| *it <= at && elapsed(*it, at) <= self.within);
        let known = flap.returns.len();
        flap.returns.drain(..known.saturating_sub(MOST_RETURNS as usize));
        let flaps = flap.since.is_none() && flap.returns.len() >= self.returns as usize;
        if flaps {
            flap.since = Some(now);
        }
        flaps
    }

    /// Whether what flaps has been as it is now for long enough. A moment that is still to come was before the clock was set back.
    pub(super) fn is_over(&self, flap: &mut FlapRow, now: Timestamp) -> bool {
        let as_it_is = flap.calm_since.as_mut().or_else(|| flap.returns.last_mut());
        let Some(since) = as_it_is else { return true };
        *since = (*since).min(now);
        elapsed(*since, now) >= self.calm
    }
}
