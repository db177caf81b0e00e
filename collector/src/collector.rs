//! Wires the stages, starts them from the store outwards, and drains them from the sockets inwards.
//!
//! Tasks: `agents` and `people` accept and serve; `withdraw` cuts agents that were denied; `report` tells the ledger what
//! agents exceeded; `keep` renews our own certificates; `look` reads the whole store once a day; `strain` looks at what our own
//! parts bear; `clock` lets time pass in the ledger; notify has its own. The ledger is a thread. On stop: no new connections,
//! requests in flight are answered, deliveries in flight end, the ledger commits what waits and closes the store.

mod directory;
mod service;
mod strain;

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ConnectInfo;
use hyper::service::service_fn;
use prometheus_client::registry::Registry;
use rustix::fs::{FlockOperation, flock};
use tickbird_shared::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tower::ServiceExt;

pub use directory::{Created, Directory};

use crate::aggregate::Strains;
use crate::alert::Route;
use crate::api;
use crate::certificates::{Certificates, CertificatesError, Files, LOOK_EVERY};
use crate::config::Config;
use crate::enrolment::Enrolment;
use crate::ingest::{self, Ingest, Limits, Reason};
use crate::ledger::{self, Owed, Rules, Unavailable};
use crate::listener::{Accepted, BindError, Bounds, Failed, Listener};
use crate::notify;
use crate::pki::PkiError;
use crate::store::{self, Readers, StoreError, Writer};

/// What people's listener bears. A whole fleet may enrol from one address, so its rate is generous.
const PEOPLE: Bounds = Bounds {
    connections: 1_024,
    source_connections: 512,
    handshakes: 64,
    kept: 0,
    handshake_rate: 200.0,
    handshake: Duration::from_secs(10),
    idle: Duration::from_secs(60),
    answer: Duration::from_secs(60),
    streams: 16,
    send_buffer: 512 << 10,
};
/// When the whole store is read after a start, which is no time to be slow.
const FIRST_LOOK: Duration = Duration::from_secs(60);
/// And how often from then on.
const EACH_LOOK: Duration = Duration::from_secs(24 * 3600);
/// How often time passes in the ledger.
const TICK: Duration = Duration::from_secs(1);

/// Where a collector listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// For agents.
    pub agents: SocketAddr,
    /// For people.
    pub people: SocketAddr,
}

/// Why a collector does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// `init` on a directory that holds something.
    #[error("`{0}` is not empty")]
    NotEmpty(PathBuf),
    /// Another collector serves this directory.
    #[error("another collector serves `{0}`")]
    Serving(PathBuf),
    /// The directory cannot be used.
    #[error("cannot use `{path}`")]
    Directory {
        /// Which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A certificate or key.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the listeners should show.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// An address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The ledger's thread ended by itself.
    #[error("the ledger ended unexpectedly")]
    LedgerEnded,
}

impl CollectorError {
    /// What an operator can do.
    pub const fn advice(&self) -> Option<&'static str> {
        match self {
            Self::NotEmpty(_) => Some("choose a new directory; an existing collector is never overwritten"),
            Self::Serving(_) => Some("stop it first; one collector serves one directory"),
            Self::Directory { .. } => Some("check that it is there and may be used by this user"),
            Self::Pki(error) => error.advice(),
            Self::Store(error) => error.advice(),
            Self::Certificates(error) => error.advice(),
            Self::Bind(_) => Some("choose another address in collector.toml, or stop what listens there"),
            Self::LedgerEnded => Some("see the log above; start it again, and report it with the log"),
        }
    }
}

/// Why another configuration was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// Somebody would never hear the end of something.
    #[error("{0}")]
    Owed(Owed),
    /// The ledger could not.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<Owed> for ReloadError {
    fn from(owed: Owed) -> Self {
        Self::Owed(owed)
    }
}

impl ReloadError {
    /// What an operator can do.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Owed(owed) => owed.advice(),
            Self::Unavailable(_) => "try again when the store is well",
        }
    }
}

/// A serving collector.
#[derive(Debug)]
pub struct Collector {
    addresses: Addresses,
    directory: Directory,
    closing: watch::Sender<bool>,
    /// Agents, then people.
    listeners: [JoinHandle<()>; 2],
    withdraw: JoinHandle<()>,
    report: JoinHandle<()>,
    keep: JoinHandle<()>,
    clock: JoinHandle<()>,
    look: JoinHandle<()>,
    strain: JoinHandle<()>,
    watchdog: JoinHandle<()>,
    notify: notify::Running,
    /// For whoever explains what was decided.
    route: watch::Sender<Option<Arc<Route>>>,
    /// By which it serves.
    config: Config,
    now: fn() -> Timestamp,
    ingest: Arc<ingest::Counters>,
    handle: ledger::Handle,
    ledger: ledger::Running,
    /// Held while we serve; the system gives it back when we end, however that is.
    _lock: File,
}

/// Incidents that nobody hears of are what no operator expects of a configuration that is fine.
fn warn_of_nobody(receivers: &[(String, notify::Destination)]) {
    if receivers.is_empty() {
        tracing::warn!("no receiver is configured: incidents are kept and shown, and nobody is told of them");
    }
}

impl Collector {
    /// Starts everything. Must be called within a runtime.
    ///
    /// # Errors
    /// When something it needs is not there; nothing is left running then.
    pub async fn start(directory: Directory, config: Config, clock: fn() -> Timestamp) -> Result<Self, CollectorError> {
        let lock = lock(&directory)?;
        // A collector that was killed could not remove it, and somebody may wait for ours.
        let _ = std::fs::remove_file(directory.addresses());
        let files = Files {
            authority_key: directory.authority_key(),
            authority: directory.authority(),
            server_key: directory.server_key(),
            server: directory.server(),
        };
        let certificates = Certificates::open(files, config.certificates.clone(), clock())?;
        let agents =
            Listener::bind("agents", config.agents, certificates.for_agents(), agents_bounds(&config.limits)).await?;
        let people = Listener::bind("people", config.people, certificates.for_people(), PEOPLE).await?;
        let address = |listener: &Listener| {
            let path = || directory.path().to_owned();
            listener.address().map_err(|source| CollectorError::Directory { path: path(), source })
        };
        let addresses = Addresses { agents: address(&agents)?, people: address(&people)? };

        let path = directory.store();
        let writer = store::open_sound(&path, clock())?;
        let (strain_told, strain) = watch::channel(None);
        let ledger_config = ledger::Config {
            rules: rules(&config),
            certificates: certificates.kept(),
            strain: strain.clone(),
            store: path.clone(),
            clock,
        };
        let (handle, ledger) = match ledger::start(writer, ledger_config.clone()) {
            Err(error) if error.is_damage() => {
                store::repair(&path, vec![error.in_full()], clock())?;
                ledger::start(Writer::open(&path)?, ledger_config)?
            }
            started => started?,
        };
        let readers = Readers::open(&path)?;
        warn_of_nobody(&config.destinations);
        let notify_config = notify::Config { receivers: config.destinations.clone(), clock };
        let notify = notify::start(notify_config, readers.clone(), handle.clone());
        let url = config.agents_url.clone().unwrap_or_else(|| url(certificates.first_name(), addresses.agents));
        let ingest = Ingest::new(handle.clone(), certificates.clone(), url.clone(), config.limits, clock);
        let enrolment = Enrolment::new(handle.clone(), certificates.clone(), url, clock);

        let mut metrics = Registry::default();
        ingest.register(&mut metrics);
        handle.counters().register(&mut metrics);
        enrolment.counters().register(&mut metrics);
        let (route, routed) = watch::channel(config.policy.route.clone().map(Arc::new));
        let context = api::Context {
            readers,
            ledger: handle.clone(),
            route: routed,
            notify: notify.status(),
            metrics: Arc::new(metrics),
            certificates: certificates.kept(),
            strain,
            clock,
            version: env!("CARGO_PKG_VERSION"),
            started_at: clock(),
        };
        let router = api::router(context, enrolment.router());

        let (closing, closed) = watch::channel(false);
        let withdraw = tokio::spawn(ingest.clone().withdraw());
        let report = tokio::spawn(ingest.clone().report());
        let failed = {
            let counters = Arc::clone(ingest.counters());
            move |failed| match failed {
                Failed::Refused(reason) => _ = counters.connections_refused.get_or_create(&Reason { reason }).inc(),
                Failed::Handshake | Failed::Slow => _ = counters.handshakes_failed.inc(),
            }
        };
        let counters = Arc::clone(ingest.counters());
        let serve_agent = move |accepted: Accepted| ingest.clone().serve(accepted);
        let serve_person = move |accepted: Accepted| serve_person(router.clone(), accepted);
        let listeners = [
            tokio::spawn(agents.run(closed.clone(), serve_agent, failed)),
            tokio::spawn(people.run(closed, serve_person, |_| ())),
        ];
        let parts = strain::Parts { store: path.clone(), ledger: handle.clone(), notify: notify.status() };
        let strain = tokio::spawn(strain::watch(parts, Strains::new(config.own), strain_told, clock));
        let keep = tokio::spawn(keep(certificates, clock));
        let now = clock;
        let clock = tokio::spawn(pass_time(handle.clone(), path.clone()));
        let look = tokio::spawn(look_after_store(path));
        write_addresses(&directory, addresses)?;
        service::is_ready();
        let watchdog = tokio::spawn(service::watch(handle.clone()));
        tracing::info!(agents = %addresses.agents, people = %addresses.people, "collector serves");
        Ok(Self {
            addresses,
            directory,
            closing,
            listeners,
            withdraw,
            report,
            keep,
            clock,
            look,
            strain,
            watchdog,
            notify,
            route,
            config,
            now,
            ingest: counters,
            handle,
            ledger,
            _lock: lock,
        })
    }

    /// Where it listens.
    pub const fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Connections of agents open now.
    pub fn connections(&self) -> u64 {
        self.ingest.connections.get().unsigned_abs()
    }

    /// Goes by another configuration from here on, without ending a session; names the parts of it that need a new start.
    ///
    /// # Errors
    /// When everything stays as it was.
    pub async fn reload(&mut self, config: Config) -> Result<Vec<&'static str>, ReloadError> {
        let fixed = self.config.fixed_parts(&config);
        self.handle.reload(rules(&config)).await??;
        let Config { policy, rules, destinations, bounds, abandoned, .. } = config;
        warn_of_nobody(&destinations);
        let receivers = notify::Config { receivers: destinations.clone(), clock: self.now };
        self.notify.reload(receivers);
        self.route.send_replace(policy.route.clone().map(Arc::new));
        (self.config.policy, self.config.destinations) = (policy, destinations);
        (self.config.bounds, self.config.abandoned, self.config.rules) = (bounds, abandoned, rules);
        Ok(fixed)
    }

    /// Ends only when something that must run has ended by itself.
    pub async fn failed(&mut self) -> CollectorError {
        // The clock ends with the ledger, and the ledger is what everything else needs.
        let _ = (&mut self.clock).await;
        CollectorError::LedgerEnded
    }

    /// Tells the service manager that the process ends; said before [`Self::stop`] where nothing is started again.
    pub fn tells_its_end() {
        service::ends();
    }

    /// Drains and ends everything. What was acknowledged is on the disk before this and whatever comes of it.
    ///
    /// # Errors
    /// When the store could not be closed tidily.
    pub async fn stop(self) -> Result<(), CollectorError> {
        // First, so that nobody is sent here any more.
        let _ = std::fs::remove_file(self.directory.addresses());
        self.closing.send_replace(true);
        for listener in self.listeners {
            let _ = listener.await;
        }
        self.notify.stop().await;
        self.clock.abort();
        self.look.abort();
        self.strain.abort();
        self.watchdog.abort();
        self.withdraw.abort();
        self.report.abort();
        self.keep.abort();
        self.handle.close().await;
        let ledger = self.ledger;
        let closed = tokio::task::spawn_blocking(move || ledger.join()).await;
        closed.map_err(|_| CollectorError::LedgerEnded)??;
        tracing::info!("collector ended");
        Ok(())
    }
}

/// What the ledger goes by.
fn rules(config: &Config) -> Rules {
    let Config { policy, rules, bounds, abandoned, .. } = config.clone();
    Rules { policy, fleet: rules, bounds, abandoned }
}

/// What the agents' listener bears. A fleet that reconnects at once still finds room; each connection takes some 25 KiB.
const fn agents_bounds(limits: &Limits) -> Bounds {
    Bounds {
        connections: 32_768,
        source_connections: 1_024,
        handshakes: 512,
        kept: 256,
        handshake_rate: limits.handshake_rate,
        handshake: limits.handshake,
        idle: limits.idle,
        answer: limits.answer,
        streams: 4,
        send_buffer: 64 << 10,
    }
}

/// Ends with the ledger, and when somebody found the store damaged.
async fn pass_time(handle: ledger::Handle, store: PathBuf) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if handle.tick().await.is_err() || store::is_suspected(&store) {
            return;
        }
    }
}

/// Reads the whole store once a day; large ones are not read at start.
async fn look_after_store(store: PathBuf) {
    let mut looks = tokio::time::interval_at(tokio::time::Instant::now() + FIRST_LOOK, EACH_LOOK);
    loop {
        looks.tick().await;
        let path = store.clone();
        // A thread of its own: nobody waits for it at the end.
        let look =
            std::thread::Builder::new().name("look".into()).spawn(move || match store::check(&path).as_deref() {
                Ok([first, ..]) => store::suspect(&path, first),
                Ok([]) => (),
                Err(error) => tracing::warn!(error = error.in_full(), "the store could not be looked through"),
            });
        if let Err(error) = look {
            tracing::warn!(%error, "the store could not be looked through");
        }
    }
}

/// Looks after the collector's own certificates.
async fn keep(certificates: Certificates, clock: fn() -> Timestamp) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let certificates = certificates.clone();
        let looked = tokio::task::spawn_blocking(move || certificates.keep(clock())).await;
        if let Err(error) = looked {
            tracing::error!(%error, "the collector's certificates could not be looked after");
        }
    }
}

async fn serve_person(router: axum::Router, accepted: Accepted) {
    let peer = accepted.peer;
    let service = service_fn(move |mut request: axum::http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request)
    });
    accepted.serve(service, std::future::pending()).await;
}

fn lock(directory: &Directory) -> Result<File, CollectorError> {
    let failed = |source| CollectorError::Directory { path: directory.path().into(), source };
    let held = File::open(directory.path()).map_err(failed)?;
    match flock(&held, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(held),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(CollectorError::Serving(directory.path().into())),
        Err(error) => Err(failed(error.into())),
    }
}

/// Where agents send to when the configuration does not say: the first name of the server's certificate.
fn url(name: Option<String>, address: SocketAddr) -> String {
    let name = name.unwrap_or_else(|| address.ip().to_string());
    let host = match name.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
        _ => name,
    };
    format!("https://{host}:{}", address.port())
}

fn write_addresses(directory: &Directory, addresses: Addresses) -> Result<(), CollectorError> {
    let path = directory.addresses();
    let text = serde_json::json!({
        "agents": addresses.agents.to_string(),
        "people": addresses.people.to_string(),
    });
    // Renamed into place, so that whoever waits for it never reads half of it.
    let half = path.with_extension("json.new");
    let written = std::fs::write(&half, text.to_string()).and_then(|()| std::fs::rename(&half, &path));
    written.map_err(|source| CollectorError::Directory { path, source })
}

#[cfg(test)]
mod tests;
