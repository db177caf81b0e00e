//! `CLIENT LIST`, a line for each client, as sessions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::inspect::server::{Session, SessionState};
use crate::scrub;

/// Most clients that are read in one look.
pub(super) const MAX_CLIENTS: usize = 20_000;
/// Most places at which a server listens.
const MAX_PLACES: usize = 16;
const MAX_NAME: usize = 63;

/// Commands that wait for what others send; a client that is blocked in another one waits for the server.
const WAITING: [&str; 10] =
    ["blpop", "brpop", "brpoplpush", "blmove", "blmpop", "bzpopmin", "bzpopmax", "bzmpop", "xread", "xreadgroup"];

/// Which row is our own.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ourselves<'a> {
    /// By its number.
    Id(u64),
    /// By our end of the connection, where we may not ask for the number.
    End(SocketAddr),
    /// Over a unix socket: the latest of this user's that has just asked for the list.
    Unix { user: &'a str },
}

/// What a list says.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// All but our own and the server's link to its primary.
    pub(super) sessions: Vec<Session>,
    /// Where the server took its clients over TCP, as it sees itself (since version 6.2).
    pub(super) places: Vec<SocketAddr>,
    /// At which of them it took us.
    pub(super) ours: Option<SocketAddr>,
    /// Path of its unix socket, once a client has come over it.
    pub(super) socket_path: Option<Arc<str>>,
}

/// One line: `id=7 addr=127.0.0.1:37758 … cmd=client|list user=default`. Neither names nor users have spaces.
struct Row<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Row<'a> {
    fn of(line: &'a str) -> Self {
        Self(line.split(' ').filter_map(|it| it.split_once('=')).collect())
    }

    fn text(&self, key: &str) -> &'a str {
        self.0.iter().find(|(name, _)| *name == key).map_or("", |(_, value)| value)
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.text(key).parse().ok()
    }

    fn name(&self, key: &str) -> Arc<str> {
        scrub::text(self.text(key), MAX_NAME).into()
    }

    fn seconds(&self, key: &str) -> Option<Duration> {
        self.number::<u32>(key).map(|it| Duration::from_secs(it.into()))
    }

    fn has(&self, flag: char) -> bool {
        self.text("flags").contains(flag)
    }

    fn counts(&self, keys: &[&str]) -> bool {
        keys.iter().any(|key| self.number::<u64>(key).is_some_and(|it| it > 0))
    }

    fn address(&self, key: &str) -> Option<SocketAddr> {
        let it: SocketAddr = self.text(key).parse().ok()?;
        Some(SocketAddr::new(it.ip().to_canonical(), it.port()))
    }

    fn id(&self) -> Option<u64> {
        self.number("id")
    }

    /// The command without its arguments, as the server's own documentation writes it.
    fn command(&self) -> Option<String> {
        let name = self.text("cmd");
        let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"|-_.".contains(&b));
        let is_told = !name.is_empty() && name.len() <= MAX_NAME && is_name && name != "NULL";
        is_told.then(|| name.to_ascii_uppercase().replace('|', " "))
    }

    fn state(&self) -> SessionState {
        let is_subscribed = self.has('P') || self.counts(&["sub", "psub", "ssub"]);
        let is_blocked = self.has('b');
        let waits_by_command = WAITING.iter().any(|it| self.text("cmd").eq_ignore_ascii_case(it));
        match self.number::<i64>("multi") {
            _ if self.text("flags").is_empty() => SessionState::Unknown,
            // A replica and a monitor are fed, as a subscriber is.
            _ if self.has('S') || self.has('O') || (is_blocked && waits_by_command) => SessionState::Listening,
            _ if is_blocked => SessionState::Active,
            Some(queued) if queued >= 0 => SessionState::IdleInTransaction,
            _ if self.has('x') => SessionState::IdleInTransaction,
            _ if is_subscribed => SessionState::Listening,
            // A request that came in part, or an answer that was not taken yet.
            _ if self.counts(&["qbuf", "obl", "oll"]) => SessionState::Active,
            _ => SessionState::Idle,
        }
    }

    fn session(&self, id: u64, with_command: bool) -> Session {
        let (address, state, command) = (self.address("addr"), self.state(), self.command());
        let waits = matches!(state, SessionState::Listening) || self.has('b');
        Session {
            backend: id,
            address: address.map(|it| it.ip()),
            address_candidates: Vec::new(),
            port: address.map(|it| it.port()).filter(|port| *port > 0),
            socket_fd: self.number("fd"),
            client_pid: None,
            link: None,
            database: self.name("db"),
            user: self.name("user"),
            application_name: self.name("name"),
            state,
            state_age: self.seconds("idle"),
            transaction_age: None,
            session_age: self.seconds("age"),
            holds_lock: false,
            waits_for: command.clone().filter(|_| waits).map(Into::into),
            statement: command.filter(|_| with_command).map(Into::into),
        }
    }
}

impl Clients {
    /// From the whole answer. An error says what cannot be understood.
    pub(super) fn read(text: &str, ourselves: Ourselves<'_>, with_commands: bool) -> Result<Self, String> {
        let lines: Vec<&str> = text.lines().filter(|it| !it.is_empty()).take(MAX_CLIENTS + 1).collect();
        if lines.len() > MAX_CLIENTS {
            return Err(format!("more than {MAX_CLIENTS} clients"));
        }
        let rows: Vec<Row<'_>> = lines.into_iter().map(Row::of).collect();
        let own = own(&rows, ourselves);
        let mut all = Self::default();
        for row in &rows {
            let id = row.id().ok_or("a line of CLIENT LIST without id")?;
            if let Some(place) = row.address("laddr")
                && !all.places.contains(&place)
                && all.places.len() < MAX_PLACES
            {
                all.places.push(place);
            }
            if let Some(path) = row.text("addr").strip_suffix(":0").filter(|it| it.starts_with('/')) {
                all.socket_path.get_or_insert_with(|| path.into());
            }
            if own == Some(id) {
                all.ours = row.address("laddr");
            } else if !row.has('M') {
                all.sessions.push(row.session(id, with_commands));
            }
        }
        Ok(all)
    }
}

fn own(rows: &[Row<'_>], ourselves: Ourselves<'_>) -> Option<u64> {
    let asks = |row: &&Row<'_>| row.has('U') && row.text("cmd").to_ascii_lowercase().starts_with("client");
    match ourselves {
        Ourselves::Id(id) => Some(id),
        Ourselves::End(end) => rows.iter().find(|it| it.address("addr") == Some(end)).and_then(Row::id),
        Ourselves::Unix { user } => {
            let just = rows.iter().filter(asks).filter(|it| it.text("idle") == "0" && it.text("user") == user);
            just.filter_map(Row::id).max()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROW: &str = "id=7 addr=10.0.0.9:40000 laddr=10.0.0.5:6379 fd=9 name=shop age=600 idle=31 flags=N db=2 sub=0 \
                       psub=0 ssub=0 multi=-1 qbuf=0 qbuf-free=0 obl=0 oll=0 events=r cmd=hget user=web resp=2";

    fn one(line: &str) -> Session {
        Clients::read(line, Ourselves::Id(1), true).expect("is read").sessions.remove(0)
    }

    fn with(changes: &[(&str, &str)]) -> Session {
        one(&changes.iter().fold(ROW.to_owned(), |row, (from, to)| row.replace(from, to)))
    }

    #[test]
    fn a_line_is_a_session() {
        let it = one(ROW);
        assert_eq!((it.backend, it.socket_fd, it.state), (7, Some(9), SessionState::Idle));
        assert_eq!((it.address, it.port), ("10.0.0.9".parse().ok(), Some(40000)));
        assert_eq!((&*it.database, &*it.user, &*it.application_name), ("2", "web", "shop"));
        assert_eq!((it.state_age, it.session_age), (Some(Duration::from_secs(31)), Some(Duration::from_secs(600))));
        assert_eq!((it.statement.as_deref(), it.waits_for), (Some("HGET"), None));
        let silent = Clients::read(ROW, Ourselves::Id(1), false).expect("is read").sessions.remove(0);
        assert_eq!(silent.statement, None);
    }

    #[test]
    fn who_waits_for_others_is_told_from_who_keeps_a_transaction_open() {
        for (changes, state, waits_for) in [
            (&[("flags=N", "flags=b"), ("cmd=hget", "cmd=blpop")][..], SessionState::Listening, Some("BLPOP")),
            (&[("flags=N", "flags=b"), ("cmd=hget", "cmd=xreadgroup")], SessionState::Listening, Some("XREADGROUP")),
            (
                &[("flags=N", "flags=P"), ("sub=0", "sub=2"), ("cmd=hget", "cmd=ping")],
                SessionState::Listening,
                Some("PING"),
            ),
            (&[("flags=N", "flags=O"), ("cmd=hget", "cmd=monitor")], SessionState::Listening, Some("MONITOR")),
            (&[("flags=N", "flags=S"), ("cmd=hget", "cmd=replconf")], SessionState::Listening, Some("REPLCONF")),
            (&[("flags=N", "flags=b"), ("cmd=hget", "cmd=wait")], SessionState::Active, Some("WAIT")),
            (&[("flags=N", "flags=x"), ("multi=-1", "multi=2")], SessionState::IdleInTransaction, None),
            (&[("multi=-1", "multi=0")], SessionState::IdleInTransaction, None),
            (&[("qbuf=0", "qbuf=26")], SessionState::Active, None),
            (&[("oll=0", "oll=1")], SessionState::Active, None),
            (&[("flags=N", "flags=")], SessionState::Unknown, None),
        ] {
            let it = with(changes);
            assert_eq!((it.state, it.waits_for.as_deref()), (state, waits_for), "{changes:?}");
        }
    }

    #[test]
    fn a_unix_client_is_known_by_the_servers_descriptor_and_tells_the_socket() {
        let row = ROW.replace("addr=10.0.0.9:40000", "addr=/run/redis/redis.sock:0").replace("flags=N", "flags=U");
        let all = Clients::read(&row, Ourselves::Id(1), true).expect("is read");
        let it = &all.sessions[0];
        assert_eq!((it.address, it.port, it.socket_fd, it.state), (None, None, Some(9), SessionState::Idle));
        assert_eq!(all.socket_path.as_deref(), Some("/run/redis/redis.sock"));
        let six = one(&ROW.replace("10.0.0.9:40000", "[::ffff:10.0.0.9]:40001"));
        assert_eq!((six.address, six.port), ("10.0.0.9".parse().ok(), Some(40001)));
    }

    #[test]
    fn our_own_connection_is_left_out_however_we_may_know_it() {
        let ours = ROW.replace("id=7", "id=8").replace("40000", "41000").replace("cmd=hget", "cmd=client|list");
        let list = format!("{ROW}\n{ours}\n");
        let left = |list: &str, ourselves| {
            let all = Clients::read(list, ourselves, true).expect("is read");
            all.sessions.iter().map(|it| it.backend).collect::<Vec<_>>()
        };
        assert_eq!(left(&list, Ourselves::Id(8)), [7]);
        assert_eq!(left(&list, Ourselves::End("10.0.0.9:41000".parse().expect("an address"))), [7]);
        let unix = list.replace("flags=N", "flags=U").replace("idle=31", "idle=0");
        assert_eq!(left(&unix, Ourselves::Unix { user: "web" }), [7]);
        assert_eq!(left(&unix, Ourselves::Unix { user: "another" }), [7, 8]);
        let primary = ROW.replace("flags=N", "flags=M");
        assert!(left(&primary, Ourselves::Id(1)).is_empty(), "the link to the primary is no client");
        let all = Clients::read(&list, Ourselves::Id(8), true).expect("is read");
        assert_eq!(all.places, ["10.0.0.5:6379".parse::<SocketAddr>().expect("an address")]);
        assert_eq!(all.ours, all.places.first().copied());
    }

    #[test]
    fn a_command_is_a_name_or_nothing() {
        assert_eq!(with(&[("cmd=hget", "cmd=config|get")]).statement.as_deref(), Some("CONFIG GET"));
        assert_eq!(with(&[("cmd=hget", "cmd=NULL")]).statement, None);
        assert_eq!(with(&[("cmd=hget", "cmd=\u{1b}[31m")]).statement, None);
    }

    #[test]
    fn what_cannot_be_understood_is_said() {
        assert!(Clients::read("name=x fd=3", Ourselves::Id(1), true).is_err());
        let many = "id=1 flags=N\n".repeat(MAX_CLIENTS + 1);
        assert_eq!(Clients::read(&many, Ourselves::Id(1), true).err().as_deref(), Some("more than 20000 clients"));
    }

    proptest! {
        #[test]
        fn no_list_panics(text in "((id|addr|laddr|fd|flags|multi|idle|cmd|\\PC{0,4})=[-0-9a-zA-Z:./\\[\\]é]{0,20} ?\n?){0,20}") {
            for ourselves in [Ourselves::Id(1), Ourselves::Unix { user: "x" }] {
                let _ = Clients::read(&text, ourselves, true);
            }
        }
    }
}
