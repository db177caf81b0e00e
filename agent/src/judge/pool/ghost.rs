//! Sessions that stay on the server after their client is gone: each takes a slot until the server notices.
//!
//! A row with an address of this host and without a socket here may belong to another network namespace behind the same
//! address. So only those count whose socket was here, joined at an earlier look: they are certainly ours.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use super::join::Join;
use super::row::{self, One, Rows, Word};
use super::{Instances, Subject, Tracks, place};
use crate::discover::{End, Instance, TargetKey};
use crate::inspect::server::Session;
use crate::inspect::{Reason, ServerLook, Unit, Value};
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, number, object};
use crate::judge::threshold::Seen;
use crate::judge::tracks::Place;
use crate::judge::{Moment, words};

const CHECK: CheckId = CheckId::Ghost;
/// Looks at the server after which a session without its socket is no matter of two views taken at two moments.
const LOOKS: u32 = 2;
/// Most sessions in the evidence, and in memory for each server.
const MAX_ROWS: usize = 50;
const MAX_KNOWN: usize = 20_000;

/// What is remembered of each server.
pub(super) type Known = HashMap<TargetKey, Remembered>;

/// Sessions of one server, by what they are in one life.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    /// Those that were once joined with a socket here.
    once: HashMap<(u64, SocketAddr), Once>,
    /// Those that never were, though they come from an address of this host, with the looks that had them.
    never: HashMap<(u64, SocketAddr), u32>,
}

/// Whose it was.
#[derive(Debug, Clone)]
pub(super) struct Once {
    target: TargetKey,
    place: Place,
    /// The process that held it, where that was seen.
    instance: Option<Instance>,
    /// The descriptor that it had there, where that was certain.
    fd: Option<u32>,
    /// When the socket was last there.
    joined_at: Duration,
    /// Looks at the server since then that had the session.
    missed: u32,
}

/// Pools whose ghosts a look at the server at the other end of `bases` and at `remotes` decides on.
pub(super) fn targets(bases: &Instances<'_>, remotes: &BTreeSet<End>, tracks: &Tracks) -> BTreeMap<TargetKey, Place> {
    // Ghosts of an application that is gone for good are over when the server ends them.
    let told = tracks.of(CHECK).filter(|(_, track)| track.level.firing().is_some());
    let told = told.filter_map(|(key, track)| Some((key.target.clone(), track.place.clone()?)));
    let present = bases.iter().map(|(target, rows)| ((*target).clone(), place(rows[0])));
    told.filter(|(_, place)| remotes.contains(&place.remote)).chain(present).collect()
}

/// Judges one look at a server. `unseen` says why its sessions cannot be told apart, when that is so.
pub(super) fn judge(
    all: &mut Known,
    look: &ServerLook,
    join: &Join<'_>,
    unseen: Option<&Reason>,
    mut targets: BTreeMap<TargetKey, Place>,
    now: Moment,
    tracks: &mut Tracks,
) {
    let known = all.entry(look.target.clone()).or_default();
    targets.extend(known.once.values().map(|it| (it.target.clone(), it.place.clone())));
    let not_told = match unseen {
        Some(reason) => Some(reason.clone()),
        None if join.joined.is_empty() => Some(Reason::NotYet("a session that joins a connection of this host")),
        None => None,
    };
    let sessions = look.sessions.as_deref().unwrap_or_default();
    if let Some(reason) = not_told {
        let there: HashSet<_> = sessions.iter().filter_map(key).collect();
        for (target, place) in &targets {
            // Sessions that were once known for certain, and are not there any more, are certainly over.
            let is_left = known.once.iter().any(|(key, once)| once.target == *target && there.contains(key));
            let is_over = unseen.is_none() && fires(target, tracks) && !is_left;
            let value = if is_over { Value::Known(0.0) } else { Value::Unknown(reason.clone()) };
            let subject = Subject { place: Some(place), ..Subject::of(CHECK, target) };
            tracks.observe(subject, Seen::value(value), now, Case::default);
        }
        return;
    }
    follow(&mut known.once, sessions, join, now.mono);
    known.meet(join);
    let mut ghosts: BTreeMap<TargetKey, Vec<(&Session, &Once)>> = BTreeMap::new();
    for session in sessions {
        let once = key(session).and_then(|it| known.once.get(&it)).filter(|it| it.missed >= LOOKS);
        if let Some(once) = once {
            ghosts.entry(once.target.clone()).or_default().push((session, once));
        }
    }
    for (target, place) in &targets {
        let of_target = ghosts.get(target).map_or(&[][..], Vec::as_slice);
        let count = of_target.len() as f64;
        let value = match known.may_be_of(target, join) {
            false => Value::Known(count),
            true if count > 0.0 => Value::Between(count, f64::INFINITY),
            true => Value::Unknown(Reason::NotYet(
                "whose the sessions of its user are that have no connection here: of another network namespace, or of a \
                 client that was gone when the agent came",
            )),
        };
        let subject = Subject { place: Some(place), ..Subject::of(CHECK, target) };
        tracks.observe(subject, Seen::value(value), now, || case(place, look, of_target, now.mono));
    }
}

impl Remembered {
    /// Counts the sessions from here that no socket was ever joined with.
    fn meet(&mut self, join: &Join<'_>) {
        let strange = join.without_socket.iter().filter_map(|it| key(it)).filter(|it| !self.once.contains_key(it));
        self.never = strange.take(MAX_KNOWN).map(|it| (it, self.never.get(&it).map_or(1, |looks| looks + 1))).collect();
    }

    /// Whether such a session, seen at several looks, has the database and user of this pool.
    fn may_be_of(&self, target: &TargetKey, join: &Join<'_>) -> bool {
        let lasts = |it: &&&Session| key(it).and_then(|it| self.never.get(&it)).is_some_and(|looks| *looks >= LOOKS);
        let mut lasting = join.without_socket.iter().filter(lasts);
        lasting.any(|it| {
            let is_like = |other: &Session| other.database == it.database && other.user == it.user;
            join.joined.iter().any(|other| other.pool.target == *target && is_like(other.session))
        })
    }
}

fn fires(target: &TargetKey, tracks: &Tracks) -> bool {
    tracks.of(CHECK).any(|(key, track)| key.target == *target && track.level.firing().is_some())
}

/// Brings what is remembered up to this look.
fn follow(known: &mut HashMap<(u64, SocketAddr), Once>, sessions: &[Session], join: &Join<'_>, now: Duration) {
    let there: HashSet<_> = sessions.iter().filter_map(key).collect();
    known.retain(|key, once| {
        once.missed = once.missed.saturating_add(1);
        there.contains(key)
    });
    for it in &join.joined {
        let Some(key) = key(it.session) else { continue };
        if known.len() < MAX_KNOWN || known.contains_key(&key) {
            let (target, place, instance) = (it.pool.target.clone(), place(it.pool), row::instance(it.pool));
            let fd = it.connection.fds.first().copied().filter(|_| it.is_exact);
            let before = known.get(&key).and_then(|it| Some((it.instance?, it.fd)));
            // The socket of a process that was killed is nobody's while the kernel still tries to close it.
            let (target, place) = match known.get(&key) {
                Some(once) if instance.is_none() => (once.target.clone(), once.place.clone()),
                _ => (target, place),
            };
            let (instance, fd) = match (instance, before) {
                (None, Some((instance, fd))) => (Some(instance), fd),
                (instance, _) => (instance, fd),
            };
            known.insert(key, Once { target, place, instance, fd, joined_at: now, missed: 0 });
        }
    }
}

/// A session in one life: the server's number and the client's end.
fn key(session: &Session) -> Option<(u64, SocketAddr)> {
    Some((session.backend, SocketAddr::new(session.address?.to_canonical(), session.port?)))
}

fn case(place: &Place, look: &ServerLook, ghosts: &[(&Session, &Once)], now: Duration) -> Case {
    let gone = |once: &Once| now.saturating_sub(once.joined_at).as_secs_f64();
    let oldest = ghosts.iter().map(|(_, once)| gone(once)).fold(0.0, f64::max);
    let mut members: Vec<u64> = ghosts.iter().map(|(session, _)| session.backend).collect();
    members.sort_unstable();
    let sessions = words::counted(ghosts.len(), "session");
    let mut evidence = object(json!({
        "sessions_total": ghosts.len(),
        "server": look.target.as_str(),
        "rule": "a session that was joined with a socket here, which is gone for two looks at the server",
        "not_visible": [],
    }));
    let mut shown = Rows::default();
    for (session, once) in ghosts.iter().take(MAX_ROWS) {
        let row = shown.add(&once.one(session, gone(once)));
        row.insert("backend".to_owned(), json!(session.backend));
        row.insert("without_socket_seconds".to_owned(), json!(number(gone(once), Unit::Seconds)));
        shown.tell(json!({ "database": session.database, "user": session.user }));
    }
    shown.put(&mut evidence, "sessions");
    Case {
        summary: format!(
            "{} of {} at {} have no connection here any more, the longest for {}: their client is gone and the server \
             does not know",
            sessions,
            words::foreign(&place.who, 80),
            place.remote,
            words::seconds(oldest),
        ),
        evidence,
        members,
        age_seconds: Some(oldest),
        advice: None,
    }
}

impl Once {
    /// The connection that it was.
    fn one<'a>(&'a self, session: &'a Session, gone: f64) -> One<'a> {
        One {
            instance: self.instance,
            fds: self.fd.as_ref().map(std::slice::from_ref).ok_or("fd: it was not certain which one it had"),
            sharers: None,
            local: key(session).map(|(_, end)| end.to_string()).unwrap_or_default(),
            remote: &self.place.remote,
            socket: "gone".to_owned(),
            word: Word::Said(session),
            age: Some(gone),
            quiet: None,
            open_for: None,
        }
    }
}
