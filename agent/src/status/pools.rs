//! Pools in a report: each instance's connections with their verdicts, and their form for a person.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::world::value_json;
use crate::discover::Instance;
use crate::inspect::host::{Descriptor, Sharers};
use crate::judge::{ConnectionView, PoolView, Verdict};
use crate::scrub;

/// Connections in one report: a host with more shows the ones that matter most.
const MAX_CONNECTIONS: usize = 2_000;
/// Longest bar, in characters.
const BAR: usize = 40;

/// One instance's pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolPart {
    /// Stable key of the target.
    pub target: String,
    /// The process; absent when its owner is not visible.
    pub pid: Option<u32>,
    /// Its start, in clock ticks since boot.
    pub start: Option<u64>,
    /// The remote end.
    pub remote: String,
    /// Most connections: a number, a pair, or a text that says why it is not known.
    pub limit: Json,
    /// Who said so.
    pub limit_source: String,
    /// Connections that are open.
    pub open: usize,
    /// How many have which verdict: `leased`, `busy`, `held`, `group stop`, `free`, `unknown`.
    pub counts: BTreeMap<String, usize>,
    /// `rotating`, `stack` or `unknown`.
    pub discipline: String,
    /// Callers that wait: a number, a pair, or why it is not known.
    pub waiters: Json,
    /// Seconds until it is empty at the present rate: a pair, or why it is not known.
    pub empty_in: Json,
    /// Every connection, the certainly leased ones first. Cut on a host with very many.
    pub connections: Vec<ConnectionPart>,
}

/// One connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConnectionPart {
    /// Descriptors in the owner.
    pub fds: Vec<u32>,
    /// Descriptors of other processes that hold it too, after a fork or when it was passed on; at most 16.
    #[serde(default)]
    pub also_held_by: Vec<HolderPart>,
    /// How many more there are.
    #[serde(default)]
    pub also_held_more: usize,
    /// Our end.
    pub local: String,
    /// `leased`, `busy`, `held`, `group stop`, `free` or `unknown`.
    pub verdict: String,
    /// The rule that led to it.
    pub rule: String,
    /// Since when it has been so.
    pub age_seconds: Option<f64>,
    /// The server's number of the session, where joined.
    pub session: Option<u64>,
    /// What the server says of it, where joined.
    pub state: Option<String>,
    /// Last statement without its literals.
    pub statement: Option<String>,
    /// The facts that the rule used.
    pub facts: Vec<String>,
}

/// A process that holds a connection beside its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderPart {
    /// The process.
    pub pid: u32,
    /// Its start, in clock ticks since boot.
    pub start: u64,
    /// Its descriptor.
    pub fd: u32,
}

/// The pools of a report, in order of target and process.
pub fn parts(views: &[PoolView]) -> Vec<PoolPart> {
    let mut room = MAX_CONNECTIONS;
    let mut parts: Vec<PoolPart> = views.iter().map(|view| part(view, &mut room)).collect();
    parts.sort_by(|a, b| (&a.target, a.pid).cmp(&(&b.target, b.pid)));
    parts
}

fn part(view: &PoolView, room: &mut usize) -> PoolPart {
    let mut counts = BTreeMap::new();
    for it in &view.connections {
        *counts.entry(it.verdict.as_str().to_owned()).or_default() += 1;
    }
    let mut connections: Vec<&ConnectionView> = view.connections.iter().collect();
    connections.sort_by(|a, b| a.verdict.cmp(&b.verdict).then(b.age.cmp(&a.age)).then(a.cookie.cmp(&b.cookie)));
    connections.truncate(*room);
    *room -= connections.len();
    PoolPart {
        target: view.target.as_str().to_owned(),
        pid: view.instance.map(|it| it.pid),
        start: view.instance.map(|it| it.start),
        remote: view.remote.to_string(),
        limit: value_json(&view.limit.0),
        limit_source: view.limit.1.to_string(),
        open: view.connections.len(),
        counts,
        discipline: view.discipline.to_owned(),
        waiters: value_json(&view.waiters),
        empty_in: value_json(&view.empty_in),
        connections: connections.into_iter().map(connection).collect(),
    }
}

fn connection(view: &ConnectionView) -> ConnectionPart {
    ConnectionPart {
        fds: view.fds.clone(),
        also_held_by: view.sharers.first.iter().map(holder).collect(),
        also_held_more: view.sharers.more,
        local: view.local.to_string(),
        verdict: view.verdict.as_str().to_owned(),
        rule: view.rule.to_owned(),
        age_seconds: view.age.map(|it| (it.as_secs_f64() * 1e3).round() / 1e3),
        session: view.session,
        state: view.state.map(|it| it.as_str().to_owned()),
        statement: view.statement.as_deref().map(str::to_owned),
        facts: view.facts.clone(),
    }
}

fn holder(it: &Descriptor) -> HolderPart {
    HolderPart { pid: it.instance.pid, start: it.instance.start, fd: it.fd }
}

/// The marks of a bar, in its order.
const MARKS: [(&str, char); 6] = [
    (Verdict::Leased.as_str(), '#'),
    (Verdict::Busy.as_str(), '#'),
    (Verdict::Held.as_str(), '!'),
    (Verdict::GroupStop.as_str(), '?'),
    (Verdict::Unknown.as_str(), '?'),
    (Verdict::Free.as_str(), '-'),
];

/// What the marks mean, for the line under a heading.
pub const LEGEND: &str = "# leased  ! held  ? not known  - free  . room up to the limit";

impl PoolPart {
    fn count(&self, verdict: Verdict) -> usize {
        self.counts.get(verdict.as_str()).copied().unwrap_or_default()
    }

    /// Certain, held, unknown and free connections against the limit: `[####!!??--..........]`.
    pub fn bar(&self) -> String {
        let limit = self.limit.as_u64().and_then(|it| usize::try_from(it).ok()).unwrap_or_default();
        let whole = limit.max(self.open).max(1);
        let width = whole.min(BAR);
        let mut bar = String::with_capacity(width + 2);
        let (mut counted, mut drawn) = (0, 0);
        bar.push('[');
        for (verdict, mark) in MARKS {
            counted += self.counts.get(verdict).copied().unwrap_or_default();
            // Rounded up, so that one leaked connection of a thousand still has its mark.
            let end = (counted * width).div_ceil(whole);
            bar.extend(std::iter::repeat_n(mark, end.saturating_sub(drawn)));
            drawn = drawn.max(end);
        }
        bar.extend(std::iter::repeat_n('.', width.saturating_sub(drawn)));
        bar.push(']');
        bar
    }

    /// What the bar shows, in words.
    pub fn glance(&self) -> String {
        let certain = self.count(Verdict::Leased) + self.count(Verdict::Busy);
        let mut text = format!("{certain} leased");
        let others = [
            (" + ", self.count(Verdict::Held), "held"),
            (", ", self.count(Verdict::Unknown) + self.count(Verdict::GroupStop), "not known"),
            (", ", self.count(Verdict::Free), "free"),
        ];
        for (before, count, what) in others.into_iter().filter(|(_, count, _)| *count > 0) {
            let _ = write!(text, "{before}{count} {what}");
        }
        match &self.limit {
            Json::Number(limit) => {
                let _ = write!(text, " of {limit} ({})", self.limit_source);
            }
            Json::Array(pair) if pair.len() == 2 && pair[1].is_null() => {
                let _ = write!(text, " of at least {} ({})", pair[0], self.limit_source);
            }
            Json::Array(pair) if pair.len() == 2 => {
                let _ = write!(text, " of {} to {} ({})", pair[0], pair[1], self.limit_source);
            }
            _ => {
                let _ = write!(text, ", {} open, no known limit", self.open);
            }
        }
        if self.discipline != "unknown" {
            let _ = write!(text, "; {}", self.discipline);
        }
        match &self.waiters {
            Json::Number(waiters) if waiters.as_f64() > Some(0.0) => {
                let _ = write!(text, "; {waiters} waiting");
            }
            Json::Array(pair) if pair.len() == 2 => {
                let _ = match pair[0].as_f64() {
                    Some(0.0) => write!(text, "; up to {} waiting", pair[1]),
                    Some(least) if pair[1].is_null() => write!(text, "; at least {least} waiting"),
                    _ => write!(text, "; {} to {} waiting", pair[0], pair[1]),
                };
            }
            _ => (),
        }
        if let Some(range) = empty_in(&self.empty_in) {
            let _ = write!(text, "; empty in {range}");
        }
        text
    }

    /// The application, process and remote end.
    pub fn who(&self) -> String {
        let inner = self.target.trim_start_matches("pool:");
        let (application, remote) = inner.split_once('>').unwrap_or((inner, &self.remote));
        match self.pid {
            Some(pid) => scrub::text(&format!("{application} pid {pid} > {remote}"), 200),
            None => scrub::text(&format!("{application} (owner: not visible) > {remote}"), 200),
        }
    }
}

impl ConnectionPart {
    /// Whether a process holds it beside the owner.
    pub fn is_shared_with(&self, pid: u32) -> bool {
        self.also_held_by.iter().any(|it| it.pid == pid)
    }

    /// One line: verdict, descriptors of the owner and of others, ends, session, state, age, rule, statement.
    pub fn line(&self) -> String {
        let fds: Vec<String> = self.fds.iter().map(u32::to_string).collect();
        let fd = if fds.is_empty() { "fd -".to_owned() } else { format!("fd {}", fds.join(",")) };
        let mut line = format!("{:10} {fd:8} {:22}", self.verdict, self.local);
        if let Some(session) = self.session {
            let _ = write!(line, " session {session:<8}");
        }
        if let Some(state) = &self.state {
            let _ = write!(line, " {state}");
        }
        if let Some(age) = self.age_seconds {
            let _ = write!(line, " for {age:.1} s");
        }
        let _ = write!(line, "  by {}", self.rule);
        if !self.also_held_by.is_empty() {
            let _ = write!(line, "  also held by {}", self.sharers());
        }
        if let Some(statement) = &self.statement {
            let _ = write!(line, "  `{}`", scrub::text(statement, 120));
        }
        scrub::text(&line, 400)
    }

    fn sharers(&self) -> Sharers {
        let descriptor =
            |it: &HolderPart| Descriptor { instance: Instance { pid: it.pid, start: it.start }, fd: it.fd };
        Sharers { first: self.also_held_by.iter().map(descriptor).collect(), more: self.also_held_more }
    }
}

/// A forecast as a person reads it: `3 min to 5 min`; `None` where it is a text that says why there is none.
pub fn empty_in(range: &Json) -> Option<String> {
    let (low, high) = (range.get(0)?.as_f64()?, range.get(1)?.as_f64()?);
    Some(format!("{} to {}", minutes(low), minutes(high)))
}

fn minutes(seconds: f64) -> String {
    if seconds < 120.0 { format!("{seconds:.0} s") } else { format!("{:.0} min", seconds / 60.0) }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::discover::{End, TargetKey};
    use crate::inspect::server::SessionState;
    use crate::inspect::{Reason, Value};

    fn connection(index: u64, verdict: Verdict) -> ConnectionView {
        let is_leased = verdict == Verdict::Leased;
        ConnectionView {
            cookie: index,
            fds: vec![10 + index as u32],
            sharers: Sharers::default(),
            local: End::Tcp(([127, 0, 0, 1], 40_000 + index as u16).into()),
            verdict,
            rule: if is_leased { "pg_stat_activity.state" } else { "rotation" },
            facts: vec![format!("quiet for {index} s, the pool's period is 0.8 s")],
            age: Some(Duration::from_secs(index)),
            session: is_leased.then_some(900 + index),
            state: is_leased.then_some(SessionState::IdleInTransaction),
            statement: is_leased.then(|| "SELECT $1".into()),
        }
    }

    /// The pool of POOL-XRAY's first example: 6 leased, 8 held, 4 free, 2 unknown of 30.
    pub(crate) fn pool() -> PoolView {
        let remote = End::Tcp(([10, 0, 0, 5], 5432).into());
        let kinds = [(Verdict::Free, 4), (Verdict::Held, 8), (Verdict::Leased, 6), (Verdict::Unknown, 2)];
        let all = kinds.into_iter().flat_map(|(verdict, count)| std::iter::repeat_n(verdict, count));
        PoolView {
            target: TargetKey::pool_of("grants-api", "worker", &remote, "app", "web"),
            instance: Some(Instance { pid: 4121, start: 7 }),
            remote,
            limit: (Value::Known(30.0), "DATABASE_URL of the process".into()),
            connections: all.enumerate().map(|(index, verdict)| connection(index as u64, verdict)).collect(),
            discipline: "rotating",
            waiters: Value::Known(15.0),
            empty_in: Value::Between(200.0, 300.0),
        }
    }

    #[test]
    fn a_pool_is_one_glance() {
        let part = &parts(&[pool()])[0];
        assert_eq!(part.bar(), "[######!!!!!!!!??----..........]");
        assert_eq!(
            part.glance(),
            "6 leased + 8 held, 2 not known, 4 free of 30 (DATABASE_URL of the process); rotating; 15 waiting; \
             empty in 3 min to 5 min"
        );
        assert_eq!(part.who(), "grants-api/worker pid 4121 > 10.0.0.5:5432/app?user=web");
    }

    #[test]
    fn a_long_bar_is_scaled_and_keeps_every_kind() {
        let mut view = pool();
        let busy = |index| connection(index, Verdict::Busy);
        view.connections = (0..999).map(|index| connection(index, Verdict::Free)).chain([busy(999)]).collect();
        view.limit.0 = Value::Unknown(Reason::NotYet("no limit"));
        let part = &parts(&[view])[0];
        assert_eq!(part.bar(), format!("[#{}]", "-".repeat(39)));
        assert!(part.glance().starts_with("1 leased, 999 free, 1000 open, no known limit"), "{}", part.glance());
    }

    #[test]
    fn what_is_certain_stands_first_and_the_oldest_before_the_others() {
        let part = &parts(&[pool()])[0];
        assert_eq!(
            part.connections[0].line(),
            "leased     fd 27    127.0.0.1:40017        session 917      idle in transaction for 17.0 s  by \
             pg_stat_activity.state  `SELECT $1`"
        );
        assert_eq!((part.connections[6].verdict.as_str(), part.connections[6].age_seconds), ("held", Some(11.0)));
    }

    #[test]
    fn whoever_holds_a_connection_after_a_fork_is_named_on_its_line() {
        let mut view = pool();
        let it = view.connections.iter_mut().find(|it| it.cookie == 17).expect("leased");
        let of = |pid: u32| Descriptor { instance: Instance { pid, start: 900 }, fd: 27 };
        it.sharers = Sharers { first: (4130..4136).map(of).collect(), more: 3 };
        let part = &parts(&[view])[0];
        let line = part.connections[0].line();
        assert!(
            line.contains(
                "also held by pid 4130 fd 27, pid 4131 fd 27, pid 4132 fd 27, pid 4133 fd 27 and 5 more  `SELECT $1`"
            ),
            "{line}"
        );
        assert_eq!(part.open, 20, "it is one connection");
        let is_shared = |pid| part.connections.iter().filter(|it| it.is_shared_with(pid)).count();
        assert_eq!([4121, 4130, 4135, 4136].map(is_shared), [0, 1, 1, 0]);
        let json = serde_json::to_value(&part.connections[0]).expect("JSON");
        assert_eq!(json["also_held_by"][0], serde_json::json!({ "pid": 4130, "start": 900, "fd": 27 }));
        assert_eq!((json["also_held_by"].as_array().map(Vec::len), &json["also_held_more"]), (Some(6), &3.into()));
    }

    #[test]
    fn a_report_has_a_bound() {
        let mut view = pool();
        view.connections = (0..3_000).map(|index| connection(index, Verdict::Unknown)).collect();
        let parts = parts(&[view, pool()]);
        assert_eq!(parts.iter().map(|it| it.connections.len()).sum::<usize>(), MAX_CONNECTIONS);
        assert_eq!(parts.iter().map(|it| it.open).sum::<usize>(), 3_020, "the counts are whole");
    }
}
