//! What the host inspector is told, and what it tells of itself.

use std::path::PathBuf;
use std::sync::Arc;

use super::attention::Attention;
use super::endpoints::Endpoints;
use super::measures;
use crate::inspect::About;
use crate::inspect::server::PoolMode;
use crate::kernel::reader::Reader;

/// What this inspector reads.
pub static ABOUT: About = About {
    name: "host",
    source: "NETLINK_SOCK_DIAG dump and destroy events of TCP (else /proc/net/tcp and tcp6), dump of unix sockets; \
             of other network namespaces /proc/<pid>/net/tcp and tcp6, or the same dump inside; /proc/<pid>/stat, status, \
             cmdline, limits, smaps_rollup, statm, fd, environ (named keys), cgroup; the cgroup tree's memory files; pidfd",
    needs: "nothing for sockets, CPU and threads; the application's user, or CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH \
            together, for who holds which socket, PSS and the pool limits of its environment; CAP_SYS_ADMIN beside \
            them to enter other network namespaces (`namespaces` in [host])",
    cost: "one dump of the host's TCP sockets, one of its unix sockets while a server listens on one, one stat per watched \
           process; PSS every 10 s, all descriptors once a minute; other namespaces for at most 0.5 % of a core, entered ones 2 %",
    measures: measures::ALL,
};

/// What the host inspector is told by configuration. The default watches what it finds.
#[derive(Debug, Clone)]
pub struct Config {
    /// `/proc`; another tree only in tests.
    pub proc_root: PathBuf,
    /// `[[app]]`.
    pub apps: Vec<DeclaredApp>,
    /// Further remote ports to which connections are watched as those to known services are.
    pub ports: Vec<u16>,
    /// Endpoints of configured servers, filled in as their addresses become known.
    pub endpoints: Endpoints,
    /// What a look does only when asked.
    pub attention: Attention,
    /// The agent itself, whose process and sockets are left out.
    pub own_pid: Option<u32>,
    /// The host mode: every other network namespace is entered once, for which `CAP_SYS_ADMIN` is needed.
    pub namespaces: bool,
    /// Who looks.
    pub reader: Reader,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            proc_root: "/proc".into(),
            apps: Vec::new(),
            ports: Vec::new(),
            endpoints: Endpoints::default(),
            attention: Attention::default(),
            own_pid: Some(std::process::id()),
            namespaces: false,
            reader: Reader::default(),
        }
    }
}

/// One `[[app]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredApp {
    /// Its name, in target keys.
    pub name: Arc<str>,
    /// What its command line contains.
    pub command: String,
    /// Most connections of one process's pool.
    pub pool_limit: Option<u32>,
    /// How the pooler that it connects to hands out connections; `None` when it is not said.
    pub pooler: Option<PoolMode>,
    /// Keys that its DSN needs behind such a pooler: `a=0|b=0`; empty for those of its driver.
    pub required_keys: Vec<Arc<str>>,
    /// Whether its absence is worth telling.
    pub expected: bool,
}
