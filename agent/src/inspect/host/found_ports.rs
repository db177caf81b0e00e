//! Ports that lead to a server, found without anybody naming them: a server's program listens there on this host, or a
//! process's own settings hold a DSN with that port.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use crate::discover::Instance;
use crate::discover::processes::Processes;

/// Programs of servers, and what they speak.
const PROGRAMS: [(&str, &str); 10] = [
    ("mariadbd", "mysql"),
    ("memcached", "memcached"),
    ("mongod", "mongodb"),
    ("mysqld", "mysql"),
    ("pgbouncer", "pgbouncer"),
    ("postgres", "postgresql"),
    ("postmaster", "postgresql"),
    ("redis-server", "redis"),
    ("valkey-server", "redis"),
    ("keydb-server", "redis"),
];
/// Most ports that are found.
const MAX_PORTS: usize = 1_000;

/// Ports with what is spoken there.
pub(super) type FoundPorts = BTreeMap<u16, &'static str>;

/// What servers of this host listen on. `named` are ports from settings; what really listens says more.
pub(super) fn found(
    listens: &HashMap<Instance, Vec<SocketAddr>>,
    processes: &Processes,
    named: impl Iterator<Item = (u16, &'static str)>,
) -> FoundPorts {
    let mut found: FoundPorts = named.take(MAX_PORTS).collect();
    for (instance, ends) in listens {
        let Some(service) = processes.get(instance.pid).and_then(|it| service_of_program(&it.command)) else {
            continue;
        };
        for end in ends {
            if found.len() < MAX_PORTS {
                found.insert(end.port(), service);
            }
        }
    }
    found
}

fn service_of_program(command: &str) -> Option<&'static str> {
    let program = command.split_whitespace().next()?;
    let name = program.rsplit('/').next()?.trim_end_matches(':');
    PROGRAMS.iter().find(|(program, _)| *program == name).map(|(_, service)| *service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_by_its_program() {
        for (command, service) in [
            ("/usr/lib/postgresql/15/bin/postgres -D /var/lib/postgresql/15/second", Some("postgresql")),
            ("postgres: checkpointer", Some("postgresql")),
            ("/usr/bin/redis-server 127.0.0.1:6390", Some("redis")),
            ("/usr/sbin/mariadbd", Some("mysql")),
            ("python3 /srv/postgres", None),
            ("/usr/bin/postgres_exporter", None),
            ("", None),
        ] {
            assert_eq!(service_of_program(command), service, "{command}");
        }
    }
}
