//! The processes that matter, from the first look at them to their end.
//!
//! Cheap facts are read at each look. What costs more is read at a pace of its own and its last value kept: PSS walks
//! the pages of the process. The end is an event: a task per process waits on its pidfd and tells it at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Ended, ProcessRow};
use crate::discover::limits::Settings;
use crate::discover::processes::{Process, Processes};
use crate::discover::{Application, Instance, TargetKey};
use crate::inspect::{Reason, Value};
use crate::kernel::KernelError;
use crate::kernel::cgroup::{Hierarchy, Limited, Usages};
use crate::kernel::own::thread_time;
use crate::kernel::pidfd;
use crate::kernel::proc::{Proc, Stat, stat, strings};
use crate::kernel::reader;

/// PSS is read so often, and less often where it takes long: at most a thousandth of a core for each process. What it grew by
/// meanwhile is that of its own pages.
const PSS_PACE: Duration = Duration::from_secs(60);
const PSS_SHARE: u32 = 1000;
/// Limits and cgroups change when somebody changes them.
const LIMITS_PACE: Duration = Duration::from_secs(60);
/// Processes whose settings are read in one look, beside those that hold a pool.
const SETTINGS_AT_ONCE: usize = 20;
/// Processes watched at most.
pub(super) const MAX_WATCHED: usize = 2_000;

/// The watched processes.
#[derive(Debug)]
pub(super) struct Watched {
    by_instance: BTreeMap<Instance, One>,
    ends: Ends,
    hierarchy: Option<Hierarchy>,
}

/// The proportional set size as it was read last.
#[derive(Debug, Clone, Copy)]
struct Pss {
    bytes: u64,
    /// Pages of its own at that time.
    anonymous: u64,
}

impl Pss {
    /// What it is now, given the pages of its own: a leak is of those, and what is mapped of files changes little.
    const fn with(self, anonymous: u64, page_bytes: u64) -> u64 {
        let grown = anonymous.saturating_sub(self.anonymous).saturating_mul(page_bytes);
        let shrunk = self.anonymous.saturating_sub(anonymous).saturating_mul(page_bytes);
        self.bytes.saturating_add(grown).saturating_sub(shrunk)
    }
}

/// One watched process.
#[derive(Debug)]
struct One {
    facts: Arc<Mutex<Facts>>,
    /// Whether its end is told by its pidfd; else a look has to notice it.
    is_heard: bool,
    port: Option<u16>,
    cpu_before: Option<(u64, Instant)>,
    pss: Option<Pss>,
    pss_due: Duration,
    descriptor_limit: Value,
    limited: Option<Limited>,
    limits_due: Duration,
    settings: Option<Result<Settings, KernelError>>,
}

fn read_settings(proc: &mut Proc, instance: Instance) -> Result<Settings, KernelError> {
    let line = proc.command_line(instance.pid).unwrap_or_default();
    let environment = proc.environment(instance.pid);
    let arguments = strings::arguments(&line);
    let empty = Default::default();
    let told = Settings::read(environment.as_ref().unwrap_or(&empty), &arguments);
    // What the command line says counts even where the environment may not be read.
    match environment {
        Err(error) if told == Settings::default() => Err(error),
        _ => Ok(told),
    }
}

/// What is told of a process when it has ended, kept where its task finds it.
#[derive(Debug, Clone)]
struct Facts {
    target: TargetKey,
    application: Application,
    command: Arc<str>,
    /// On the agent's clock.
    seen_at: Duration,
    age_then: Duration,
    /// Whether its exit status may be read while it is a zombie: the kernel shows others a zero.
    may_look: bool,
}

/// What one look at the watched processes needs.
pub(super) struct Given<'a> {
    pub(super) processes: &'a Processes,
    /// To be watched from now on; those that are watched already stay.
    pub(super) wanted: &'a BTreeSet<Instance>,
    pub(super) listens: &'a HashMap<Instance, Vec<SocketAddr>>,
    /// Whether a process's descriptors are refused to us.
    pub(super) is_denied: &'a dyn Fn(Instance) -> bool,
    pub(super) now: Duration,
}

impl Watched {
    /// Watches nothing yet; ends go to `out`.
    pub(super) fn new(proc: &Proc, threads: reader::Reader, out: mpsc::Sender<Ended>) -> Self {
        let (tasks, shared, proc_root) = (JoinSet::new(), Arc::default(), proc.root().to_owned());
        Self {
            by_instance: BTreeMap::new(),
            ends: Ends { out, tasks, shared, proc_root, threads },
            hierarchy: crate::kernel::cgroup::hierarchy(proc.root()).ok(),
        }
    }

    /// Reads every watched process. Needs a tokio runtime.
    pub(super) fn look(&mut self, proc: &mut Proc, given: &Given<'_>) -> Vec<ProcessRow> {
        self.ends.at(given.now);
        let uptime = proc.uptime().unwrap_or_default();
        let mut zombies = given.processes.zombies(given.now);
        for instance in given.wanted {
            if self.by_instance.len() < MAX_WATCHED
                && !self.by_instance.contains_key(instance)
                && let Some(process) = given.processes.get(instance.pid).filter(|process| process.instance == *instance)
            {
                let one = self.begin(process, given.now);
                self.by_instance.insert(*instance, one);
            }
        }
        let mut rows = Vec::with_capacity(self.by_instance.len());
        let mut usages = Usages::default();
        let mut gone = Vec::new();
        for (instance, one) in &mut self.by_instance {
            match proc.stat(instance.pid) {
                Ok(stat) if stat.start == instance.start && !stat.is_zombie() => {
                    let ticks = proc.constants().ticks_per_second as f64;
                    let started = Duration::from_secs_f64(instance.start as f64 / ticks);
                    let mut reader = Reader { proc, instance: *instance, given, age: uptime.saturating_sub(started) };
                    one.read_limits(&mut reader, self.hierarchy.as_ref());
                    let mut row = one.row(&mut reader, stat);
                    one.fill_cgroup(&mut row, &mut usages);
                    row.zombies = zombies.remove(&instance.pid).unwrap_or_default();
                    rows.push(row);
                }
                Ok(_) | Err(KernelError::Gone) => gone.push(*instance),
                // It cannot be read at this moment; it stays watched.
                Err(_) => (),
            }
        }
        for instance in gone {
            if let Some(one) = self.by_instance.remove(&instance)
                && !one.is_heard
            {
                let ended = one.lock().ended(instance, given.now, None);
                self.ends.tell(ended);
            }
        }
        rows
    }

    /// Ends that nobody listened to.
    pub(super) fn unheard(&mut self) -> Vec<Ended> {
        std::mem::take(&mut lock(&self.ends.shared).unheard)
    }

    /// Whether the end of a process is still to come.
    pub(super) fn contains(&self, instance: Instance) -> bool {
        self.by_instance.contains_key(&instance)
    }

    /// How many are watched.
    pub(super) fn len(&self) -> usize {
        self.by_instance.len()
    }

    /// What the settings of a watched process say of its pools; read once.
    pub(super) fn settings(&mut self, proc: &mut Proc, instance: Instance) -> Option<&Result<Settings, KernelError>> {
        let one = self.by_instance.get_mut(&instance)?;
        Some(one.settings.get_or_insert_with(|| read_settings(proc, instance)))
    }

    /// Ports to which the settings of watched processes lead, with what is spoken there. Of new processes a few are
    /// read at each look.
    pub(super) fn named_ports(&mut self, proc: &mut Proc) -> impl Iterator<Item = (u16, &'static str)> {
        let unread = self.by_instance.iter_mut().filter(|(_, one)| one.settings.is_none());
        for (instance, one) in unread.take(SETTINGS_AT_ONCE) {
            one.settings = Some(read_settings(proc, *instance));
        }
        self.by_instance.values().filter_map(|one| one.settings.as_ref()?.as_ref().ok()).flat_map(Settings::ports)
    }

    fn begin(&mut self, process: &Process, now: Duration) -> One {
        let facts = Arc::new(Mutex::new(Facts {
            target: TargetKey::process(&process.application.name, process.application.role, None),
            application: process.application.clone(),
            command: process.command.clone(),
            seen_at: now,
            age_then: Duration::ZERO,
            may_look: false,
        }));
        One {
            is_heard: self.ends.listen(process.instance, facts.clone()),
            facts,
            port: None,
            cpu_before: None,
            pss: None,
            pss_due: Duration::ZERO,
            descriptor_limit: Value::Unknown(Reason::NotYet("the first look at its limits")),
            limited: None,
            limits_due: Duration::ZERO,
            settings: None,
        }
    }
}

/// One process being read.
struct Reader<'a> {
    proc: &'a mut Proc,
    instance: Instance,
    given: &'a Given<'a>,
    age: Duration,
}

impl One {
    fn lock(&self) -> MutexGuard<'_, Facts> {
        lock(&self.facts)
    }

    fn row(&mut self, reader: &mut Reader<'_>, stat: Stat) -> ProcessRow {
        let (given, instance) = (reader.given, reader.instance);
        let process = given.processes.get(instance.pid).filter(|process| process.instance == instance);
        let listens = given.listens.get(&instance).cloned().unwrap_or_default();
        let mut facts = lock(&self.facts);
        if let Some(process) = process {
            facts.application = process.application.clone();
            facts.command = process.command.clone();
        }
        // A port stays in the key when the process stops listening before it ends, as a graceful one does.
        self.port = listens.iter().map(SocketAddr::port).chain(self.port).min();
        facts.target = TargetKey::process(&facts.application.name, facts.application.role, self.port);
        facts.seen_at = given.now;
        facts.age_then = reader.age;
        facts.may_look = !(given.is_denied)(instance);
        let mut row = ProcessRow {
            target: facts.target.clone(),
            application: facts.application.clone(),
            instance,
            parent: stat.parent,
            uid: process.map_or(u32::MAX, |process| process.uid),
            command: facts.command.clone(),
            age: reader.age,
            memory: Value::Known((stat.resident_pages * reader.proc.constants().page_bytes) as f64),
            memory_is_pss: false,
            cgroup_memory: no_limit(),
            cgroup_limit: no_limit(),
            cgroup_max_events: no_limit(),
            cgroup_oom_kills: no_limit(),
            cpu: Value::Unknown(Reason::NotYet("a second look")),
            descriptors: Value::Unknown(Reason::NotYet("a second look")),
            descriptor_limit: self.descriptor_limit.clone(),
            threads: Value::Known(stat.threads as f64),
            zombies: Vec::new(),
            listens,
        };
        drop(facts);
        row.cpu = self.cpu(stat, reader.proc.constants().ticks_per_second);
        row.descriptors = match reader.proc.descriptor_count(instance.pid) {
            Ok(count) => Value::Known(count as f64),
            Err(error) => Value::Unknown(why_not(error, "descriptors", row.uid)),
        };
        if let Some(bytes) = self.pss(reader) {
            row.memory = Value::Known(bytes as f64);
            row.memory_is_pss = true;
        }
        row
    }

    fn cpu(&mut self, stat: Stat, ticks_per_second: u64) -> Value {
        let read_at = Instant::now();
        let before = self.cpu_before.replace((stat.cpu_ticks, read_at));
        match before.map(|(ticks, at)| (stat.cpu_ticks.saturating_sub(ticks), read_at.duration_since(at).as_secs_f64()))
        {
            Some((ticks, seconds)) if seconds > 0.0 => Value::Known(ticks as f64 / ticks_per_second as f64 / seconds),
            _ => Value::Unknown(Reason::NotYet("a second look")),
        }
    }

    /// Bytes, where they may be read.
    fn pss(&mut self, reader: &mut Reader<'_>) -> Option<u64> {
        let (pid, now) = (reader.instance.pid, reader.given.now);
        if now < self.pss_due {
            let known = self.pss?;
            let anonymous = reader.proc.anonymous_pages(pid).unwrap_or(known.anonymous);
            return Some(known.with(anonymous, reader.proc.constants().page_bytes));
        }
        let began = thread_time();
        // So that those of one moment are not read in one.
        let spread = Duration::from_secs(u64::from(pid % 16));
        let read =
            reader.proc.anonymous_pages(pid).and_then(|anonymous| Ok(Pss { bytes: reader.proc.pss(pid)?, anonymous }));
        self.pss = read.ok();
        self.pss_due = match self.pss {
            Some(_) => now + (thread_time().saturating_sub(began) * PSS_SHARE).max(PSS_PACE + spread),
            None => now + LIMITS_PACE + spread,
        };
        self.pss.map(|it| it.bytes)
    }

    fn read_limits(&mut self, reader: &mut Reader<'_>, hierarchy: Option<&Hierarchy>) {
        if reader.given.now < self.limits_due {
            return;
        }
        self.limits_due = reader.given.now + LIMITS_PACE;
        let pid = reader.instance.pid;
        self.descriptor_limit = match reader.proc.descriptor_limit(pid) {
            Ok(Some(limit)) => Value::Known(limit as f64),
            Ok(None) => Value::Unknown(Reason::Absent("a limit of its descriptors".into())),
            Err(error) => {
                let uid = reader.given.processes.get(pid).map_or(u32::MAX, |process| process.uid);
                Value::Unknown(why_not(error, "limits", uid))
            }
        };
        self.limited = hierarchy.and_then(|hierarchy| {
            let directory = hierarchy.directory(reader.proc.cgroup(pid).ok()?)?;
            hierarchy.nearest_limit(&directory).ok()?
        });
    }

    fn fill_cgroup(&self, row: &mut ProcessRow, usages: &mut Usages) {
        if let Some(limited) = &self.limited
            && let Some(usage) = usages.of(limited)
        {
            row.cgroup_limit = Value::Known(limited.bytes as f64);
            row.cgroup_memory = Value::Known(usage.bytes as f64);
            row.cgroup_max_events = Value::Known(usage.max_events as f64);
            row.cgroup_oom_kills = match usage.oom_kills {
                Some(kills) => Value::Known(kills as f64),
                None => Value::Unknown(Reason::Absent("OOM kills of a control group".into())),
            };
        }
    }
}

fn no_limit() -> Value {
    Value::Unknown(Reason::Absent("a memory limit of its control group".into()))
}

/// Why a file of a process could not be read.
fn why_not(error: KernelError, what: &str, uid: u32) -> Reason {
    match error {
        KernelError::Denied => Reason::Denied(format!("the {what} of processes of uid {uid}")),
        KernelError::Gone => Reason::NotYet("it is ending"),
        KernelError::Malformed(file) => Reason::Malformed(file.to_owned()),
        KernelError::Absent | KernelError::Io(_) => Reason::Absent(format!("the {what} of a process")),
    }
}

impl Facts {
    fn ended(&self, instance: Instance, at: Duration, how: Option<Arc<str>>) -> Ended {
        Ended {
            target: self.target.clone(),
            application: self.application.clone(),
            instance,
            command: self.command.clone(),
            age: self.age_then + at.saturating_sub(self.seen_at),
            at,
            how,
        }
    }
}

/// Tells the ends.
#[derive(Debug)]
struct Ends {
    out: mpsc::Sender<Ended>,
    tasks: JoinSet<()>,
    shared: Arc<Mutex<Shared>>,
    proc_root: PathBuf,
    /// Who may read how it ended: whoever waits for it has no rights.
    threads: reader::Reader,
}

#[derive(Debug, Default)]
struct Shared {
    /// The agent's clock at the last look, and when that was.
    clock: Option<(Duration, Instant)>,
    /// Ends while nobody listened.
    unheard: Vec<Ended>,
}

impl Shared {
    fn now(&self) -> Duration {
        self.clock.map_or(Duration::ZERO, |(then, read_at)| then + read_at.elapsed())
    }
}

impl Ends {
    fn at(&mut self, now: Duration) {
        lock(&self.shared).clock = Some((now, Instant::now()));
        while self.tasks.try_join_next().is_some() {}
    }

    /// Begins to wait for the end of a process; `false` where that cannot be.
    fn listen(&mut self, instance: Instance, facts: Arc<Mutex<Facts>>) -> bool {
        let Ok(watch) = pidfd::Watch::begin(instance.pid) else { return false };
        let (out, shared, stat) =
            (self.out.clone(), self.shared.clone(), self.proc_root.join(format!("{}/stat", instance.pid)));
        let threads = self.threads.clone();
        self.tasks.spawn(async move {
            watch.ended().await;
            let may_look = lock(&facts).may_look;
            let how = threads.look(move || how_it_ended(&stat, instance, may_look)).await.flatten();
            let ended = lock(&facts).ended(instance, lock(&shared).now(), how);
            if let Err(unheard) = out.send(ended).await {
                keep(&shared, unheard.0);
            }
        });
        true
    }

    fn tell(&self, ended: Ended) {
        if let Err(mpsc::error::TrySendError::Full(unheard) | mpsc::error::TrySendError::Closed(unheard)) =
            self.out.try_send(ended)
        {
            keep(&self.shared, unheard);
        }
    }
}

fn keep(shared: &Mutex<Shared>, ended: Ended) {
    let mut shared = lock(shared);
    if shared.unheard.len() < MAX_WATCHED {
        shared.unheard.push(ended);
    }
}

/// What its parent will be told, if the parent has not been told yet: then the process is still there as a zombie.
fn how_it_ended(path: &Path, instance: Instance, may_look: bool) -> Option<Arc<str>> {
    let stat = stat::parse(&std::fs::read(path).ok()?)?;
    if stat.start != instance.start || !stat.is_zombie() || (stat.exit_code == 0 && !may_look) {
        return None;
    }
    Some(stat::end_in_words(stat.exit_code).into())
}

/// A panic of another holder leaves plain data, so the lock's poison is of no consequence.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_grows_or_shrinks_by_between_two_readings_is_that_of_its_own_pages() {
        let pss = Pss { bytes: 10 << 20, anonymous: 1_000 };
        assert_eq!(pss.with(1_000, 4_096), 10 << 20);
        assert_eq!(pss.with(1_256, 4_096), 11 << 20);
        assert_eq!(pss.with(744, 4_096), 9 << 20);
        assert_eq!(Pss { bytes: 4_096, anonymous: 9 }.with(0, 4_096), 0, "pages that others shared were counted less");
    }
}
