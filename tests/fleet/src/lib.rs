//! Many agents in one process: real certificates, real sessions, and faults on request.
//!
//! ```text
//! identities ─▶ member ─▶ (the agent's own ship::Session) ─▶ TLS ─▶ collector
//!                 ▲  │
//!           load ─┘  └─▶ tally ─▶ report
//! ```
//!
//! Each `member` has its certificate, its epoch and its sequences, waits after a failure as an agent does, and posts
//! through [`tickbird_agent::ship::Session`]. What it lacks of an agent is what looks and what keeps: `load` invents its
//! records, and nothing survives the process. What an agent never does is in `misdeeds`, by hand.

pub mod identities;
mod load;
mod member;
mod misdeeds;
mod report;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use tickbird_agent::ship;
use tickbird_shared::Timestamp;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use identities::{Identity, IdentityError};
pub use report::{Report, Times};

use member::Member;
use report::Tally;

/// Agents of one source address of loopback: as many as a site behind one address may well have.
const PER_SOURCE: usize = 100;

/// What agents send, and what they do wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct Conduct {
    /// Between two batches of an agent.
    pub every: Duration,
    /// Records of a batch, some 250 bytes each.
    pub records: usize,
    /// Of a hundred batches those that are findings; the others are summaries.
    pub findings: u32,
    /// Source addresses; none lets the system choose. Only loopback has more than one.
    pub sources: Option<usize>,
    /// What goes wrong.
    pub faults: Faults,
    /// Of what is random, so that a run can be had again.
    pub seed: u64,
}

impl Default for Conduct {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(10),
            records: 8,
            findings: 2,
            sources: None,
            faults: Faults::default(),
            seed: 1,
        }
    }
}

/// Shares between 0 and 1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Faults {
    /// Of the batches, those that are sent twice.
    pub repeated: f64,
    /// Of the batches, those whose successor is sent before them.
    pub reordered: f64,
    /// Of the batches, those that break off in the middle of their body first.
    pub cut: f64,
    /// Of the agents, those that leave a second connection open on which they never speak.
    pub half_open: f64,
    /// Of the agents, those whose clock is wrong.
    pub skewed: f64,
    /// How far it is behind.
    pub skew: Duration,
}

/// Agents, each connected or not. Its methods end when every agent is done.
pub struct Fleet {
    members: Vec<Member>,
    tally: Arc<Tally>,
}

impl Fleet {
    /// Nothing is opened yet.
    ///
    /// # Errors
    /// When an identity is of no use for TLS, or does not say where to send. All are of one collector.
    pub fn new(identities: &[Identity], conduct: Conduct) -> Result<Self, IdentityError> {
        let (conduct, tally) = (Arc::new(conduct), Arc::new(Tally::default()));
        let mut habits: Option<Arc<ship::Config>> = None;
        let member = |(number, identity): (usize, &Identity)| {
            let habits = match &habits {
                Some(habits) => habits,
                None => habits.insert(Arc::new(ship::Config::new(identity.origin()?, wall))),
            };
            let from = conduct.sources.map(|sources| source(number % sources.max(1)));
            Member::new(number, identity, from, habits, &conduct, &tally)
        };
        let members = identities.iter().enumerate().map(member).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { members, tally })
    }

    /// How many agents there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is no agent.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Opens every connection and says nothing on it. Whoever is refused waits as an agent does, and gives up after `within`.
    pub async fn open(&mut self, within: Duration) {
        let give_up = Instant::now() + within;
        self.each(move |mut it| async move {
            it.open(give_up).await;
            it
        })
        .await;
    }

    /// A heartbeat of every agent, over a new connection where none is open: what an agent that starts says first.
    pub async fn greet(&mut self, within: Duration) {
        let give_up = Instant::now() + within;
        self.each(move |mut it| async move {
            it.greet(give_up).await;
            it
        })
        .await;
    }

    /// So many batches of every agent, one after another, `every` apart as the conduct says.
    pub async fn send(&mut self, batches: u32, within: Duration) {
        let give_up = Instant::now() + within;
        self.each(move |mut it| async move {
            it.send(batches, give_up).await;
            it
        })
        .await;
    }

    /// Batches at the pace of the conduct, for this long.
    pub async fn keep_sending(&mut self, time: Duration) {
        let until = Instant::now() + time;
        self.each(move |mut it| async move {
            it.keep_sending(until).await;
            it
        })
        .await;
    }

    /// Goodbyes, after which no agent is missed.
    pub async fn part(&mut self, within: Duration) {
        let give_up = Instant::now() + within;
        self.each(move |mut it| async move {
            it.part(give_up).await;
            it
        })
        .await;
    }

    /// Every connection ends at once, without a word.
    pub fn drop_all(&mut self) {
        self.members.iter_mut().for_each(Member::hang_up);
    }

    /// What was done since the last time it was taken.
    pub fn take_report(&self) -> Report {
        let connected = self.members.iter().filter(|it| it.is_connected()).count();
        Report { agents: self.members.len(), connected, ..self.tally.take() }
    }

    async fn each<F: Future<Output = Member> + Send + 'static>(&mut self, act: impl Fn(Member) -> F) {
        let mut acting: JoinSet<Member> = self.members.drain(..).map(act).collect();
        while let Some(done) = acting.join_next().await {
            match done {
                Ok(member) => self.members.push(member),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        self.members.sort_by_key(Member::number);
    }
}

/// As many sources as agents need who are `PER_SOURCE` each; none when the collector is not on loopback.
pub fn sources_for(agents: usize, url: &str) -> Option<usize> {
    url.contains("//127.").then(|| agents.div_ceil(PER_SOURCE).max(1))
}

/// 127.1.0.1 and on.
fn source(number: usize) -> IpAddr {
    let [high, low] = [number / 250 % 250, number % 250].map(|it| u8::try_from(it).unwrap_or_default());
    Ipv4Addr::new(127, 1, high, low + 1).into()
}

/// The wall clock.
pub(crate) fn wall() -> Timestamp {
    Timestamp::now()
}

/// Raises the bound on open files as far as the system allows, and says what it is then.
pub fn raise_descriptors() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let now = if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current };
    now.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_addresses_of_loopback_that_differ() {
        let all: std::collections::BTreeSet<_> = (0..1_000).map(source).collect();
        assert_eq!((all.len(), source(0), source(250)), (1_000, [127, 1, 0, 1].into(), [127, 1, 1, 1].into()));
        assert_eq!(sources_for(15_000, "https://127.0.0.1:7443"), Some(150));
        assert_eq!(sources_for(15_000, "https://collector.internal:7443"), None);
    }
}
