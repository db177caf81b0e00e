//! Who knocks: how many handshakes a source address may begin, and how many may run at once.
//!
//! A handshake costs a signature before anybody has shown who he is, so it is bounded by where it comes from. A source that
//! agents were admitted from lately is known: it may begin one more a second for each of them, so that a site behind one
//! address is let in faster the more of it is in, and half the places for handshakes are kept for such sources.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Sources that are remembered; over it those go that say nothing, then all that are not known.
const REMEMBERED: usize = 65_536;
/// A source may begin as many at once as it may in this many seconds.
const BURST_SECONDS: f64 = 10.0;
/// How long a source stays known after the time when most of its agents were connected.
const KNOWN_FOR: Duration = Duration::from_secs(3_600);

/// What sources may do together and each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Allowance {
    /// Handshakes at once, of all.
    pub(super) slots: usize,
    /// Of them, those that only known sources may have.
    pub(super) kept: usize,
    /// Handshakes a second that one source may begin, beside one for each agent admitted from it.
    pub(super) rate: f64,
    /// Connections of one source at once.
    pub(super) connections: usize,
}

/// Why a connection is closed before its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Its source begins too many.
    Rate,
    /// As many run as may.
    Busy,
    /// Its source has as many connections as it may.
    Connections,
}

impl Refusal {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Rate => "source_rate",
            Self::Busy => "handshakes",
            Self::Connections => "source_connections",
        }
    }
}

/// An IPv4 address, or the network that one host usually has of IPv6 (/64).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Origin(IpAddr);

impl Origin {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(it) => {
                let [a, b, c, d, ..] = it.segments();
                Self(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
            }
            v4 @ IpAddr::V4(_) => Self(v4),
        }
    }
}

/// All sources. Pure but for its lock: the caller says what time it is, as the time since some fixed moment.
#[derive(Debug)]
pub(super) struct Sources {
    allowance: Allowance,
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    sources: HashMap<Origin, Source>,
    running: usize,
}

#[derive(Debug)]
struct Source {
    tokens: f64,
    at: Duration,
    running: usize,
    open: usize,
    /// Agents connected now, and the most that were lately.
    agents: usize,
    most: usize,
    most_at: Duration,
}

/// One connection of a source, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Knock {
    sources: Arc<Sources>,
    origin: Origin,
    handshaking: bool,
    admitted: bool,
}

impl Sources {
    pub(super) fn new(allowance: Allowance) -> Arc<Self> {
        Arc::new(Self { allowance, all: Mutex::default() })
    }

    /// Whether a connection from `origin` may begin its handshake.
    pub(super) fn knock(self: &Arc<Self>, origin: Origin, now: Duration) -> Result<Knock, Refusal> {
        let allowance = &self.allowance;
        let mut all = self.lock();
        if all.sources.len() >= REMEMBERED && !all.sources.contains_key(&origin) {
            all.make_room(allowance, now);
        }
        let running = all.running;
        let source = all.sources.entry(origin).or_insert_with(|| Source::new(allowance, now));
        source.refill(allowance, now);
        if source.open >= allowance.connections.saturating_add(2 * source.most) {
            return Err(Refusal::Connections);
        }
        if source.tokens < 1.0 {
            return Err(Refusal::Rate);
        }
        let slots = if source.most > 0 { allowance.slots } else { allowance.slots - allowance.kept };
        // No source alone takes what is there for all others.
        if running >= slots || source.running >= (allowance.slots / 4).max(1) + source.most {
            return Err(Refusal::Busy);
        }
        source.tokens -= 1.0;
        source.running += 1;
        source.open += 1;
        all.running += 1;
        drop(all);
        Ok(Knock { sources: Arc::clone(self), origin, handshaking: true, admitted: false })
    }

    fn with(&self, origin: Origin, act: impl FnOnce(&mut Source, &mut usize)) {
        let mut all = self.lock();
        let All { sources, running } = &mut *all;
        if let Some(source) = sources.get_mut(&origin) {
            act(source, running);
        }
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl All {
    fn make_room(&mut self, allowance: &Allowance, now: Duration) {
        self.sources.retain(|_, source| {
            source.refill(allowance, now);
            source.open > 0 || source.most > 0 || source.tokens < source.burst(allowance)
        });
        if self.sources.len() >= REMEMBERED {
            self.sources.retain(|_, source| source.open > 0 || source.most > 0);
        }
    }
}

impl Source {
    fn new(allowance: &Allowance, now: Duration) -> Self {
        let tokens = allowance.rate * BURST_SECONDS;
        Self { tokens, at: now, running: 0, open: 0, agents: 0, most: 0, most_at: now }
    }

    fn rate(&self, allowance: &Allowance) -> f64 {
        allowance.rate + self.most as f64
    }

    fn burst(&self, allowance: &Allowance) -> f64 {
        self.rate(allowance) * BURST_SECONDS
    }

    fn refill(&mut self, allowance: &Allowance, now: Duration) {
        if self.agents >= self.most || now.saturating_sub(self.most_at) >= KNOWN_FOR {
            (self.most, self.most_at) = (self.agents, now);
        }
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.rate(allowance)).min(self.burst(allowance));
        self.at = now;
    }
}

impl Knock {
    /// Its handshake is over, whatever came of it.
    pub(super) fn shook(&mut self) {
        if std::mem::take(&mut self.handshaking) {
            self.sources.with(self.origin, |source, running| {
                source.running -= 1;
                *running -= 1;
            });
        }
    }

    /// It is an agent's, who may speak.
    pub(super) fn admitted(&mut self) {
        if !std::mem::replace(&mut self.admitted, true) {
            self.sources.with(self.origin, |source, _| {
                source.agents += 1;
                source.most = source.most.max(source.agents);
            });
        }
    }
}

impl Drop for Knock {
    fn drop(&mut self) {
        self.shook();
        let admitted = self.admitted;
        self.sources.with(self.origin, |source, _| {
            source.open -= 1;
            source.agents -= usize::from(admitted);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWANCE: Allowance = Allowance { slots: 16, kept: 8, rate: 2.0, connections: 100 };

    fn origin(text: &str) -> Origin {
        Origin::of(text.parse().expect("an address"))
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Lets as many handshakes as may begin and end; how many did.
    fn storm(sources: &Arc<Sources>, of: &str, now: Duration) -> usize {
        let tries = (0..1_000).map(|_| sources.knock(origin(of), now));
        tries.filter(Result::is_ok).count()
    }

    #[test]
    fn a_source_begins_its_burst_and_then_its_rate_and_others_are_not_hurt() {
        let sources = Sources::new(ALLOWANCE);
        assert_eq!(storm(&sources, "192.0.2.1", s(0)), 20);
        assert_eq!(sources.knock(origin("192.0.2.1"), s(0)).map(drop), Err(Refusal::Rate));
        assert_eq!(storm(&sources, "192.0.2.1", s(3)), 6);
        assert_eq!(storm(&sources, "192.0.2.2", s(3)), 20);
        assert_eq!(storm(&sources, "::ffff:192.0.2.2", s(3)), 0, "the same address in another form");
        assert_eq!(storm(&sources, "2001:db8:0:1::1", s(3)) + storm(&sources, "2001:db8:0:1:ffff::", s(3)), 20);
    }

    #[test]
    fn who_has_agents_here_may_begin_more_and_finds_places_that_strangers_do_not() {
        let sources = Sources::new(ALLOWANCE);
        let mut agents: Vec<_> = (0..4).map(|_| sources.knock(origin("192.0.2.1"), s(0)).expect("free")).collect();
        agents.iter_mut().for_each(|it| (it.shook(), it.admitted()).0);
        let hold = |of: &str| sources.knock(origin(of), s(60));
        let strangers: Vec<_> = (0..8).map(|it| hold(&format!("198.51.100.{}", it / 4)).expect("free")).collect();
        assert_eq!(hold("203.0.113.9").map(drop), Err(Refusal::Busy), "half the places are kept");
        let known: Vec<_> = (0..8).map(|_| hold("192.0.2.1").expect("kept for it")).collect();
        assert_eq!(hold("192.0.2.1").map(drop), Err(Refusal::Busy), "there are no more");
        drop((strangers, known));
        assert_eq!(storm(&sources, "192.0.2.1", s(120)), 60, "ten times two and one for each of four");
        drop(agents);
        assert_eq!(storm(&sources, "192.0.2.1", s(4_000)), 20, "an hour later it is a stranger again");
    }

    #[test]
    fn one_source_takes_no_more_than_its_part_of_places_and_connections() {
        let sources = Sources::new(ALLOWANCE);
        let held: Vec<_> = (0..4).map(|_| sources.knock(origin("192.0.2.1"), s(0)).expect("free")).collect();
        assert_eq!(sources.knock(origin("192.0.2.1"), s(0)).map(drop), Err(Refusal::Busy));
        assert!(sources.knock(origin("192.0.2.2"), s(0)).is_ok());
        drop(held);
        let few = Sources::new(Allowance { connections: 3, ..ALLOWANCE });
        let knock = || {
            let mut knock = few.knock(origin("192.0.2.1"), s(0))?;
            knock.shook();
            Ok(knock)
        };
        let open: Result<Vec<_>, Refusal> = (0..3).map(|_| knock()).collect();
        assert_eq!(knock().map(drop), Err(Refusal::Connections));
        drop(open);
        assert!(knock().is_ok());
    }

    #[test]
    fn strangers_without_number_take_no_memory_without_bound() {
        let sources = Sources::new(ALLOWANCE);
        let known = sources.knock(origin("192.0.2.1"), s(0)).map(|mut it| {
            it.shook();
            it.admitted();
            it
        });
        for it in 0..2 * REMEMBERED as u32 {
            let _ = sources.knock(Origin(IpAddr::V4((0x0A00_0000 + it).into())), s(0));
        }
        let all = sources.lock();
        assert!(all.sources.len() <= REMEMBERED, "{}", all.sources.len());
        assert_eq!(all.sources[&origin("192.0.2.1")].agents, 1, "what is known stays");
        drop(all);
        drop(known);
    }
}
