//! What `INFO` tells of a server: its limits, its part in replication and who it is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::inspect::server::{Replica, Standing};
use crate::scrub;

/// Most lines that are read; version 7.4 has 200.
const MAX_LINES: usize = 4096;
const MAX_REPLICAS: usize = 64;
/// Looks at the primary's offset that are kept: an hour of them at the shipped pace.
const MAX_OFFSETS: usize = 720;

/// The lines that count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Info {
    /// `7.0.15`.
    pub(super) version: String,
    /// `Valkey`, or the name that everybody has kept.
    pub(super) product: &'static str,
    /// New at each start, and of no other server.
    pub(super) run_id: Option<Arc<str>>,
    /// Everything that counts against `maxclients`: clients, replicas and links of a cluster.
    pub(super) used: Option<u32>,
    /// Told since version 7.
    pub(super) max_clients: Option<u32>,
    role: Option<Role>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Role {
    Primary {
        offset: u64,
        replicas: Vec<Follower>,
    },
    Replica {
        is_fed: bool,
        is_caught_up: bool,
        /// Since its primary was last heard.
        silent_for: Option<Duration>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Follower {
    name: Arc<str>,
    /// What it has acknowledged; `None` while it takes its first copy.
    offset: Option<u64>,
}

impl Info {
    /// From the whole answer.
    pub(super) fn read(text: &str) -> Self {
        let mut info = Self { product: "Redis", ..Self::default() };
        let (mut clients, mut slaves, mut links) = (None, 0, 0);
        let (mut role, mut offset, mut followers) = (None, 0, Vec::new());
        let (mut is_up, mut is_copying, mut heard, mut down) = (false, false, None, None);
        let (mut received, mut replayed) = (None, None);
        for line in text.lines().take(MAX_LINES) {
            let Some((key, value)) = line.split_once(':') else { continue };
            let seconds = || value.parse::<u32>().ok().map(|it| Duration::from_secs(it.into()));
            match key {
                "redis_version" => info.version = number_of(value),
                "valkey_version" => (info.product, info.version) = ("Valkey", number_of(value)),
                "server_name" if value == "valkey" => info.product = "Valkey",
                "run_id" if !value.is_empty() => info.run_id = Some(scrub::text(value, 64).into()),
                "connected_clients" => clients = value.parse::<u32>().ok(),
                "connected_slaves" => slaves = value.parse().unwrap_or(0),
                "cluster_connections" => links = value.parse().unwrap_or(0),
                "maxclients" => info.max_clients = value.parse().ok().filter(|it| *it > 0),
                "role" => role = Some(value == "master"),
                "master_repl_offset" => offset = value.parse().unwrap_or(0),
                "master_link_status" => is_up = value == "up",
                "master_sync_in_progress" => is_copying = value != "0",
                "master_last_io_seconds_ago" => heard = seconds(),
                "master_link_down_since_seconds" => down = seconds(),
                "slave_read_repl_offset" => received = value.parse::<u64>().ok(),
                "slave_repl_offset" => replayed = value.parse::<u64>().ok(),
                _ if is_numbered(key, "slave") && followers.len() < MAX_REPLICAS => followers.push(follower(value)),
                _ => (),
            }
        }
        info.used = clients.map(|it| it.saturating_add(slaves).saturating_add(links));
        info.role = role.map(|is_primary| match is_primary {
            true => Role::Primary { offset, replicas: followers },
            false => Role::Replica {
                is_fed: is_up && !is_copying,
                // Both are told since version 7; before, what was received had been replayed.
                is_caught_up: received.is_none() || received == replayed,
                silent_for: down.or(heard),
            },
        });
        info
    }

    /// Its part in replication, with what `offsets` remembers of a primary.
    pub(super) fn standing(&self, offsets: &mut Offsets, now: Duration) -> Option<Standing> {
        Some(match self.role.as_ref()? {
            Role::Replica { is_fed, is_caught_up, silent_for } => {
                offsets.0.clear();
                Standing::Replica { is_fed: *is_fed, is_caught_up: *is_caught_up, last_change_age: *silent_for }
            }
            Role::Primary { offset, replicas } => {
                offsets.take(*offset, replicas, now);
                let replica = |it: &Follower| Replica {
                    name: it.name.clone(),
                    lag: it.offset.map(|it| offsets.lag(it, now)),
                    bytes: offset.saturating_sub(it.offset.unwrap_or(0)),
                };
                Standing::Primary(replicas.iter().map(replica).collect())
            }
        })
    }
}

/// How far a primary's changes went at the looks before. Redis measures no time of a change: a replica lacks what was
/// made before the first look that saw more than it has acknowledged, so it is at least that old.
#[derive(Debug, Default)]
pub(super) struct Offsets(VecDeque<(Duration, u64)>);

impl Offsets {
    fn take(&mut self, offset: u64, replicas: &[Follower], now: Duration) {
        // It began anew.
        if self.0.back().is_some_and(|(_, last)| *last > offset) {
            self.0.clear();
        }
        self.0.push_back((now, offset));
        let least = replicas.iter().filter_map(|it| it.offset).min().unwrap_or(offset);
        while self.0.front().is_some_and(|(_, past)| *past <= least) || self.0.len() > MAX_OFFSETS {
            self.0.pop_front();
        }
    }

    fn lag(&self, acknowledged: u64, now: Duration) -> Duration {
        let lacking = self.0.iter().find(|(_, offset)| *offset > acknowledged);
        lacking.map_or(Duration::ZERO, |(at, _)| now.saturating_sub(*at))
    }
}

/// `slave0`, `slave12`.
fn is_numbered(key: &str, name: &str) -> bool {
    key.strip_prefix(name).is_some_and(|it| !it.is_empty() && it.bytes().all(|b| b.is_ascii_digit()))
}

/// `ip=10.0.0.7,port=6379,state=online,offset=140,lag=1`.
fn follower(value: &str) -> Follower {
    let of = |key: &str| value.split(',').find_map(|it| it.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default();
    let name = format!("{}:{}", of("ip"), of("port"));
    let is_online = of("state") == "online";
    Follower { name: scrub::text(&name, 63).into(), offset: of("offset").parse().ok().filter(|_| is_online) }
}

/// Digits and points alone: it stands in a sentence.
fn number_of(version: &str) -> String {
    version.chars().take_while(|c| c.is_ascii_digit() || *c == '.').take(20).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PRIMARY: &str = "# Server\r\nredis_version:7.0.15\r\nrun_id:2cf6\r\n# Clients\r\nconnected_clients:21\r\n\
         cluster_connections:2\r\nmaxclients:24\r\n# Replication\r\nrole:master\r\nconnected_slaves:1\r\n\
         slave0:ip=10.0.0.7,port=6379,state=online,offset=140,lag=1\r\nmaster_repl_offset:150\r\n";

    #[test]
    fn limits_count_replicas_and_links_too() {
        let info = Info::read(PRIMARY);
        assert_eq!((info.used, info.max_clients), (Some(24), Some(24)));
        assert_eq!((info.version.as_str(), info.product, info.run_id.as_deref()), ("7.0.15", "Redis", Some("2cf6")));
        let valkey = Info::read("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.0\r\n");
        assert_eq!((valkey.version.as_str(), valkey.product, valkey.max_clients), ("8.1.0", "Valkey", None));
        assert_eq!(Info::read("nothing").used, None);
    }

    #[test]
    fn a_replica_is_as_far_behind_as_the_oldest_change_that_it_has_not_acknowledged() {
        let mut offsets = Offsets::default();
        let mut at = |seconds: u64, made: u64, acknowledged: u64| {
            let text = PRIMARY
                .replace("master_repl_offset:150", &format!("master_repl_offset:{made}"))
                .replace("offset=140", &format!("offset={acknowledged}"));
            match Info::read(&text).standing(&mut offsets, Duration::from_secs(seconds)) {
                Some(Standing::Primary(replicas)) => {
                    (replicas[0].lag.expect("it is online").as_secs(), replicas[0].bytes)
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(at(0, 150, 150), (0, 0));
        assert_eq!(at(5, 200, 150), (0, 50), "made within this look, as far as is known");
        assert_eq!(at(10, 300, 150), (5, 150), "what it lacks was there five seconds ago");
        assert_eq!(at(15, 300, 250), (5, 50), "it has caught up with the first look, not with the second");
        assert_eq!(at(20, 300, 300), (0, 0));
        assert_eq!(at(25, 10, 0), (0, 10), "a server that began anew has no past");
    }

    #[test]
    fn a_replica_tells_whether_it_is_fed_and_since_when_not() {
        let text = "role:slave\r\nmaster_link_status:up\r\nmaster_last_io_seconds_ago:3\r\nmaster_sync_in_progress:0\r\n\
                    slave_read_repl_offset:70\r\nslave_repl_offset:70\r\n";
        let standing = |text: &str| Info::read(text).standing(&mut Offsets::default(), Duration::ZERO);
        let of = |is_fed, is_caught_up, seconds| {
            let last_change_age = Some(Duration::from_secs(seconds));
            Some(Standing::Replica { is_fed, is_caught_up, last_change_age })
        };
        assert_eq!(standing(text), of(true, true, 3));
        assert_eq!(standing(&text.replace("read_repl_offset:70", "read_repl_offset:90")), of(true, false, 3));
        assert_eq!(standing(&text.replace("progress:0", "progress:1")), of(false, true, 3));
        let down = text.replace("status:up", "status:down") + "master_link_down_since_seconds:40\r\n";
        assert_eq!(standing(&down), of(false, true, 40));
        assert_eq!(standing("# Sentinel\r\nsentinel_masters:1\r\n"), None);
    }

    proptest! {
        #[test]
        fn no_answer_panics(text in "((role|slave0|slave|master_repl_offset|connected_clients|\\PC{0,9}):[-a-z0-9=,.é]{0,30}\r?\n){0,9}") {
            let mut offsets = Offsets::default();
            for seconds in 0..3 {
                let _ = Info::read(&text).standing(&mut offsets, Duration::from_secs(seconds));
            }
        }
    }
}
