//! Every process of the host: which application it belongs to, who its parent is, and the zombies among them.
//!
//! Reading all of `/proc` each second would cost more than everything else. New processes are looked for only when the
//! kernel has given out a pid since the last look; the known ones are read again a few at a time, which finds within
//! thirty looks what gave no sign: a zombie, a process of another life under an old pid.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::application::{Declared, Identity, identify};
use super::{Application, Instance};
use crate::kernel::KernelError;
use crate::kernel::owners::Candidate;
use crate::kernel::proc::{Proc, Stat, strings};
use crate::scrub;

/// A process so young is read again at each look: between `fork` and `exec`, and until it has written its title, it
/// has another command line.
const YOUNG: Duration = Duration::from_secs(5);
/// Looks in which all known processes are read again.
const SWEEP: usize = 30;
/// The directory itself is read at least so often, whatever the kernel says of its last pid.
const LIST_AGAIN: Duration = Duration::from_secs(60);
/// Processes that are kept; more are not looked at.
const MAX_PROCESSES: usize = 65_536;

/// One process.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its life.
    pub instance: Instance,
    /// Its parent's pid.
    pub parent: u32,
    /// Real user id.
    pub uid: u32,
    /// Whom it belongs to.
    pub application: Application,
    /// Scrubbed command line, at most 200 bytes.
    pub command: Arc<str>,
    /// A thread of the kernel: it has no program, no descriptors and no application.
    pub is_kernel_thread: bool,
    /// Since when it has been seen as a zombie.
    pub zombie_since: Option<Duration>,
    /// Until then its command line is read again, on the agent's clock.
    young_until: Duration,
}

/// All processes.
#[derive(Debug)]
pub struct Processes {
    by_pid: BTreeMap<u32, Process>,
    declared: Vec<Declared>,
    last_pid: Option<u32>,
    listed_at: Option<Duration>,
    swept: u32,
    listed: Vec<u32>,
    uptime: Duration,
    noted: u64,
}

impl Processes {
    /// None yet; `declared` names some.
    pub fn new(declared: Vec<Declared>) -> Self {
        Self {
            by_pid: BTreeMap::new(),
            declared,
            last_pid: None,
            listed_at: None,
            swept: 0,
            listed: Vec::new(),
            uptime: Duration::ZERO,
            noted: 0,
        }
    }

    /// Looks what is new, and gives the lives that were found to have ended.
    ///
    /// # Errors
    /// When `/proc` itself cannot be read. A process that ended meanwhile is no error.
    pub fn refresh(&mut self, proc: &mut Proc, now: Duration) -> Result<Vec<Instance>, KernelError> {
        let mut ended = Vec::new();
        self.uptime = proc.uptime().unwrap_or(Duration::ZERO);
        let last_pid = proc.last_pid();
        if last_pid.is_none() || last_pid != self.last_pid || self.listed_at.is_none_or(|at| at + LIST_AGAIN <= now) {
            self.list(proc, now, &mut ended)?;
            self.last_pid = last_pid;
            self.listed_at = Some(now);
        }
        self.sweep(proc, now, &mut ended);
        Ok(ended)
    }

    /// One process.
    pub fn get(&self, pid: u32) -> Option<&Process> {
        self.by_pid.get(&pid)
    }

    /// All of them, by pid.
    pub fn iter(&self) -> impl Iterator<Item = &Process> {
        self.by_pid.values()
    }

    /// How many lives were ever noted: while it stays the same, no process is new here.
    pub const fn noted(&self) -> u64 {
        self.noted
    }

    /// Those that may hold sockets.
    pub fn candidates(&self) -> impl Iterator<Item = Candidate> + '_ {
        self.iter()
            .filter(|process| !process.is_kernel_thread && process.zombie_since.is_none())
            .map(|process| Candidate { pid: process.instance.pid, start: process.instance.start })
    }

    /// Zombies by their parent's pid: the child's pid, and how long it has been seen as one.
    pub fn zombies(&self, now: Duration) -> BTreeMap<u32, Vec<(u32, Duration)>> {
        let mut by_parent: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        for process in self.by_pid.values() {
            if let Some(since) = process.zombie_since {
                by_parent.entry(process.parent).or_default().push((process.instance.pid, now.saturating_sub(since)));
            }
        }
        by_parent
    }

    fn list(&mut self, proc: &mut Proc, now: Duration, ended: &mut Vec<Instance>) -> Result<(), KernelError> {
        let mut listed = std::mem::take(&mut self.listed);
        listed.clear();
        let told = proc.pids(&mut listed);
        listed.sort_unstable();
        listed.truncate(MAX_PROCESSES);
        if told.is_ok() {
            self.by_pid.retain(|pid, process| {
                let is_there = listed.binary_search(pid).is_ok();
                if !is_there {
                    ended.push(process.instance);
                }
                is_there
            });
            for pid in &listed {
                if !self.by_pid.contains_key(pid) {
                    self.read(proc, *pid, now, ended);
                }
            }
        }
        self.listed = listed;
        told
    }

    fn sweep(&mut self, proc: &mut Proc, now: Duration, ended: &mut Vec<Instance>) {
        let share = self.by_pid.len().div_ceil(SWEEP).max(8);
        let due: Vec<u32> = self.by_pid.range(self.swept..).map(|(pid, _)| *pid).take(share).collect();
        self.swept = if due.len() < share { 0 } else { due.last().map_or(0, |last| last + 1) };
        for pid in due {
            self.read(proc, pid, now, ended);
        }
        let unsettled = |process: &&Process| {
            !process.is_kernel_thread && (process.zombie_since.is_some() || now < process.young_until)
        };
        let again: Vec<u32> = self.by_pid.values().filter(unsettled).map(|process| process.instance.pid).collect();
        for pid in again {
            self.read(proc, pid, now, ended);
        }
    }

    /// Reads one process, new or known.
    fn read(&mut self, proc: &mut Proc, pid: u32, now: Duration, ended: &mut Vec<Instance>) {
        let stat = match proc.stat(pid) {
            Ok(stat) => stat,
            Err(KernelError::Gone) => {
                ended.extend(self.by_pid.remove(&pid).map(|process| process.instance));
                return;
            }
            // It cannot be read now; what is known of it stays.
            Err(_) => return,
        };
        let instance = Instance { pid, start: stat.start };
        if self.by_pid.get(&pid).is_some_and(|known| known.instance != instance) {
            ended.extend(self.by_pid.remove(&pid).map(|process| process.instance));
        }
        match self.by_pid.get_mut(&pid) {
            Some(known) => {
                known.parent = stat.parent;
                if stat.is_zombie() {
                    known.zombie_since.get_or_insert(now);
                } else if now < known.young_until {
                    let young_until = known.young_until;
                    if let Some(process) = self.identified(proc, instance, stat, young_until) {
                        self.by_pid.insert(pid, process);
                    }
                }
            }
            None => {
                let started = Duration::from_secs_f64(stat.start as f64 / proc.constants().ticks_per_second as f64);
                let young_until = now + YOUNG.saturating_sub(self.uptime.saturating_sub(started));
                if let Some(mut process) = self.identified(proc, instance, stat, young_until) {
                    process.zombie_since = stat.is_zombie().then_some(now);
                    self.noted += 1;
                    self.by_pid.insert(pid, process);
                }
            }
        }
    }

    /// `None` when it ended while it was read.
    fn identified(&self, proc: &mut Proc, instance: Instance, stat: Stat, young_until: Duration) -> Option<Process> {
        let mut process = Process {
            instance,
            parent: stat.parent,
            uid: 0,
            application: Application { name: "kernel".into(), role: "main", declared: false },
            command: "".into(),
            is_kernel_thread: stat.is_kernel_thread,
            zombie_since: None,
            young_until,
        };
        if stat.is_kernel_thread {
            return Some(process);
        }
        process.uid = match proc.uid(instance.pid) {
            Ok(uid) => uid,
            Err(KernelError::Gone) => return None,
            Err(_) => u32::MAX,
        };
        let line = match proc.command_line(instance.pid) {
            Ok(line) => line,
            Err(KernelError::Gone) => return None,
            Err(_) => Default::default(),
        };
        let arguments = strings::arguments(&line);
        process.command = scrub::command_line(&arguments).into();
        process.application = self.application(&arguments, stat.parent);
        Some(process)
    }

    fn application(&self, arguments: &[&str], parent: u32) -> Application {
        let parent = self.by_pid.get(&parent).filter(|parent| !parent.is_kernel_thread);
        match (identify(arguments, &self.declared), parent) {
            (Identity::Named(name, declared), parent) => {
                let of_same = parent.is_some_and(|parent| parent.application.name == name);
                Application { name, role: if of_same { "worker" } else { "main" }, declared }
            }
            (Identity::OfParent, Some(parent)) => Application { role: "worker", ..parent.application.clone() },
            // Its parent is gone; all that is left to say is what it runs on.
            (Identity::OfParent, None) => Application { name: "python".into(), role: "main", declared: false },
        }
    }
}

#[cfg(test)]
mod tests;
