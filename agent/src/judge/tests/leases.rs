//! Pools as they behave, second by second: requests come, connections are handed out in an order, some are not given
//! back. What the judge says of each connection is held against what the simulated pool knows.

use std::collections::VecDeque;
use std::time::Duration;

use super::Night;
use super::rows::{connection, pool, process, server, session};
use super::stats::said;
use crate::inspect::HostLook;
use crate::inspect::Value;
use crate::inspect::host::{Connection, Limit, PoolRow, ProcessRow};
use crate::judge::Verdict;

const REMOTE: &str = "10.0.0.5:5432";
/// A kernel tick of 4 ms is the grain of every age.
const GRAIN: f64 = 0.004;

/// Numbers that look random and are the same in every run.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A waiting time with this mean.
    fn wait(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).max(1e-12).ln()
    }
}

/// One connection of the simulated pool.
pub(super) struct Line {
    pub(super) port: u16,
    born: f64,
    /// Handed out, and its answer has not come.
    sent: f64,
    received: f64,
    /// When it is given back; infinite for a leak.
    back: f64,
    pub(super) leaked: Option<f64>,
}

/// A pool with traffic.
pub(super) struct Sim {
    dice: Dice,
    fifo: bool,
    /// Threads with a connection each, which come back with a beat of their own; when each is due.
    threads: Vec<f64>,
    pub(super) rate: f64,
    pub(super) most: usize,
    /// Port of the first connection.
    base: u16,
    pub(super) lines: Vec<Line>,
    free: VecDeque<usize>,
    next: f64,
    now: f64,
    /// Every so many requests one connection is not given back, until so many are.
    pub(super) leak_each: usize,
    pub(super) leak_most: usize,
    requests: usize,
    served: usize,
}

impl Sim {
    pub(super) fn new(seed: u64, fifo: bool, rate: f64, open: usize) -> Self {
        Self::beside(seed, fifo, rate, open, 40_000)
    }

    /// One whose connections have ports from `base` on.
    pub(super) fn beside(seed: u64, fifo: bool, rate: f64, open: usize, base: u16) -> Self {
        let lines = |index: usize| Line {
            port: base + index as u16,
            born: -900.0,
            sent: -800.0,
            received: -800.0,
            back: 0.0,
            leaked: None,
        };
        Self {
            dice: Dice(seed * 7919 + 1),
            fifo,
            threads: Vec::new(),
            rate,
            most: open,
            base,
            lines: (0..open).map(lines).collect(),
            free: (0..open).collect(),
            next: 0.0,
            now: 0.0,
            leak_each: 0,
            leak_most: 0,
            requests: 0,
            served: 0,
        }
    }

    /// Each of so many connections belongs to one thread; together they make `rate` requests a second.
    fn of_threads(seed: u64, rate: f64, threads: usize) -> Self {
        let mut sim = Self::new(seed, true, rate, threads);
        sim.threads = (0..threads).map(|_| sim.dice.unit() * threads as f64 / rate).collect();
        sim
    }

    /// Lets each thread work until `end`.
    fn work_in_threads(&mut self, end: f64) {
        for (index, due) in self.threads.iter_mut().enumerate() {
            while *due <= end {
                let took = 0.002 + 0.004 * self.dice.unit();
                let line = &mut self.lines[index];
                line.sent = *due;
                if *due + took <= end {
                    line.received = *due + took;
                }
                *due += ((0.2 + 1.6 * self.dice.unit()) * self.most as f64 / self.rate).max(took);
            }
            // The answer to what was sent before the last look.
            let line = &mut self.lines[index];
            if line.received < line.sent && line.sent + 0.006 <= end {
                line.received = line.sent + 0.006;
            }
        }
        self.now = end;
    }

    fn leaked(&self) -> usize {
        self.lines.iter().filter(|it| it.leaked.is_some()).count()
    }

    /// Lets the pool work until `end`.
    fn work(&mut self, end: f64) {
        if !self.threads.is_empty() {
            return self.work_in_threads(end);
        }
        loop {
            let back = self.lines.iter().enumerate().filter(|(_, it)| it.back > self.now && it.back.is_finite());
            let back = back.min_by(|a, b| a.1.back.total_cmp(&b.1.back)).map(|(index, it)| (index, it.back));
            match back {
                Some((index, at)) if at <= self.next && at <= end => {
                    self.now = at;
                    self.lines[index].received = at;
                    self.lines[index].back = 0.0;
                    if self.lines[index].leaked.is_none() {
                        self.free.push_back(index);
                    }
                }
                _ if self.rate > 0.0 && self.next <= end => {
                    self.now = self.next;
                    self.next += self.dice.wait(1.0 / self.rate);
                    self.request();
                }
                _ => break,
            }
        }
        self.now = end;
        self.next = self.next.max(end);
    }

    fn request(&mut self) {
        let index = match if self.fifo { self.free.pop_front() } else { self.free.pop_back() } {
            Some(index) => index,
            None if self.lines.len() < self.most => {
                self.lines.push(Line {
                    port: self.base + self.lines.len() as u16,
                    born: self.now,
                    sent: self.now,
                    received: self.now,
                    back: 0.0,
                    leaked: None,
                });
                self.lines.len() - 1
            }
            None => return,
        };
        self.requests += 1;
        let took = 0.002 + self.dice.wait(0.015);
        let line = &mut self.lines[index];
        (line.sent, line.back) = (self.now, self.now + took);
        if self.leak_each > 0 && self.requests.is_multiple_of(self.leak_each) && self.leaked() < self.leak_most {
            self.lines[index].leaked = Some(self.now);
        }
        self.served += 1;
    }

    /// What the kernel shows now.
    fn connections(&self) -> Vec<Connection> {
        let age = |at: f64| Some(Duration::from_secs_f64(((self.now - at) / GRAIN).floor().max(0.0) * GRAIN));
        let row = |(index, it): (usize, &Line)| Connection {
            sent_age: age(it.sent),
            received_age: age(it.received),
            acknowledged_age: age(it.sent.max(it.received)),
            seen_for: Duration::from_secs_f64(self.now - it.born.max(0.0)),
            born: it.born > 0.0,
            ..connection(&format!("10.0.0.9:{}", it.port), 10 + index as u32)
        };
        self.lines.iter().enumerate().map(row).collect()
    }

    /// One look, and 30 ms later a second dump.
    pub(super) fn look(&mut self, at: f64) -> Vec<Connection> {
        self.work(at);
        let mut seen = self.connections();
        let before: Vec<f64> = self.lines.iter().map(|it| it.sent).collect();
        self.work(at + 0.03);
        for (connection, before) in seen.iter_mut().zip(before) {
            let line = self.lines.iter().find(|it| connection.local.to_string().ends_with(&it.port.to_string()));
            connection.picked = line.map(|it| it.sent > before);
        }
        seen
    }
}

/// How often the judge was right.
#[derive(Debug, Default)]
struct Score {
    /// Looks at a connection that was in the pool and was called held.
    false_held: usize,
    /// Looks at a leaked connection 15 s old or older.
    leaked: usize,
    /// Of these, those called held.
    found: usize,
    free: usize,
}

impl Score {
    fn recall(&self) -> f64 {
        self.found as f64 / self.leaked.max(1) as f64
    }

    fn take(&mut self, night: &Night, sim: &Sim) {
        for view in night.judge.pools() {
            for it in &view.connections {
                let port = it.local.address().expect("TCP").port();
                let Some(line) = sim.lines.iter().find(|line| line.port == port) else { continue };
                let is_held = it.verdict == Verdict::Held;
                match line.leaked {
                    None => {
                        self.false_held += usize::from(is_held);
                        self.free += usize::from(it.verdict == Verdict::Free);
                    }
                    Some(since) if sim.now - since >= 15.0 => {
                        self.leaked += 1;
                        self.found += usize::from(is_held);
                    }
                    Some(_) => (),
                }
            }
        }
    }
}

pub(super) fn host(connections: Vec<Connection>, limit: usize) -> HostLook {
    let mut row: PoolRow = pool("shop", 77, REMOTE);
    row.births = connections.iter().filter(|it| it.born && it.seen_for < Duration::from_secs(1)).count() as u32;
    row.connections = connections;
    row.limit = Limit { value: Value::Known(limit as f64), source: "configuration".into() };
    HostLook { pools: vec![row], ..HostLook::default() }
}

/// Runs a pool for so many seconds and scores every look.
fn run(night: &mut Night, sim: &mut Sim, seconds: u32) -> Score {
    let mut score = Score::default();
    let began = sim.now.round();
    for second in 1..=seconds {
        let seen = sim.look(began + f64::from(second));
        night.wait(1.0).host(&host(seen, sim.most));
        score.take(night, sim);
    }
    score
}

#[test]
fn in_a_rotating_pool_leaks_are_held_and_nothing_else_is() {
    for (seed, rate) in [(1, 4.0), (2, 60.0), (3, 20.0), (4, 4.0)] {
        let mut night = Night::begin();
        let mut sim = Sim::new(seed, true, rate, 20);
        // Slow traffic needs minutes for twenty events.
        run(&mut night, &mut sim, 400);
        (sim.leak_each, sim.leak_most) = ((rate * 12.0) as usize, 6);
        let score = run(&mut night, &mut sim, 240);
        assert_eq!(score.false_held, 0, "{rate}/s: {score:?}");
        assert!(score.recall() >= 0.85, "{rate}/s: {} of {}", score.found, score.leaked);
        let leak = night.state("pool.leak", "shop");
        assert!(leak.state >= crate::judge::State::Warning, "{rate}/s: {leak:?}");
    }
}

#[test]
fn a_healthy_rotating_pool_is_silent_at_every_rate_and_when_the_rate_changes() {
    for seed in 1..=6 {
        let mut night = Night::begin();
        let mut sim = Sim::new(seed, true, 60.0, 20);
        let mut score = run(&mut night, &mut sim, 60);
        for rate in [2.0, 30.0, 0.5, 60.0, 0.0, 8.0] {
            sim.rate = rate;
            sim.next = sim.now;
            let more = run(&mut night, &mut sim, 90);
            score.false_held += more.false_held;
            score.free += more.free;
        }
        assert_eq!(score.false_held, 0, "seed {seed}: {score:?}");
        assert!(score.free > 0, "the pool was known to rotate");
        assert_eq!(night.told_of("pool.leak"), "");
    }
}

/// HikariCP gives each thread its last one again, and so do ORMs that keep one for each thread: a third of the threads end,
/// and what they used rests in the pool.
#[test]
fn threads_with_a_connection_each_make_no_queue() {
    let mut wrong = Vec::new();
    for seed in 1..=24 {
        let threads = 5 + seed as usize % 8;
        for rate in [4.0, 12.0, 60.0, 120.0, 200.0] {
            let mut night = Night::begin();
            let mut sim = Sim::of_threads(seed, rate, threads);
            let mut held = run(&mut night, &mut sim, 300).false_held;
            sim.threads.truncate(threads - threads / 3);
            held += run(&mut night, &mut sim, 60).false_held;
            if held > 0 {
                wrong.push(format!("seed {seed}: {threads} threads at {rate}/s: {held} looks"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of 120 runs: {wrong:#?}", wrong.len());
}

#[test]
fn of_a_stack_that_does_not_grow_nothing_is_claimed() {
    for rate in [4.0, 60.0] {
        let mut night = Night::begin();
        let mut sim = Sim::new(9, false, rate, 20);
        run(&mut night, &mut sim, 200);
        (sim.leak_each, sim.leak_most) = ((rate * 10.0) as usize, 6);
        let score = run(&mut night, &mut sim, 200);
        assert_eq!((score.false_held, score.found, score.free), (0, 0, 0), "{rate}/s: {score:?}");
        assert_eq!(night.told_of("pool.leak"), "");
    }
}

#[test]
fn a_pool_that_has_to_grow_shows_its_leaks_whatever_its_order() {
    for (seed, fifo) in [(1, true), (2, false), (3, true), (4, false), (5, false)] {
        let mut night = Night::begin();
        let mut sim = Sim::new(seed, fifo, 30.0, 3);
        sim.most = 20;
        run(&mut night, &mut sim, 130);
        (sim.leak_each, sim.leak_most) = (200, 12);
        let score = run(&mut night, &mut sim, 200);
        assert_eq!(score.false_held, 0, "seed {seed}: {score:?}");
        assert!(score.recall() >= 0.85, "seed {seed}: {} of {}", score.found, score.leaked);
        assert_eq!(night.is("pool.leak", "shop"), "critical", "twelve of twenty are held");
    }
}

#[test]
fn a_pool_that_fills_up_to_its_minimum_proves_nothing_of_the_others() {
    // A stack of one process, in which only growth names what is held; its page tells what it keeps open.
    let found = |program: &str, page: Option<(Option<f64>, Option<f64>)>| {
        let mut night = Night::begin();
        let mut sim = Sim::new(2, false, 30.0, 3);
        sim.most = 20;
        let mut score = Score::default();
        for second in 1..=330 {
            if second == 130 {
                (sim.leak_each, sim.leak_most) = (200, 12);
            }
            if let Some(told) = page.filter(|_| second % 10 == 1) {
                let mut page = said(3.0, 20.0, 0.0);
                let pool = &mut page.pools.as_mut().expect("a pool")[0];
                (pool.least, pool.least_idle) = told;
                night.stats(&page);
            }
            let command = format!("/usr/bin/{program} shop").into();
            let process = ProcessRow { command, ..process("shop", 77, 0) };
            let look = host(sim.look(f64::from(second)), sim.most);
            night.wait(1.0).host(&HostLook { processes: vec![process], ..look });
            score.take(&night, &sim);
        }
        score.found
    };
    let ahead = [(Some(20.0), None), (None, Some(3.0))];
    for (program, told) in ["python3", "java"].into_iter().flat_map(|it| ahead.map(|told| (it, told))) {
        assert_eq!(found(program, Some(told)), 0, "{program} opens them though nobody asks: {told:?}");
    }
    for told in [(Some(2.0), None), (None, Some(0.0))] {
        for program in ["python3", "java"] {
            assert!(found(program, Some(told)) > 200, "{program} {told:?}");
        }
    }
    let untold = Some((None, None));
    assert!(found("python3", None) > 200 && found("python3", untold) > 200, "most pools open on demand");
    assert_eq!((found("java", None), found("java", untold)), (0, 0), "HikariCP may open ahead");
}

#[test]
fn two_connections_in_one_pool_that_stop_and_come_back_are_no_leak() {
    let mut night = Night::begin();
    let mut sim = Sim::new(11, true, 20.0, 10);
    // A second pool to the same server in the same process, which goes quiet at once.
    let mut second = Sim::beside(12, true, 20.0, 6, 40_100);
    for second_of in 1..=400 {
        let at = f64::from(second_of);
        if second_of == 200 {
            second.rate = 0.0;
        }
        let mut seen = sim.look(at);
        seen.extend(second.look(at));
        night.wait(1.0).host(&host(seen, 30));
        let held = night.judge.pools().iter().map(|it| it.count(Verdict::Held)).sum::<usize>();
        assert_eq!(held, 0, "second {second_of}");
    }
    assert_eq!(night.told_of("pool.leak"), "");
}

#[test]
fn a_repaired_leak_is_resolved() {
    let mut night = Night::begin();
    let mut sim = Sim::new(21, true, 20.0, 20);
    run(&mut night, &mut sim, 120);
    (sim.leak_each, sim.leak_most) = (200, 5);
    run(&mut night, &mut sim, 200);
    let summary = night.state("pool.leak", "shop").summary.expect("it fires");
    assert!(summary.contains("has held 5 of 20 connections to 10.0.0.5:5432 for longer than"), "{summary}");
    sim.leak_each = 0;
    for index in 0..sim.lines.len() {
        if sim.lines[index].leaked.take().is_some() {
            (sim.lines[index].sent, sim.lines[index].received) = (sim.now, sim.now);
            sim.free.push_back(index);
        }
    }
    run(&mut night, &mut sim, 10);
    assert_eq!(night.is("pool.leak", "shop"), "ok");
    assert_eq!(night.is("pool.leak_rate", "shop"), "critical", "five within the hour");
}

/// The server names what is in a transaction; sessions that listen or hold a lock are nobody's leak.
#[test]
fn the_servers_word_is_certain_and_sessions_of_their_own_are_left_alone() {
    let mut night = Night::begin();
    let mut last = None;
    for second in 1..=200_u32 {
        let age = Duration::from_secs(second.into());
        let rows: Vec<Connection> = (0..6)
            .map(|index| Connection {
                sent_age: Some(if index < 4 { age } else { Duration::from_millis(300) }),
                received_age: Some(if index < 4 { age } else { Duration::from_millis(300) }),
                // Keepalive probes are answered all the time.
                acknowledged_age: Some(Duration::from_millis(200)),
                seen_for: age,
                ..connection(&format!("10.0.0.9:{}", 40_000 + index), 10 + index)
            })
            .collect();
        night.wait(1.0).host(&host(rows, 10));
        if second % 5 == 0 {
            let mut sessions: Vec<_> =
                (0..6).map(|index| session(900 + index, &format!("10.0.0.9:{}", 40_000 + index))).collect();
            for (index, it) in sessions.iter_mut().enumerate().take(4) {
                it.state_age = Some(age);
                it.statement =
                    Some(["LISTEN jobs", "SELECT pg_advisory_lock($1)", "SELECT $1", "SELECT $1"][index].into());
            }
            for it in &mut sessions[2..4] {
                it.state = crate::inspect::server::SessionState::IdleInTransaction;
                it.state_age = Some(age.saturating_sub(Duration::from_secs(if it.backend == 902 { 0 } else { 5 })));
                it.transaction_age = it.state_age;
            }
            last = Some(server(REMOTE, sessions));
        }
        if let Some(look) = last.take() {
            night.server(&look);
        }
    }
    let state = night.state("pool.leak", "shop");
    assert_eq!(state.state, crate::judge::State::Warning, "{state:?}");
    let named: serde_json::Value = serde_json::from_str(state.evidence.expect("proof").get()).expect("JSON");
    let mut sessions: Vec<_> =
        named["connections"].as_array().expect("rows").iter().map(|it| it["session"].as_u64()).collect();
    sessions.sort_unstable();
    assert_eq!(sessions, [Some(902), Some(903)]);
    assert_eq!(named["rule"], serde_json::json!({ "pg_stat_activity.state": 2 }));
}

/// Taken from the pool for good, each for a purpose of its own; the last statement of all of them is a commit.
#[test]
fn connections_of_a_pool_that_listen_or_hold_a_lock_are_left_alone_after_their_commit_too() {
    let mut night = Night::begin();
    let mut sim = Sim::new(31, true, 30.0, 20);
    run(&mut night, &mut sim, 120);
    (sim.leak_each, sim.leak_most) = (150, 6);
    let (mut idle_since, mut shown) = (std::collections::BTreeMap::new(), std::collections::BTreeSet::new());
    for second in 1..=240_u32 {
        let seen = sim.look(120.0 + f64::from(second));
        night.wait(1.0).host(&host(seen, sim.most));
        let mut dedicated: Vec<usize> = (0..sim.lines.len()).filter(|at| sim.lines[*at].leaked.is_some()).collect();
        dedicated.sort_by(|a, b| sim.lines[*a].leaked.partial_cmp(&sim.lines[*b].leaked).expect("times"));
        for at in &dedicated {
            idle_since.entry(*at).or_insert(sim.lines[*at].sent);
        }
        // Two of them are notified now and then.
        if second % 10 == 0 {
            dedicated.iter().skip(4).for_each(|at| sim.lines[*at].received = sim.now);
        }
        if second % 5 != 0 {
            continue;
        }
        let now = sim.now;
        let row = |(at, line): (usize, &Line)| {
            let mut it = session(900 + at as u64, &format!("10.0.0.9:{}", line.port));
            let since = idle_since.get(&at).copied().unwrap_or(line.received);
            it.state_age = Some(Duration::from_secs_f64((now - since).max(0.0)));
            it.statement = Some("COMMIT".into());
            match dedicated.iter().position(|it| *it == at) {
                Some(0 | 1) => it.holds_lock = true,
                Some(2 | 3) if shown.insert(at) => it.statement = Some("LISTEN orders".into()),
                _ => (),
            }
            it
        };
        let sessions: Vec<_> = sim.lines.iter().enumerate().map(row).collect();
        night.server(&server(REMOTE, sessions));
    }
    assert_eq!(sim.leaked(), 6);
    assert_eq!((night.told_of("pool.leak"), night.told_of("pool.leak_rate")), (String::new(), String::new()));
}
