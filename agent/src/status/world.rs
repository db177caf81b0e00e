//! The facts last seen, per source, and their form in a report.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use crate::discover::TargetKey;
use crate::inspect::host::{Owner, PoolRow, ProcessRow, Surroundings, TcpState};
use crate::inspect::http_endpoint::Phase;
use crate::inspect::pool_metrics::NamedPool;
use crate::inspect::{HostLook, LogLook, PoolStats, Probe, Rows, ServerLook, Value};

/// The last look of every source.
#[derive(Debug, Default)]
pub struct World {
    host: Option<HostLook>,
    servers: BTreeMap<TargetKey, ServerLook>,
    probes: BTreeMap<TargetKey, Probe>,
    stats: BTreeMap<TargetKey, PoolStats>,
    logs: BTreeMap<TargetKey, LogLook>,
}

impl World {
    /// How far the last look at the host saw.
    pub fn surroundings(&self) -> Option<&Surroundings> {
        self.host.as_ref().map(|look| &look.surroundings)
    }

    /// Takes over what was seen.
    pub fn saw(&mut self, rows: Rows) {
        match rows {
            Rows::Host(look) => self.host = Some(look),
            Rows::Server(look) => {
                self.servers.insert(look.target.clone(), look);
            }
            Rows::Probe(probe) => {
                self.probes.insert(probe.target.clone(), probe);
            }
            Rows::PoolStats(stats) => {
                self.stats.insert(stats.target.clone(), stats);
            }
            Rows::Log(look) => {
                self.logs.insert(look.target.clone(), look);
            }
            // Names are no targets, and a database is one only to the judge.
            Rows::Names(_) | Rows::Sqlite(_) => (),
        }
    }

    /// Forgets what was seen of everything that stands in the configuration: another may name other things, and what it names
    /// is seen again at once.
    pub fn forget_configured(&mut self) {
        *self = Self { host: self.host.take(), ..Self::default() };
    }

    /// The last look at the host.
    pub const fn host(&self) -> Option<&HostLook> {
        self.host.as_ref()
    }

    /// The last look at each server.
    pub fn servers(&self) -> impl Iterator<Item = &ServerLook> + Clone {
        self.servers.values()
    }

    /// The keys of [`Self::targets`] without their facts, each once where several follow one another.
    pub fn target_keys(&self) -> Vec<&TargetKey> {
        let mut keys = Vec::new();
        if let Some(host) = &self.host {
            keys.extend(grouped(&host.processes, |it| &it.target).into_keys());
            keys.extend(grouped(&host.pools, |it| &it.target).into_keys());
        }
        for stats in self.stats.values() {
            keys.extend(stats.pools.iter().flatten().map(|_| &stats.target));
        }
        keys.extend(self.servers.keys().chain(self.logs.keys()).chain(self.probes.keys()));
        keys.dedup();
        keys
    }

    /// Each target with its kind and facts, in order of key.
    pub fn targets(&self) -> Vec<(TargetKey, &'static str, BTreeMap<String, Json>)> {
        let mut all = Vec::new();
        if let Some(host) = &self.host {
            for (key, rows) in grouped(&host.processes, |it| &it.target) {
                all.push((key.clone(), "process", process_facts(&rows)));
            }
            for (key, rows) in grouped(&host.pools, |it| &it.target) {
                all.push((key.clone(), "pool", pool_facts(&rows)));
            }
        }
        for stats in self.stats.values() {
            for pool in stats.pools.iter().flatten() {
                // Its state is that of the source.
                all.push((stats.target.clone(), "application pool", named_pool_facts(stats, pool)));
            }
        }
        all.extend(self.servers.iter().map(|(key, it)| (key.clone(), "server", server_facts(it))));
        all.extend(self.logs.iter().map(|(key, it)| (key.clone(), "log", log_facts(it))));
        all.extend(self.probes.iter().map(|(key, it)| (key.clone(), "endpoint", endpoint_facts(it))));
        all
    }
}

fn grouped<'a, T>(rows: &'a [T], key: impl Fn(&'a T) -> &'a TargetKey) -> BTreeMap<&'a TargetKey, Vec<&'a T>> {
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for row in rows {
        groups.entry(key(row)).or_default().push(row);
    }
    groups
}

/// A value as JSON: a number, a pair, or the reason as a text.
pub fn value_json(value: &Value) -> Json {
    match value {
        Value::Known(value) => number(*value),
        Value::Between(low, high) => json!([number(*low), number(*high)]),
        Value::Unknown(reason) => json!(reason.to_string()),
    }
}

/// Whole numbers without a fraction, others with three digits.
fn number(value: f64) -> Json {
    if value.fract() == 0.0 && value.abs() < 9e15 { json!(value as i64) } else { json!((value * 1e3).round() / 1e3) }
}

fn log_facts(look: &LogLook) -> BTreeMap<String, Json> {
    let lines = look.found.as_ref().map_or_else(|reason| json!(reason.to_string()), |it| json!(it.lines));
    let facts = [("application", json!(look.application)), ("path", json!(look.path)), ("new_lines", lines)];
    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn process_facts(rows: &[&ProcessRow]) -> BTreeMap<String, Json> {
    let mut facts = BTreeMap::new();
    let mut set = |name: &str, value: Json| facts.insert(name.to_owned(), value);
    set("application", json!(rows[0].application.name));
    set("role", json!(rows[0].application.role));
    set("command", json!(rows[0].command));
    set("pids", json!(rows.iter().map(|it| it.instance.pid).collect::<Vec<_>>()));
    let mut listens: Vec<_> = rows.iter().flat_map(|it| &it.listens).map(ToString::to_string).collect();
    listens.sort();
    listens.dedup();
    set("listens", json!(listens));
    set("cpu_cores", total(rows.iter().map(|it| &it.cpu)));
    set("memory_bytes", total(rows.iter().map(|it| &it.memory)));
    set("memory_is_pss", json!(rows.iter().all(|it| it.memory_is_pss)));
    set("descriptors", total(rows.iter().map(|it| &it.descriptors)));
    set("descriptor_limit", value_json(&rows[0].descriptor_limit));
    set("threads", total(rows.iter().map(|it| &it.threads)));
    set("zombies", json!(rows.iter().map(|it| it.zombies.len()).sum::<usize>()));
    facts
}

/// The sum, when every part is known; else the first reason why not.
fn total<'a>(values: impl Iterator<Item = &'a Value>) -> Json {
    let mut sum = 0.0;
    for value in values {
        match value {
            Value::Known(value) => sum += value,
            other => return value_json(other),
        }
    }
    number(sum)
}

fn pool_facts(rows: &[&PoolRow]) -> BTreeMap<String, Json> {
    let mut facts = BTreeMap::new();
    let mut set = |name: &str, value: Json| facts.insert(name.to_owned(), value);
    let mut pids = Vec::new();
    match &rows[0].owner {
        Owner::Seen { application, .. } => set("application", json!(application.name)),
        Owner::NotVisible { uid, cgroup } => {
            set("application", json!(format!("{}, owner: not visible", Owner::unseen(*uid, *cgroup))))
        }
    };
    for row in rows {
        if let Owner::Seen { instance, .. } = &row.owner {
            pids.push(instance.pid);
        }
    }
    set("pids", json!(pids));
    set("remote", json!(rows[0].remote.to_string()));
    set("service", json!(rows[0].service));
    set("open", json!(rows.iter().map(|it| it.connections.len()).sum::<usize>()));
    let states = rows.iter().flat_map(|it| &it.connections).map(|it| state_name(it.state));
    set("by_state", count(states));
    set("limit", value_json(&rows[0].limit.value));
    set("limit_source", json!(rows[0].limit.source));
    facts
}

fn named_pool_facts(stats: &PoolStats, pool: &NamedPool) -> BTreeMap<String, Json> {
    let mut facts = BTreeMap::new();
    facts.insert("application".to_owned(), json!(stats.application));
    facts.insert("pool".to_owned(), json!(pool.name));
    for (name, value) in
        [("limit", &pool.limit), ("in_use", &pool.in_use), ("idle", &pool.idle), ("waiting", &pool.waiting)]
    {
        facts.insert(name.to_owned(), if value.low().is_some() { value_json(value) } else { Json::Null });
    }
    facts.insert("said_by".to_owned(), json!(pool.source));
    facts
}

fn count(names: impl Iterator<Item = &'static str>) -> Json {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    names.for_each(|name| *counts.entry(name).or_default() += 1);
    let pairs: Map<String, Json> = counts.into_iter().map(|(name, count)| (name.to_owned(), json!(count))).collect();
    Json::Object(pairs)
}

/// The state as `ss` and RFC 9293 write it.
const fn state_name(state: TcpState) -> &'static str {
    match state {
        TcpState::Established => "established",
        TcpState::SynSent => "syn-sent",
        TcpState::SynReceived => "syn-received",
        TcpState::FinWait1 => "fin-wait-1",
        TcpState::FinWait2 => "fin-wait-2",
        TcpState::TimeWait => "time-wait",
        TcpState::Close => "closed",
        TcpState::CloseWait => "close-wait",
        TcpState::LastAck => "last-ack",
        TcpState::Listen => "listen",
        TcpState::Closing => "closing",
    }
}

fn server_facts(look: &ServerLook) -> BTreeMap<String, Json> {
    let mut facts = BTreeMap::new();
    let mut set = |name: &str, value: Json| facts.insert(name.to_owned(), value);
    set("server", json!(look.target.as_str().trim_start_matches("server:")));
    match &look.sessions {
        Ok(sessions) => {
            set("sessions", json!(sessions.len()));
            set("by_state", count(sessions.iter().map(|it| it.state.as_str())));
        }
        Err(reason) => {
            set("sessions", json!(reason.to_string()));
        }
    }
    set("used", value_json(&look.used));
    set("slots", value_json(&look.slots));
    set("connect_seconds", value_json(&look.connect));
    facts
}

fn endpoint_facts(probe: &Probe) -> BTreeMap<String, Json> {
    let mut facts = BTreeMap::new();
    let mut set = |name: &str, value: Json| facts.insert(name.to_owned(), value);
    set("url", json!(probe.target.as_str().trim_start_matches("endpoint:")));
    match &probe.outcome {
        Ok(answer) => set("answer", json!(answer.status)),
        Err(failure) => set("answer", json!(failure.what)),
    };
    set("seconds", json!(probe.phases.iter().map(|(_, took)| took.as_secs_f64()).sum::<f64>()));
    let phases = probe.phases.iter().map(|(phase, took)| format!("{} {}", phase_name(*phase), millis(*took)));
    set("phases", json!(phases.collect::<Vec<_>>().join(", ")));
    if let Some(certificate) = &probe.certificate {
        set("certificate_until", json!(certificate.not_after.to_string()));
    }
    facts
}

const fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Resolve => "resolve",
        Phase::Connect => "connect",
        Phase::Tls => "tls",
        Phase::FirstByte => "first byte",
        Phase::Body => "body",
    }
}

fn millis(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::Reason;
    use crate::inspect::http_endpoint::Answer;

    #[test]
    fn keys_alone_are_those_of_the_targets_with_their_facts() {
        let mut world = World::default();
        for name in ["b", "a"] {
            world.saw(Rows::Probe(Probe {
                target: TargetKey::endpoint(&format!("http://{name}/")),
                outcome: Ok(Answer { status: 200, body_bytes: 0 }),
                phases: Vec::new(),
                certificate: None,
                status_as_expected: Some(true),
                assertions: Vec::new(),
            }));
        }
        world.saw(Rows::Log(LogLook {
            target: TargetKey::endpoint("log"),
            application: "grants-api".into(),
            path: "/var/log/grants".into(),
            found: Err(Reason::NotYet("read")),
        }));
        let mut with_facts: Vec<_> = world.targets().into_iter().map(|(key, ..)| key).collect();
        with_facts.dedup();
        assert_eq!(world.target_keys(), with_facts.iter().collect::<Vec<_>>());
        assert_eq!(with_facts.len(), 3);
    }
}
