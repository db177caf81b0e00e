//! Requests in flight: what an application has received on its listening port and not answered yet.
//!
//! Only of applications that hold a pool or are declared: it is what waits for a connection of the pool. Of a process
//! that alone holds its listening socket, every accepted connection is its own. Where workers share one, or a parent
//! hands connections on, the accepted socket's holder is looked up, once for each.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::endpoints::Ports;
use super::{InFlight, Owner, ProcessRow, ServiceRow};
use crate::discover::processes::Processes;
use crate::discover::{Instance, TargetKey};
use crate::kernel::owners::{Held, Kin, Owners, Wanted};
use crate::kernel::socket::{Socket, TcpState};

/// Requests told of one process on one port.
const MAX_IN_FLIGHT: usize = 1_000;
/// What has been in flight for longer is a stream (WebSocket, long poll, upload); it gives way to requests.
const STREAM: Duration = Duration::from_secs(60);

/// Ports whose accepted connections are looked at, as the last look found them.
#[derive(Debug, Default)]
pub(super) struct Services {
    ports: HashSet<u16>,
    /// Listening ends with more than one possible holder of what they accept: whether a child may hold it.
    shared: HashMap<SocketAddr, bool>,
}

/// What one look at the services needs.
pub(super) struct Given<'a> {
    pub(super) listening: &'a [Socket],
    pub(super) accepted: &'a [Socket],
    pub(super) owners: &'a Owners,
    pub(super) processes: &'a Processes,
    pub(super) rows: &'a [ProcessRow],
    /// Processes that hold a pool.
    pub(super) holders: &'a HashSet<Instance>,
    /// User and cgroup of pools whose owner is not visible.
    pub(super) hidden: &'a HashSet<(u32, Option<u64>)>,
    /// Ports of servers: what such a port receives is no request of an application.
    pub(super) servers: &'a Ports,
    pub(super) own_pid: Option<u32>,
}

/// Everything that listens on one address, or on every address with one port.
#[derive(Debug, Default)]
struct Listener {
    holders: Vec<Instance>,
    hidden: Option<(u32, Option<u64>)>,
    accept_queue: u32,
    backlog: u32,
}

/// Who accepted a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Acceptor {
    Process(Instance),
    Hidden(u32, Option<u64>),
}

#[derive(Debug, Default)]
struct Served {
    accepted: u32,
    in_flight: Vec<InFlight>,
}

impl Services {
    /// Ports whose accepted connections the next dump has to show.
    pub(super) fn ports(&self) -> impl Iterator<Item = u16> + '_ {
        self.ports.iter().copied()
    }

    /// Accepted connections whose holder has to be looked up.
    pub(super) fn wanted<'a>(&'a self, accepted: &'a [Socket]) -> impl Iterator<Item = Wanted> + 'a {
        accepted.iter().filter_map(|socket| {
            let is_thorough = *[socket.local, any(socket.local)].iter().find_map(|it| self.shared.get(it))?;
            Some(Wanted { cookie: socket.cookie, inode: socket.inode, kin: Kin::At(socket.local.port()), is_thorough })
        })
    }

    /// Takes one look.
    pub(super) fn look(&mut self, given: &Given<'_>) -> Vec<ServiceRow> {
        let listeners = self.find(given);
        let mut served: BTreeMap<(SocketAddr, Acceptor), Served> = BTreeMap::new();
        for (listen, listener) in &listeners {
            for instance in listener.holders.iter().filter(|it| given.is_of_interest(**it)) {
                served.entry((*listen, Acceptor::Process(*instance))).or_default();
            }
            if let Some((uid, cgroup)) = listener.hidden {
                served.entry((*listen, Acceptor::Hidden(uid, cgroup))).or_default();
            }
        }
        for socket in given.accepted.iter().filter(|it| it.state == TcpState::Established) {
            let Some((listen, listener)) =
                [socket.local, any(socket.local)].iter().find_map(|it| listeners.get_key_value(it))
            else {
                continue;
            };
            let acceptor = match (listener.hidden, self.shared.contains_key(listen)) {
                (Some((uid, cgroup)), _) => Acceptor::Hidden(uid, cgroup),
                (None, false) => Acceptor::Process(listener.holders[0]),
                (None, true) => match given.owners.of(socket.cookie) {
                    // The newest, of those to which it was handed on.
                    Held::By(by) => match by.last() {
                        Some(holder) => Acceptor::Process(Instance { pid: holder.pid, start: holder.start }),
                        None => continue,
                    },
                    // Counted once its holder is found: nobody is charged with another's requests.
                    Held::NotYet | Held::ByNobodySeen => continue,
                },
            };
            let of_acceptor = served.entry((*listen, acceptor)).or_default();
            of_acceptor.accepted = of_acceptor.accepted.saturating_add(1);
            if let (Some(age), Some(sent_age)) = (in_flight_for(socket), socket.sent_age) {
                of_acceptor.in_flight.push(InFlight { cookie: socket.cookie, age, sent_age });
            }
        }
        let rows: HashMap<Instance, &ProcessRow> = given.rows.iter().map(|row| (row.instance, row)).collect();
        served
            .into_iter()
            .filter_map(|((listen, acceptor), of_acceptor)| {
                let (target, owner) = match acceptor {
                    Acceptor::Process(instance) => {
                        let row = rows.get(&instance)?;
                        (row.target.clone(), Owner::Seen { application: row.application.clone(), instance })
                    }
                    Acceptor::Hidden(uid, cgroup) => (
                        TargetKey::process(&Owner::unseen(uid, cgroup), "unseen", Some(listen.port())),
                        Owner::NotVisible { uid, cgroup },
                    ),
                };
                let listener = listeners.get(&listen)?;
                Some(ServiceRow {
                    target,
                    owner,
                    listen,
                    accepted: of_acceptor.accepted,
                    in_flight: bounded(of_acceptor.in_flight),
                    accept_queue: listener.accept_queue,
                    backlog: listener.backlog,
                })
            })
            .collect()
    }

    /// The listening ends of interest, and with them what the next dump has to show.
    fn find(&mut self, given: &Given<'_>) -> BTreeMap<SocketAddr, Listener> {
        let mut listeners: BTreeMap<SocketAddr, Listener> = BTreeMap::new();
        let mut hidden: BTreeMap<SocketAddr, (u32, Option<u64>)> = BTreeMap::new();
        for socket in given.listening.iter().filter(|it| !given.servers.contains(it.local.port())) {
            let listen = if socket.local.ip().is_unspecified() { any(socket.local) } else { socket.local };
            let listener = listeners.entry(listen).or_default();
            listener.accept_queue = listener.accept_queue.saturating_add(socket.receive_queue);
            listener.backlog = listener.backlog.saturating_add(socket.send_queue);
            match given.owners.of(socket.cookie) {
                Held::By(by) => {
                    listener.holders.extend(by.iter().map(|it| Instance { pid: it.pid, start: it.start }));
                }
                Held::ByNobodySeen => {
                    hidden.insert(listen, (socket.uid, socket.cgroup));
                }
                Held::NotYet => (),
            }
        }
        let parents: HashSet<u32> =
            given.holders.iter().filter_map(|it| given.processes.get(it.pid)).map(|it| it.parent).collect();
        self.shared.clear();
        listeners.retain(|listen, listener| {
            listener.holders.sort_unstable();
            listener.holders.dedup();
            listener.holders.retain(|it| Some(it.pid) != given.own_pid);
            if listener.holders.is_empty() {
                listener.hidden = hidden.get(listen).copied().filter(|party| given.hidden.contains(party));
                return listener.hidden.is_some();
            }
            let by_child = listener.holders.iter().any(|it| it.pid > 1 && parents.contains(&it.pid));
            if listener.holders.len() > 1 || by_child {
                self.shared.insert(*listen, by_child);
            }
            by_child || listener.holders.iter().any(|it| given.is_of_interest(*it))
        });
        self.shared.retain(|listen, _| listeners.contains_key(listen));
        self.ports = listeners.keys().map(SocketAddr::port).collect();
        listeners
    }
}

impl Given<'_> {
    /// Declared, or with a pool.
    fn is_of_interest(&self, instance: Instance) -> bool {
        self.holders.contains(&instance)
            || self
                .processes
                .get(instance.pid)
                .is_some_and(|process| process.instance == instance && process.application.declared)
    }
}

/// Every address with that port: what listens on all of v4 and what listens on all of v6 is one service.
fn any(local: SocketAddr) -> SocketAddr {
    SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), local.port())
}

/// For how long a request has been without its answer; `None` without one. Data received and sent within one tick of
/// the kernel's clock are a tie that says nothing.
fn in_flight_for(socket: &Socket) -> Option<Duration> {
    let (sent, received) = (socket.sent_age?, socket.received_age?);
    let is_unread = socket.receive_queue > 0;
    let is_first = socket.segments_out == Some(0) && socket.segments_in.is_some_and(|segments| segments > 0);
    (received < sent || is_unread || is_first).then_some(received)
}

/// Oldest first. Streams are left out before requests are.
fn bounded(mut all: Vec<InFlight>) -> Vec<InFlight> {
    if all.len() > MAX_IN_FLIGHT {
        all.retain(|it| it.age <= STREAM);
    }
    all.sort_unstable_by(|a, b| b.age.cmp(&a.age).then(a.cookie.cmp(&b.cookie)));
    all.truncate(MAX_IN_FLIGHT);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::host::pools::tests::socket;
    use crate::kernel::proc::Proc;

    fn served(sent: u64, received: u64, segments: (u32, u32)) -> Socket {
        let mut it = socket(1, "10.0.0.9:50000", TcpState::Established);
        it.sent_age = Some(Duration::from_millis(sent));
        it.received_age = Some(Duration::from_millis(received));
        (it.segments_in, it.segments_out) = (Some(segments.0), Some(segments.1));
        it
    }

    fn milliseconds(socket: &Socket) -> Option<u128> {
        in_flight_for(socket).map(|age| age.as_millis())
    }

    #[test]
    fn a_request_is_in_flight_until_its_answer_is_sent() {
        assert_eq!(milliseconds(&served(5_000, 1_500, (3, 2))), Some(1_500), "received later than sent");
        assert_eq!(milliseconds(&served(1_500, 1_500, (1, 0))), Some(1_500), "received and never answered");
        assert_eq!(milliseconds(&served(1_496, 1_500, (1, 1))), None, "answered");
        assert_eq!(milliseconds(&served(1_500, 1_500, (2, 2))), None, "a tie says nothing");
        assert_eq!(milliseconds(&served(9_000, 9_000, (0, 0))), None, "a connection without a request");
        let mut unread = served(1_000, 1_000, (2, 2));
        unread.receive_queue = 120;
        assert_eq!(milliseconds(&unread), Some(1_000), "not even read yet");
        let mut unseen = served(1, 1, (1, 0));
        unseen.received_age = None;
        assert_eq!(milliseconds(&unseen), None, "a kernel without ages");
    }

    #[test]
    fn requests_stay_when_there_are_more_streams_than_rows() {
        let of = |cookie: u64, seconds| {
            let age = Duration::from_secs(seconds);
            InFlight { cookie, age, sent_age: age + Duration::from_secs(1) }
        };
        let few = bounded(vec![of(1, 3), of(2, 3_600)]);
        assert_eq!(few.iter().map(|it| it.cookie).collect::<Vec<_>>(), [2, 1], "oldest first");
        let many = bounded((0..1_000).map(|cookie| of(cookie, 3_600)).chain([of(1_000, 2), of(1_001, 4)]).collect());
        assert_eq!(many.iter().map(|it| it.cookie).collect::<Vec<_>>(), [1_001, 1_000]);
        assert_eq!(bounded((0..1_500).map(|cookie| of(cookie, 1)).collect()).len(), MAX_IN_FLIGHT);
    }

    #[test]
    fn an_application_that_may_not_be_seen_has_its_requests_by_user_and_cgroup() {
        let root = tempfile::tempdir().unwrap();
        let mut proc = Proc::open(root.path()).unwrap();
        let (mut owners, processes) = (Owners::default(), Processes::new(Vec::new()));
        let mut listening = socket(1, "0.0.0.0:0", TcpState::Listen);
        (listening.local, listening.receive_queue, listening.send_queue) = ("[::]:8000".parse().unwrap(), 2, 128);
        let mut foreign = listening;
        (foreign.cookie, foreign.inode, foreign.local) = (2, 2, "[::]:8001".parse().unwrap());
        foreign.uid = 33;
        let listening = [listening, foreign];
        for second in 0..2 {
            let wanted = listening.map(|it| Wanted {
                cookie: it.cookie,
                inode: it.inode,
                kin: Kin::At(it.local.port()),
                is_thorough: true,
            });
            owners.look(&mut proc, &wanted, &[], Duration::from_secs(second));
        }
        let mut request = served(5_000, 1_500, (3, 2));
        request.local = "10.0.0.1:8000".parse().unwrap();
        let mut services = Services::default();
        let rows = services.look(&Given {
            listening: &listening,
            accepted: &[request],
            owners: &owners,
            processes: &processes,
            rows: &[],
            holders: &HashSet::new(),
            hidden: &HashSet::from([(1000, Some(77))]),
            servers: &Ports::of([5432]),
            own_pid: None,
        });
        assert_eq!(rows.len(), 1, "the other user holds no pool: {rows:?}");
        let row = &rows[0];
        assert_eq!(row.owner, Owner::NotVisible { uid: 1000, cgroup: Some(77) });
        assert_eq!(row.target.as_str(), "process:uid 1000 cgroup 77/unseen:8000");
        assert_eq!((row.accepted, row.in_flight.len(), row.accept_queue, row.backlog), (1, 1, 2, 128));
        assert_eq!(services.ports().collect::<Vec<_>>(), [8000]);
    }
}
