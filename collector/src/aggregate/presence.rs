//! Whether an agent has been heard from lately. Silence is measured in time during which the collector listened, so
//! neither its own downtime, nor a pause of its process, nor a step of its clock makes an agent missing.

use std::fmt;
use std::time::Duration;

use tickbird_shared::Timestamp;
use tickbird_shared::protocol::PRESENCE_SECONDS;

use super::incident::elapsed;

/// Silence after which an agent is missing.
pub(super) const SILENCE: Duration = Duration::from_secs(PRESENCE_SECONDS);
/// Most that one tick counts as listened: ticks come each second, so a longer gap was not spent listening.
const LONGEST_TICK: Duration = Duration::from_secs(3);

/// What is known of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Presence {
    /// Heard within the last 30 s.
    Live,
    /// It said goodbye.
    Stopped,
    /// Silent for 30 s without a goodbye.
    Missing,
    /// Not heard since the collector started less than 30 s ago, never heard at all, or denied.
    Unknown,
}

impl Presence {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Live, Self::Stopped, Self::Missing, Self::Unknown];

    /// `live`, `stopped`, `missing` or `unknown`, as in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Stopped => "stopped",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How long the collector has listened, as a clock that stands still while it does not.
#[derive(Debug, Default)]
pub(super) struct Listening {
    total: Duration,
    ticked_at: Option<Timestamp>,
    /// The total when it last began, or went on after a pause of at least [`SILENCE`].
    resumed: Duration,
}

impl Listening {
    pub(super) fn tick(&mut self, now: Timestamp) {
        if let Some(before) = self.ticked_at.replace(now) {
            let passed = elapsed(before, now);
            if passed >= SILENCE {
                self.resumed = self.total;
            }
            self.total += passed.min(LONGEST_TICK);
        }
    }

    /// How long it has listened since it began, or since its machine last slept: what happened before that may not be told yet.
    pub(super) fn without_a_pause(&self) -> Duration {
        self.total.saturating_sub(self.resumed)
    }

    pub(super) const fn total(&self) -> Duration {
        self.total
    }
}

/// What one agent let be heard of itself.
#[derive(Debug, Clone)]
pub(super) struct Voice {
    presence: Presence,
    /// When it was last heard, on the clock of [`Listening`].
    heard: Duration,
    /// It was heard at least once, ever: one that was only enrolled is not missed.
    spoke: bool,
    /// The agent's clock on its newest batch.
    newest: Option<Timestamp>,
    /// The same of a batch that came after it and was older.
    behind: Option<Timestamp>,
}

impl Voice {
    /// An agent as stored, at the start of the collector.
    pub(super) const fn stored(spoke: bool, stopped: bool) -> Self {
        let presence = if stopped { Presence::Stopped } else { Presence::Unknown };
        Self { presence, heard: Duration::ZERO, spoke, newest: None, behind: None }
    }

    pub(super) const fn presence(&self) -> Presence {
        self.presence
    }

    /// When it was last heard, on the clock of [`Listening`].
    pub(super) const fn heard(&self) -> Duration {
        self.heard
    }

    /// It was missing when the collector ended.
    pub(super) const fn still_missing(&mut self) {
        self.presence = Presence::Missing;
    }

    /// An operator denied it: it is not listened to.
    pub(super) const fn ignore(&mut self) {
        self.presence = Presence::Unknown;
        self.spoke = false;
    }

    /// Takes a batch; true when it is a sign of life.
    pub(super) fn hear(&mut self, sent_at: Timestamp, goodbye: bool, listened: Duration) -> bool {
        if !self.is_live(sent_at) && !goodbye {
            return false;
        }
        self.spoke = true;
        self.heard = listened;
        self.presence = if goodbye { Presence::Stopped } else { Presence::Live };
        true
    }

    /// Whether it became missing by now.
    pub(super) fn falls_silent(&mut self, listened: Duration) -> bool {
        let waits = self.presence == Presence::Live || (self.presence == Presence::Unknown && self.spoke);
        let silent = waits && listened.saturating_sub(self.heard) >= SILENCE;
        if silent {
            self.presence = Presence::Missing;
        }
        silent
    }

    /// A batch that left before one already heard was delayed or repeated; it says nothing about now, above all not
    /// after a goodbye. Two such in a row that go forward are a clock that stepped back.
    fn is_live(&mut self, sent_at: Timestamp) -> bool {
        let stepped = self.behind.is_some_and(|behind| sent_at > behind);
        if self.newest.is_none_or(|newest| sent_at >= newest) || stepped {
            self.newest = Some(sent_at);
            self.behind = None;
            return true;
        }
        self.behind = Some(sent_at);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).expect("in range")
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn silence_of_thirty_seconds_is_missed_once() {
        let mut voice = Voice::stored(false, false);
        voice.hear(at(0), false, s(100));
        assert!(!voice.falls_silent(s(129)));
        assert!(voice.falls_silent(s(130)));
        assert!(!voice.falls_silent(s(131)));
        assert!(voice.hear(at(60), false, s(160)));
        assert_eq!(voice.presence(), Presence::Live);
    }

    #[test]
    fn one_that_said_goodbye_or_never_spoke_is_not_missed() {
        let mut voice = Voice::stored(true, false);
        voice.hear(at(0), true, s(0));
        assert!(!voice.falls_silent(s(1_000)));
        assert!(!voice.hear(at(-5), false, s(1)), "a heartbeat that was overtaken by the goodbye");
        assert_eq!(voice.presence(), Presence::Stopped);
        assert!(!Voice::stored(false, false).falls_silent(s(1_000)));
    }

    #[test]
    fn an_agent_whose_clock_steps_back_stays_heard() {
        let mut voice = Voice::stored(true, false);
        assert!(voice.hear(at(1_000), false, s(0)));
        assert!(!voice.hear(at(10), false, s(10)));
        assert!(voice.hear(at(20), false, s(20)));
        assert!(voice.hear(at(30), false, s(30)));
    }

    #[test]
    fn a_pause_or_a_step_of_our_own_clock_is_no_silence() {
        let mut listening = Listening::default();
        listening.tick(at(0));
        listening.tick(at(1));
        listening.tick(at(7_200));
        listening.tick(at(3_600));
        listening.tick(at(3_601));
        assert_eq!(listening.total(), s(1 + 3 + 1));
    }
}
