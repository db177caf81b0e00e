//! One connection as it stands in evidence: the same fields in every check of pools, made in this one place.
//!
//! `pid`, `start`, `fd`, `local`, `remote`, `socket` (its TCP state), `session` (the server's number) and `state` (what
//! the server says of it), and its ages: `age_seconds` (of the offence), `state_age_seconds`, `quiet_seconds` (since
//! data went either way), `open_seconds`. What is not known is `null`, and why stands in the finding's `not_visible`.
//! A check adds fields of its own behind these.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Map, Value as Json, json};
use tickbird_shared::protocol::MAX_EVIDENCE_BYTES;

use super::heard::Heard;
use super::join::Joined;
use super::{Owner, PoolRow, owner_name, pids, pids_in_words};
use crate::discover::{End, Instance};
use crate::inspect::Unit;
use crate::inspect::host::{Connection, Sharers};
use crate::inspect::server::{Session, SessionState};
use crate::judge::evidence::{Case, number, object};

/// Most rows in the evidence.
pub(super) const MAX_ROWS: usize = 50;
/// Most processes in the evidence.
pub(super) const MAX_INSTANCES: usize = 10;
/// What the names of the two lists take, and the bounds that the finding gets at last.
const MARGIN: usize = 200;

/// A connection that offends, with how long it has done so.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offender<'a> {
    pub(super) pool: &'a PoolRow,
    pub(super) connection: &'a Connection,
    pub(super) age_seconds: f64,
}

/// What the server says of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum Word<'a> {
    Said(&'a Session),
    /// It has no session of it, and that is certain.
    Gone(&'static str),
    /// Nothing, and why.
    Nothing(&'static str),
}

/// One connection with all that is known of it.
#[derive(Debug, Clone)]
pub(super) struct One<'a> {
    pub(super) instance: Option<Instance>,
    /// Its descriptors in the owner, or why they are not known of an owner that is.
    pub(super) fds: Result<&'a [u32], &'static str>,
    pub(super) sharers: Option<&'a Sharers>,
    pub(super) local: String,
    pub(super) remote: &'a End,
    pub(super) socket: String,
    pub(super) word: Word<'a>,
    pub(super) age: Option<f64>,
    pub(super) quiet: Option<Duration>,
    pub(super) open_for: Option<Duration>,
}

impl<'a> One<'a> {
    /// A connection as this host sees it.
    pub(super) fn of(pool: &'a PoolRow, it: &'a Connection, word: Word<'a>, age: Option<f64>) -> Self {
        let fds = match it.fds.is_empty() {
            true => Err("fd: not found in the process that had the connection"),
            false => Ok(&it.fds[..]),
        };
        Self {
            instance: instance(pool),
            fds,
            sharers: Some(&it.sharers),
            local: it.local.to_string(),
            remote: &pool.remote,
            socket: format!("{:?}", it.state),
            word,
            age,
            quiet: [it.sent_age, it.received_age].into_iter().flatten().min(),
            open_for: Some(it.seen_for),
        }
    }

    /// One that is joined with a session, which may tell the process alone.
    pub(super) fn joined(it: &Joined<'a>, age: Option<f64>) -> Self {
        let one = Self::of(it.pool, it.connection, Word::Said(it.session), age);
        match it.is_exact {
            true => one,
            // Any of its unix sockets may be the one, so nothing of this one is told.
            false => {
                let why = "fd: one of several unix sockets of the process, which the server does not tell apart";
                Self { fds: Err(why), sharers: None, quiet: None, open_for: None, ..one }
            }
        }
    }
}

/// The rows of one finding, and why something is missing in them.
#[derive(Debug, Default)]
pub(super) struct Rows {
    rows: Vec<Map<String, Json>>,
    /// What else there is to say of each: the first to go where there is no room.
    texts: Vec<Map<String, Json>>,
    not_visible: BTreeSet<&'static str>,
}

impl Rows {
    /// Adds a connection; the fields of its own are the check's to add.
    pub(super) fn add(&mut self, it: &One<'_>) -> &mut Map<String, Json> {
        let seconds = |it: Duration| number(it.as_secs_f64(), Unit::Seconds);
        let fds = match (it.instance, it.fds) {
            (None, _) => {
                self.not_visible.insert("owner: not visible");
                &[][..]
            }
            (Some(_), Ok(fds)) => fds,
            (Some(_), Err(why)) => {
                self.not_visible.insert(why);
                &[][..]
            }
        };
        let (session, state) = match it.word {
            Word::Said(session) if session.state == SessionState::Unknown => {
                self.not_visible.insert("state: the server does not tell it of some sessions");
                (Some(session), Some(session.state.as_str()))
            }
            Word::Said(session) => (Some(session), Some(session.state.as_str())),
            Word::Gone(why) => {
                self.not_visible.insert(why);
                (None, Some("gone at the server"))
            }
            Word::Nothing(why) => {
                self.not_visible.insert(why);
                (None, None)
            }
        };
        let ages = [
            (it.age.is_some(), "age_seconds: since when some are in use is not known"),
            (session.is_none_or(|it| it.state_age.is_some()), "state_age_seconds: not told of some sessions"),
            (it.quiet.is_some(), "quiet_seconds: no data's age is told of a unix socket, nor of a socket that is gone"),
            (it.open_for.is_some(), "open_seconds: not known of a socket that is gone, or not told from others"),
        ];
        self.not_visible.extend(ages.into_iter().filter(|(is_seen, _)| !is_seen).map(|(_, why)| why));
        let mut row = object(json!({
            "pid": it.instance.map(|it| it.pid),
            "start": it.instance.map(|it| it.start),
            "fd": fds.first(),
            "local": it.local,
            "remote": it.remote.to_string(),
            "socket": it.socket,
            "session": session.map(|it| it.backend),
            "state": state,
            "age_seconds": it.age.map(|it| number(it, Unit::Seconds)),
            "state_age_seconds": session.and_then(|it| it.state_age).map(seconds),
            "quiet_seconds": it.quiet.map(seconds),
            "open_seconds": it.open_for.map(seconds),
        }));
        if fds.len() > 1 {
            row.insert("fds".to_owned(), json!(fds));
        }
        if let Some(sharers) = it.sharers.filter(|it| !it.is_empty()) {
            let holder = |it: &crate::inspect::host::Descriptor| json!({ "pid": it.instance.pid, "start": it.instance.start, "fd": it.fd });
            row.insert("also_held_by".to_owned(), sharers.first.iter().map(holder).collect());
            if sharers.more > 0 {
                row.insert("also_held_more".to_owned(), json!(sharers.more));
            }
        }
        self.rows.push(row);
        self.texts.push(Map::new());
        let last = self.rows.len() - 1;
        &mut self.rows[last]
    }

    /// Adds texts and names to the last row, which it loses first where not everything has room.
    pub(super) fn tell(&mut self, texts: Json) {
        if let Some(last) = self.texts.last_mut() {
            last.extend(object(texts));
        }
    }

    /// Puts as many rows as fit into the evidence, under `name`, the first of them with their texts, and names the others
    /// under `<name>_in_short`; a total is the check's to add.
    pub(super) fn put(self, evidence: &mut Map<String, Json>, name: &str) {
        let known = evidence.remove("not_visible");
        let known = known.iter().flat_map(|it| it.as_array().into_iter().flatten()).filter_map(Json::as_str);
        let not_visible: BTreeSet<&str> = known.chain(self.not_visible).collect();
        evidence.insert("not_visible".to_owned(), json!(not_visible));
        let left = room(evidence);
        let short: Vec<String> = self.rows.iter().map(in_short).collect();
        // As many in full as leave room for naming the others.
        let named = |from: usize| short[from..].iter().map(|it| it.len() + 3).sum::<usize>();
        let mut bytes: usize = self.rows.iter().map(size).sum();
        let mut full = self.rows.len();
        while full > 0 && bytes + named(full) > left {
            full -= 1;
            bytes -= size(&self.rows[full]);
        }
        if full < short.len() {
            evidence.insert(format!("{name}_in_short"), json!(short[full..]));
        }
        let mut room = left.saturating_sub(bytes + named(full));
        let mut rows: Vec<Map<String, Json>> = self.rows.into_iter().take(full).collect();
        for (row, texts) in rows.iter_mut().zip(self.texts) {
            let bytes = size(&texts);
            if bytes > room {
                break;
            }
            room -= bytes;
            row.extend(texts);
        }
        evidence.insert(name.to_owned(), json!(rows));
    }

    /// Whether all of it has room.
    pub(super) fn fit(&self, evidence: &Map<String, Json>) -> bool {
        let reasons: usize = self.not_visible.iter().map(|it| it.len() + 3).sum();
        self.rows.iter().chain(&self.texts).map(size).sum::<usize>() + reasons <= room(evidence)
    }
}

/// Bytes that are left for rows.
fn room(evidence: &Map<String, Json>) -> usize {
    MAX_EVIDENCE_BYTES.saturating_sub(Json::Object(evidence.clone()).to_string().len() + MARGIN)
}

/// A row that has no room: `pid 77 fd 17 10.0.0.9:40000 session 901`.
fn in_short(row: &Map<String, Json>) -> String {
    let word = |key: &str| row.get(key).filter(|it| !it.is_null());
    let number = |key: &str| word(key).map(|it| format!("{key} {it}"));
    let local = word("local").and_then(Json::as_str).map(str::to_owned);
    let parts = [number("pid"), number("fd"), local, number("session")];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// Bytes of a row and its comma.
fn size(row: &Map<String, Json>) -> usize {
    serde_json::to_string(row).map_or(0, |it| it.len()) + 1
}

/// The process of a pool.
pub(super) const fn instance(pool: &PoolRow) -> Option<Instance> {
    match &pool.owner {
        Owner::Seen { instance, .. } => Some(*instance),
        Owner::NotVisible { .. } => None,
    }
}

/// What a sentence adds where several processes hold a connection, as workers do after a fork; else nothing.
pub(super) fn sharing<'a>(connections: impl IntoIterator<Item = &'a Connection>) -> String {
    let mut shared = connections.into_iter().filter(|it| !it.sharers.is_empty());
    let Some(first) = shared.next() else { return String::new() };
    let fd = first.fds.first().map_or_else(String::new, |fd| format!("fd {fd} "));
    match shared.count() {
        0 => format!("; {fd}is also held by {}: processes share it, as after a fork", first.sharers),
        more => format!(
            "; {} of these connections are held by several processes, {fd}also by {}: they share them, as after a fork",
            more + 1,
            first.sharers
        ),
    }
}

/// Every connection of some rows with its row.
pub(super) fn connections<'a>(rows: &[&'a PoolRow]) -> impl Iterator<Item = (&'a PoolRow, &'a Connection)> {
    rows.iter().flat_map(|row| row.connections.iter().map(|it| (*row, it)))
}

/// The case against some connections, the oldest first. `what` ends the sentence "shop, pid 77, has 2 of 8 connections
/// to 10.0.0.5:5432 …".
pub(super) fn case(rows: &[&PoolRow], offenders: &[Offender<'_>], heard: Heard<'_>, rule: &str, what: &str) -> Case {
    let open: usize = rows.iter().map(|it| it.connections.len()).sum();
    let pids = pids(offenders.iter().map(|it| it.pool));
    let summary = offenders.first().map_or_else(String::new, |oldest| {
        let fd = oldest.connection.fds.first().map_or_else(String::new, |fd| format!(" (the oldest on fd {fd})"));
        let has = if pids.len() > 1 { "have" } else { "has" };
        let (who, remote) = (owner_name(oldest.pool), &oldest.pool.remote);
        let (whose, count) = (pids_in_words(&pids), offenders.len());
        let shared = sharing(offenders.iter().map(|it| it.connection));
        format!("{who}, {whose}, {has} {count} of {open} connections to {remote} {what}{fd}{shared}")
    });
    let mut members: Vec<u64> = offenders.iter().map(|it| it.connection.cookie).collect();
    members.sort_unstable();
    let mut evidence = object(json!({
        "connections_total": offenders.len(), "open": open, "pids": pids, "rule": rule, "not_visible": [],
    }));
    let mut shown = Rows::default();
    for it in offenders.iter().take(MAX_ROWS) {
        let word = heard.of(it.pool, it.connection);
        let row = shown.add(&One::of(it.pool, it.connection, word, Some(it.age_seconds)));
        row.extend(object(timers(it.connection)));
    }
    shown.put(&mut evidence, "connections");
    Case { summary, evidence, members, age_seconds: offenders.first().map(|it| it.age_seconds), advice: None }
}

/// Puts the processes that hold some pools into the evidence.
pub(super) fn put_instances<'a>(rows: impl IntoIterator<Item = &'a PoolRow>, evidence: &mut Map<String, Json>) {
    let mut is_hidden = false;
    let process = |row: &PoolRow| {
        let instance = instance(row);
        is_hidden |= instance.is_none();
        json!({
            "pid": instance.map(|it| it.pid),
            "start": instance.map(|it| it.start),
            "remote": row.remote.to_string(),
            "open": row.connections.len(),
        })
    };
    let all: Json = rows.into_iter().take(MAX_INSTANCES).map(process).collect();
    evidence.insert("instances".to_owned(), all);
    if is_hidden {
        not_visible(evidence, "owner: not visible");
    }
}

/// Says of what nothing is seen.
pub(super) fn not_visible(evidence: &mut Map<String, Json>, what: &str) {
    match evidence.get_mut("not_visible") {
        Some(Json::Array(all)) => all.push(json!(what)),
        _ => {
            evidence.insert("not_visible".to_owned(), json!([what]));
        }
    }
}

/// Puts what is open in some pools into the evidence: the processes, and the connections as rows, the youngest first.
pub(super) fn put_open(rows: &[&PoolRow], heard: Heard<'_>, evidence: &mut Map<String, Json>) {
    put_instances(rows.iter().copied(), evidence);
    let mut open: Vec<_> = connections(rows).collect();
    open.sort_by_key(|(_, it)| it.seen_for);
    evidence.insert("open".to_owned(), json!(open.len()));
    let mut shown = Rows::default();
    for (pool, it) in open.into_iter().take(MAX_ROWS) {
        shown.add(&One::of(pool, it, heard.of(pool, it), Some(it.seen_for.as_secs_f64())));
    }
    shown.put(evidence, "connections");
}

/// What the kernel's timers tell of a peer that may be gone.
fn timers(it: &Connection) -> Json {
    json!({ "retransmits": it.retransmits, "probes": it.probes, "keepalive": it.keepalive })
}
