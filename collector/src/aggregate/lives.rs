//! The lives of its buffer that an agent speaks from, and which of them are over.
//!
//! A buffer that was lost or restored begins a new life and never goes back to the old one, so two lives that take turns
//! are two machines with one identity. Two things look like it and are not. What the disk did not take is sent from a life
//! in memory, between heartbeats of the one on disk: such batches say so and count for nothing here. And a request that
//! was given up may arrive after those of the next life: an agent has two connections, so that happens twice at most,
//! while a copy goes on.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use tickbird_shared::{Epoch, Fingerprint, Timestamp};

use super::presence::SILENCE;

/// How often both of two lives must have come back after the other: once more than late requests can explain.
const RETURNS: usize = 3;
/// Time in which they must have: heartbeats come every ten seconds, and every thirty from an agent in trouble.
const WITHIN: Duration = Duration::from_secs(600);
/// How often it is told that two still take turns.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Lives that are remembered; over it the one that was silent for longest is forgotten.
const REMEMBERED: usize = 8;

/// What a batch says about where it comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word<'a> {
    pub(super) epoch: &'a Epoch,
    pub(super) sent_at: Timestamp,
    pub(super) goodbye: bool,
    /// It was held in memory, because a disk took nothing.
    pub(super) is_volatile: bool,
}

#[derive(Debug)]
struct Life {
    epoch: Epoch,
    /// When it was last heard, on the clock of what was listened.
    heard: Duration,
    sent_at: Timestamp,
    said_goodbye: bool,
    /// The newest times it came back after another life had spoken.
    returns: VecDeque<Duration>,
    /// Incidents of other lives that its open lists do not have, and when it saw that.
    doubts: BTreeMap<Fingerprint, Timestamp>,
}

/// The lives of one agent.
#[derive(Debug, Default)]
pub(super) struct Lives {
    known: Vec<Life>,
    /// The one that spoke last, held in memory or not at all aside.
    latest: Option<Epoch>,
    told: Option<Duration>,
}

impl Lives {
    /// Takes a batch; the other life, when the two take turns and it is time to tell so.
    pub(super) fn hear(&mut self, word: Word<'_>, listened: Duration) -> Option<Epoch> {
        let Word { epoch, sent_at, goodbye, is_volatile } = word;
        let Some(life) = self.known.iter_mut().find(|it| it.epoch == *epoch) else {
            self.begin(word, listened);
            return None;
        };
        // The clock of one life goes forward; what does not is a repeat, or the first word after a step.
        let is_new = sent_at > life.sent_at;
        life.heard = listened;
        life.sent_at = sent_at;
        if !is_new {
            return None;
        }
        life.said_goodbye = goodbye;
        if is_volatile || self.latest.as_ref() == Some(epoch) {
            return None;
        }
        let before = self.latest.replace(epoch.clone())?;
        life.returns.push_back(listened);
        if life.returns.len() > RETURNS {
            life.returns.pop_front();
        }
        let returned = |it: &Life| {
            it.returns.len() == RETURNS && it.returns.iter().all(|at| listened.saturating_sub(*at) <= WITHIN)
        };
        let both = [epoch, &before].map(|epoch| self.get(epoch).is_some_and(returned));
        let is_due = self.told.is_none_or(|at| listened.saturating_sub(at) >= TOLD_EVERY);
        (both == [true; 2] && is_due).then(|| {
            self.told = Some(listened);
            before
        })
    }

    fn begin(&mut self, word: Word<'_>, listened: Duration) {
        if self.known.len() >= REMEMBERED
            && let Some((oldest, _)) = self.known.iter().enumerate().min_by_key(|(_, it)| it.heard)
        {
            self.known.swap_remove(oldest);
        }
        self.known.push(Life {
            epoch: word.epoch.clone(),
            heard: listened,
            sent_at: word.sent_at,
            said_goodbye: word.goodbye,
            returns: VecDeque::new(),
            doubts: BTreeMap::new(),
        });
        if !word.is_volatile {
            self.latest = Some(word.epoch.clone());
        }
    }

    fn get(&self, epoch: &Epoch) -> Option<&Life> {
        self.known.iter().find(|it| it.epoch == *epoch)
    }

    /// Whether nothing is to be expected of a life any more: it said goodbye, or was silent for as long as makes an agent
    /// missing.
    pub(super) fn is_over(&self, epoch: &Epoch, listened: Duration) -> bool {
        let (said_goodbye, heard) = self.get(epoch).map_or((false, Duration::ZERO), |it| (it.said_goodbye, it.heard));
        said_goodbye || listened.saturating_sub(heard) >= SILENCE
    }

    /// Keeps for later what a list of `epoch` does not have and may not end now; `ran` says whether an older doubt was about
    /// a check of this list.
    pub(super) fn doubt(
        &mut self,
        epoch: &Epoch,
        ran: impl Fn(&Fingerprint) -> bool,
        doubted: &[Fingerprint],
        seen_at: Timestamp,
    ) {
        let Some(life) = self.known.iter_mut().find(|it| it.epoch == *epoch) else { return };
        life.doubts.retain(|it, _| !ran(it));
        life.doubts.extend(doubted.iter().map(|it| (*it, seen_at)));
    }

    /// Each doubt that a life still has, with its epoch and when it saw it.
    pub(super) fn doubts(&self, listened: Duration) -> impl Iterator<Item = (Fingerprint, &Epoch, Timestamp)> {
        let alive = self.known.iter().filter(move |it| !it.doubts.is_empty() && !self.is_over(&it.epoch, listened));
        alive.flat_map(|life| life.doubts.iter().map(|(it, at)| (*it, &life.epoch, *at)))
    }

    /// Forgets doubts that came to an end.
    pub(super) fn settle(&mut self, settled: &HashSet<Fingerprint>) {
        for life in &mut self.known {
            life.doubts.retain(|it, _| !settled.contains(it));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn epoch(name: char) -> Epoch {
        Epoch::try_from(name.to_string().repeat(26)).expect("26 letters")
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Lives speak in this order, every five seconds; a small letter is one held in memory. When it was first told.
    fn told(order: &str) -> Option<usize> {
        let mut lives = Lives::default();
        order.chars().enumerate().position(|(second, name)| {
            let at = 5 * second as u64;
            let sent_at = Timestamp::from_second(1_790_000_000 + at as i64).expect("in range");
            let epoch = epoch(name.to_ascii_uppercase());
            let word = Word { epoch: &epoch, sent_at, goodbye: false, is_volatile: name.is_ascii_lowercase() };
            lives.hear(word, s(at)).is_some()
        })
    }

    #[test]
    fn two_lives_that_take_turns_are_told_and_again_after_a_minute() {
        assert_eq!(told("ABABABAB"), Some(7));
        assert_eq!(told("AAABBAABABBBA"), None, "not yet both");
        assert_eq!(told("ABCABCABCABC"), Some(10), "three of them");
        assert_eq!(told(&format!("{}BABABAB", "A".repeat(500))), Some(506), "a copy that begins later");
        let mut lives = Lives::default();
        let mut times = Vec::new();
        for turn in 0..60_u64 {
            let sent_at = Timestamp::from_second(1_790_000_000 + turn as i64).expect("in range");
            let epoch = epoch(if turn % 2 == 0 { 'A' } else { 'B' });
            let word = Word { epoch: &epoch, sent_at, goodbye: false, is_volatile: false };
            times.extend(lives.hear(word, s(turn * 5)).map(|_| turn * 5));
        }
        assert_eq!(times, [35, 95, 155, 215, 275]);
    }

    #[test]
    fn a_copy_whose_clock_is_behind_is_found_all_the_same() {
        let mut lives = Lives::default();
        let found = (0..8_u64).any(|turn| {
            let (name, behind) = if turn % 2 == 0 { ('A', 0) } else { ('B', 86_400) };
            let sent_at = Timestamp::from_second(1_790_000_000 + 5 * turn as i64 - behind).expect("in range");
            let word = Word { epoch: &epoch(name), sent_at, goodbye: false, is_volatile: false };
            lives.hear(word, s(5 * turn)).is_some()
        });
        assert!(found);
    }

    #[test]
    fn restarts_lost_buffers_and_what_is_held_in_memory_are_one_machine() {
        assert_eq!(told("AAAABBBBCCCCDDDD"), None, "buffers that are lost one after the other");
        assert_eq!(told("AAAABABABBBBBBBB"), None, "two late requests of the life before");
        assert_eq!(told("AbAbAbAbAbAbAbAb"), None, "a full disk");
        assert_eq!(told("ABBACCADDAEEAFFA"), None, "starts on a full disk, each with a memory of its own");
        let rarely = format!("AB{0}AB{0}AB{0}AB", "B".repeat(130));
        assert_eq!(told(&rarely), None, "old copies restored, hours between them");
    }

    #[test]
    fn a_repeated_request_is_no_turn() {
        let mut lives = Lives::default();
        let sent_at = |turn: i64| Timestamp::from_second(1_790_000_000 + turn).expect("in range");
        for turn in 0..40_u64 {
            let (name, at) = if turn % 2 == 0 { ('B', turn as i64) } else { ('A', -5) };
            let word = Word { epoch: &epoch(name), sent_at: sent_at(at), goodbye: false, is_volatile: false };
            assert_eq!(lives.hear(word, s(turn)), None, "{turn}");
        }
    }

    #[test]
    fn a_life_is_over_when_it_was_silent_or_said_goodbye() {
        let mut lives = Lives::default();
        let sent_at = |turn: i64| Timestamp::from_second(1_790_000_000 + turn).expect("in range");
        let first = epoch('A');
        let word = |at, goodbye| Word { epoch: &first, sent_at: sent_at(at), goodbye, is_volatile: false };
        assert!(!lives.is_over(&epoch('A'), s(29)) && lives.is_over(&epoch('A'), s(30)), "not heard since the start");
        lives.hear(word(1, false), s(100));
        assert!(!lives.is_over(&epoch('A'), s(129)) && lives.is_over(&epoch('A'), s(130)));
        lives.hear(word(2, true), s(110));
        assert!(lives.is_over(&epoch('A'), s(111)));
        lives.hear(word(1, false), s(112));
        assert!(lives.is_over(&epoch('A'), s(113)), "overtaken by the goodbye");
        lives.hear(word(3, false), s(114));
        assert!(!lives.is_over(&epoch('A'), s(115)));
    }

    proptest! {
        /// However many lives an agent claims: what is kept of it is bounded.
        #[test]
        fn what_is_remembered_is_bounded(order in proptest::collection::vec(0_u8..26, 0..300)) {
            let mut lives = Lives::default();
            for (turn, name) in order.into_iter().enumerate() {
                let epoch = epoch(char::from(b'A' + name));
                let sent_at = Timestamp::from_second(1_790_000_000 + turn as i64).expect("in range");
                let word = Word { epoch: &epoch, sent_at, goodbye: false, is_volatile: false };
                lives.hear(word, s(turn as u64));
                prop_assert!(lives.known.len() <= REMEMBERED);
                prop_assert!(lives.known.iter().all(|it| it.returns.len() <= RETURNS));
            }
        }
    }
}
