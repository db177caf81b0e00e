//! One other network namespace: entered, or read from outside.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::discover::TargetKey;
use crate::inspect::Reason;
use crate::inspect::host::endpoints::Ports;
use crate::inspect::host::gaps::{self, POOL_CHECKS};
use crate::inspect::host::peers::Peers;
use crate::inspect::host::pools::Batch;
use crate::inspect::host::services::Services;
use crate::inspect::host::sockets::{Sockets, Source};
use crate::inspect::host::{Gap, HostLook, Vantage};
use crate::kernel::own::thread_time;
use crate::kernel::socket::Network;
use crate::kernel::{KernelError, netns};

/// A namespace without a watched connection is read so often.
const QUIET: Duration = Duration::from_secs(10);
/// After an entered namespace could not be dumped any more it is entered again, not sooner than this.
const ENTER_AGAIN: Duration = Duration::from_secs(10);
/// Reading tables may take one part in so many of a core, dumps one in so many,
const SHARE_OF_TABLES: u32 = 200;
const SHARE_OF_DUMPS: u32 = 50;
/// and each so much of it at once.
const AT_ONCE: Duration = Duration::from_millis(50);

const NO_AGES: &str = "no ages and no ends of its connections are told";
const REFUSED: &str = "no ages and no ends of its connections are told, since setns into it is refused";

/// One other namespace.
#[derive(Debug)]
pub(in crate::inspect::host) struct Other {
    pub(super) network: Network,
    pub(super) members: BTreeSet<u32>,
    pub(in crate::inspect::host) sockets: Sockets,
    pub(in crate::inspect::host) peers: Peers,
    pub(in crate::inspect::host) services: Services,
    pub(in crate::inspect::host) vantage: Vantage,
    /// When it is to be entered; `None` once that is done or refused.
    enter_at: Option<Duration>,
    pub(super) read_at: Option<Duration>,
    /// [`Watched::version`] when it was last looked at.
    version: u64,
    /// Whether the last time that it was looked at was the first, or the first with these ports: what was found then may
    /// be old.
    is_new: bool,
    /// Whether it was dumped in this look; else what is known of it is some looks old.
    pub(super) is_fresh: bool,
}

/// The process through which a namespace is reached.
#[derive(Debug, Clone, Copy)]
pub(super) struct Through<'a> {
    pub(super) proc_root: &'a Path,
    pub(super) pid: u32,
    /// Inode of the namespace.
    pub(super) inode: u64,
}

/// Ports of servers, and how often they have changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watched<'a> {
    pub(super) remote: &'a Ports,
    pub(super) version: u64,
}

/// What looking into other namespaces may take.
#[derive(Debug)]
pub(super) struct Allowances {
    pub(super) tables: Allowance,
    pub(super) dumps: Allowance,
}

impl Default for Allowances {
    fn default() -> Self {
        Self { tables: Allowance::of(SHARE_OF_TABLES), dumps: Allowance::of(SHARE_OF_DUMPS) }
    }
}

impl Allowances {
    /// It is this time now.
    pub(super) fn at(&mut self, now: Duration) {
        self.tables.at(now);
        self.dumps.at(now);
    }
}

/// One part in `share` of a core's time.
#[derive(Debug)]
pub(super) struct Allowance {
    share: u32,
    owed: Duration,
    at: Duration,
}

impl Allowance {
    const fn of(share: u32) -> Self {
        Self { share, owed: Duration::ZERO, at: Duration::ZERO }
    }

    fn at(&mut self, now: Duration) {
        self.owed = self.owed.saturating_sub(now.saturating_sub(self.at) / self.share);
        self.at = now;
    }

    fn is_left(&self) -> bool {
        self.owed < AT_ONCE
    }

    pub(super) fn spend(&mut self, time: Duration) {
        self.owed += time;
    }
}

impl Other {
    pub(super) fn new(network: Network, enter_at: Option<Duration>) -> Self {
        let (sockets, vantage) = from_outside(network, NO_AGES);
        Self {
            network,
            members: BTreeSet::new(),
            sockets,
            peers: Peers::default(),
            services: Services::default(),
            vantage,
            enter_at,
            read_at: None,
            version: 0,
            is_new: true,
            is_fresh: false,
        }
    }

    /// What it gave for the pools.
    pub(in crate::inspect::host) fn batch(&self) -> Batch<'_> {
        Batch {
            network: self.network,
            is_new: self.is_new,
            sockets: &self.sockets.outbound,
            destroyed: &self.sockets.destroyed,
        }
    }

    /// Looks into it. An error: that process is not in it any more.
    pub(super) fn look(
        &mut self,
        through: Through<'_>,
        watched: Watched<'_>,
        allowances: &mut Allowances,
        now: Duration,
        look: &mut HostLook,
    ) -> Result<(), KernelError> {
        self.sockets.destroyed.clear();
        self.is_fresh = false;
        if self.enter_at.is_some_and(|at| at <= now) {
            self.enter(through)?;
        }
        let is_entered = self.vantage == Vantage::Entered;
        let allowance = if is_entered { &mut allowances.dumps } else { &mut allowances.tables };
        let has_new_ports = self.version != watched.version;
        if !allowance.is_left() || (self.is_quiet(now) && !has_new_ports) {
            return Ok(());
        }
        // Without ages nothing can be said of requests, nor has a server told an address that could be joined.
        let remote = watched.remote;
        let near = match self.read_at {
            _ if !is_entered => Ports::of([]),
            Some(_) => Ports::of(self.peers.sought_ports(now).chain(self.services.ports())),
            None => remote.clone(),
        };
        let began = thread_time();
        let outcome = self.sockets.look_elsewhere(&through.proc_root.join(through.pid.to_string()), remote, &near);
        allowance.spend(thread_time().saturating_sub(began));
        match outcome {
            Ok(told) => {
                self.is_new = self.read_at.is_none() || has_new_ports;
                self.version = watched.version;
                look.gaps.extend(gaps::cut(told.cut));
                if is_entered {
                    self.is_fresh = true;
                    look.closes_incomplete |= told.is_incomplete;
                    let Sockets { outbound, accepted, .. } = &self.sockets;
                    self.peers.look(outbound, accepted, |port| near.contains(port), now);
                }
            }
            Err(KernelError::Gone) if !is_entered => return Err(KernelError::Gone),
            Err(_) if is_entered => {
                // Its sockets are of no more use.
                (self.sockets, self.vantage) = from_outside(self.network, NO_AGES);
                (self.enter_at, self.read_at) = (Some(now + ENTER_AGAIN), None);
                return Ok(());
            }
            Err(_) => {
                let reason = Reason::OtherNetwork("its socket table cannot be read".into());
                look.gaps.push(Gap { checks: POOL_CHECKS, target: TargetKey::agent(), reason });
            }
        }
        self.read_at = Some(now);
        Ok(())
    }

    fn is_quiet(&self, now: Duration) -> bool {
        self.sockets.outbound.is_empty() && self.read_at.is_some_and(|at| now < at + QUIET)
    }

    fn enter(&mut self, through: Through<'_>) -> Result<(), KernelError> {
        match netns::enter(through.proc_root, through.pid, through.inode) {
            Ok((diag, events)) => {
                self.sockets = Sockets::of(self.network, Source::Netlink(diag), Some(events));
                (self.vantage, self.read_at) = (Vantage::Entered, None);
            }
            Err(KernelError::Gone) => return Err(KernelError::Gone),
            // A right that is missing now is missing for as long as this agent runs.
            Err(_) => (self.sockets, self.vantage) = from_outside(self.network, REFUSED),
        }
        self.enter_at = None;
        Ok(())
    }
}

/// The sockets of a namespace from outside, and what that means.
fn from_outside(network: Network, what: &str) -> (Sockets, Vantage) {
    let reason = Reason::OtherNetwork(what.into());
    (Sockets::of(network, Source::Table(reason.clone()), None), Vantage::Outside(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_is_kept_in_the_long_run() {
        let (mut allowance, mut spent) = (Allowance::of(100), Duration::ZERO);
        for second in 0..1000 {
            allowance.at(Duration::from_secs(second));
            while allowance.is_left() {
                allowance.spend(Duration::from_millis(7));
                spent += Duration::from_millis(7);
            }
        }
        assert!((9.9..10.2).contains(&spent.as_secs_f64()), "{spent:?}");
    }
}
