//! Network namespaces beside the agent's own: which there are, and their sockets.
//!
//! Which namespace a process is in is asked once for each new one, once more when it had time to move, and each minute of
//! all; a steady look where there is no other asks nothing. In the host mode each is entered once and then dumped like our
//! own. Otherwise its socket tables are read, once for each namespace whatever the number of its processes. The kernel goes
//! through all sockets of the machine for each of them (1 ms for a dump, 3 ms for the tables, on 24 GB), so all together may
//! take a small share of a core: with many, each is looked at less often.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::endpoints::{Listeners, Ports};
use super::gaps::POOL_CHECKS;
use super::{Gap, HostLook, Peer, Vantage};
use crate::discover::processes::Processes;
use crate::discover::{Instance, TargetKey};
use crate::inspect::Reason;
use crate::kernel::netns;
use crate::kernel::own::thread_time;
use crate::kernel::socket::{ByNumber, Network};

mod other;

pub(super) use other::Other;
use other::{Allowances, Through, Watched};

/// Other namespaces that are looked at; further ones are told of as such.
const MAX_NETWORKS: usize = 64;
/// A container's first process is made before it is moved into its namespace; it is asked again after this time.
const SECOND_SIGHT: Duration = Duration::from_secs(3);
/// All are asked again after this.
const REFRESH: Duration = Duration::from_secs(60);
/// The other namespaces.
#[derive(Debug)]
pub(super) struct Networks {
    proc_root: PathBuf,
    /// Whether they are to be entered.
    enters: bool,
    own: Option<u64>,
    /// Every process, and the inode that tells its namespace.
    members: HashMap<u32, Member>,
    others: BTreeMap<u64, Other>,
    left_out: BTreeSet<u64>,
    numbered: u16,
    /// [`Processes::noted`] at the last look.
    noted: Option<u64>,
    young: Vec<(Duration, u32)>,
    all_at: Duration,
    /// What reading tables may take, and what dumps.
    allowances: Allowances,
    /// Ports that were watched at the last look, and how often they have changed.
    ports: (Ports, u64),
}

#[derive(Debug, Clone, Copy)]
struct Member {
    start: u64,
    inode: u64,
}

impl Networks {
    /// None known yet. `enters` is the host mode.
    pub(super) fn new(proc_root: &Path, enters: bool) -> Self {
        Self {
            proc_root: proc_root.to_owned(),
            enters,
            own: None,
            members: HashMap::new(),
            others: BTreeMap::new(),
            left_out: BTreeSet::new(),
            numbered: 0,
            noted: None,
            young: Vec::new(),
            all_at: Duration::ZERO,
            allowances: Allowances::default(),
            ports: (Ports::of([]), 0),
        }
    }

    /// Finds out which namespaces there are. `ended` are the lives that ended since the last look.
    pub(super) fn find(&mut self, processes: &Processes, ended: &[Instance], now: Duration) {
        ended.iter().for_each(|it| self.leave(it.pid));
        let is_due = self.noted.is_none() || self.all_at <= now;
        let is_new = self.noted.replace(processes.noted()) != Some(processes.noted());
        let is_young = self.young.first().is_some_and(|(at, _)| *at <= now);
        if !is_due && !is_new && !is_young {
            return;
        }
        if self.own.is_none() {
            // A captured tree has none: there is one network then.
            self.own = netns::of(&self.proc_root.join("self")).ok();
        }
        let again: BTreeSet<u32> = self.young.iter().filter(|(at, _)| *at <= now).map(|(_, pid)| *pid).collect();
        self.young.retain(|(at, _)| *at > now);
        if is_due {
            self.all_at = now + REFRESH;
            self.left_out.clear();
        }
        for candidate in processes.candidates() {
            let known = self.members.get(&candidate.pid).is_some_and(|it| it.start == candidate.start);
            if !known {
                self.young.push((now + SECOND_SIGHT, candidate.pid));
            }
            if is_due || !known || again.contains(&candidate.pid) {
                self.ask(candidate.pid, candidate.start, now);
            }
        }
    }

    fn ask(&mut self, pid: u32, start: u64, now: Duration) {
        let Some(own) = self.own else { return };
        let Ok(inode) = netns::of(&self.proc_root.join(pid.to_string())) else {
            self.leave(pid);
            return;
        };
        if self.members.get(&pid).is_some_and(|it| it.inode != inode) {
            self.leave(pid);
        }
        self.members.insert(pid, Member { start, inode });
        if inode == own {
            return;
        }
        if self.others.len() >= MAX_NETWORKS && !self.others.contains_key(&inode) {
            self.left_out.insert(inode);
            return;
        }
        let (enters, numbered) = (self.enters, &mut self.numbered);
        let other = self.others.entry(inode).or_insert_with(|| {
            // 0 is our own, and 65535 is where a kernel counts cookies down from.
            *numbered = *numbered % (u16::MAX - 1) + 1;
            Other::new(Network(*numbered), enters.then_some(now))
        });
        other.members.insert(pid);
    }

    /// A process that ended, or moved. The last one takes its namespace along: our sockets in it would keep it alive.
    fn leave(&mut self, pid: u32) {
        let Some(member) = self.members.remove(&pid) else { return };
        if let Some(other) = self.others.get_mut(&member.inode) {
            other.members.remove(&pid);
            if other.members.is_empty() {
                self.others.remove(&member.inode);
            }
        }
    }

    /// Looks into each of them: connections to the ports `remote`, and all that listen.
    pub(super) fn look(&mut self, remote: &Ports, now: Duration, look: &mut HostLook) {
        if self.others.is_empty() {
            return;
        }
        self.allowances.at(now);
        if self.ports.0 != *remote {
            self.ports = (remote.clone(), self.ports.1 + 1);
        }
        let watched = Watched { remote, version: self.ports.1 };
        let mut order: Vec<u64> = self.others.keys().copied().collect();
        order.sort_by_key(|inode| self.others.get(inode).and_then(|it| it.read_at));
        for inode in order {
            let Some(other) = self.others.get_mut(&inode) else { continue };
            let Some(pid) = other.members.first().copied() else { continue };
            let through = Through { proc_root: &self.proc_root, pid, inode };
            if other.look(through, watched, &mut self.allowances, now, look).is_err() {
                // It is ending; another of its namespace is taken at the next look.
                self.leave(pid);
            }
        }
        if !self.left_out.is_empty() {
            let what = format!("more than {MAX_NETWORKS} network namespaces; the others go unwatched");
            look.gaps.push(Gap { checks: POOL_CHECKS, target: TargetKey::agent(), reason: Reason::Absent(what) });
        }
        let is_entered = |it: &&Other| it.vantage == Vantage::Entered;
        look.surroundings.entered = self.iter().filter(is_entered).count();
        look.surroundings.outside = self.others.len() - look.surroundings.entered;
    }

    /// Each of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Other> {
        self.others.values()
    }

    /// Each of them, to be changed.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Other> {
        self.others.values_mut()
    }

    fn numbered(&self, network: Network) -> Option<&Other> {
        self.iter().find(|it| it.network == network)
    }

    /// What listens in one of them.
    pub(super) fn listeners(&self, network: Network) -> Option<&Listeners> {
        self.numbered(network).map(|it| &it.sockets.listeners)
    }

    /// Who holds the other end of a connection in one of them.
    pub(super) fn peer(&self, cookie: u64) -> Option<Peer> {
        match Network::of(cookie) {
            Network::OWN => None,
            network => self.numbered(network)?.peers.of(cookie),
        }
    }

    /// From where a namespace is seen.
    pub(super) fn vantage(&self, network: Network) -> Vantage {
        match network {
            Network::OWN => Vantage::Own,
            // Its last process ended; so have its connections.
            other => self.numbered(other).map_or(Vantage::Entered, |it| it.vantage.clone()),
        }
    }

    /// Segments sent by now, for each connection in one that was dumped in this look.
    pub(super) fn sent_again(&mut self, remote: &Ports, sent: &mut ByNumber<u32>) {
        for other in self.others.values_mut().filter(|it| it.is_fresh) {
            let began = thread_time();
            sent.extend(other.sockets.sent_again(remote));
            self.allowances.dumps.spend(thread_time().saturating_sub(began));
        }
    }
}

#[cfg(test)]
mod tests;
