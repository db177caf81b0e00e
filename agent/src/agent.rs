//! Wires the stages, starts them left to right and drains them in the same order.
//!
//! One task, `Watcher`, owns what is known: it takes the readings of all inspectors, lets the judge decide, appends
//! what was decided to the buffer, and answers the local socket. The wall clock is read here and nowhere else.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rand::Rng;
use tickbird_shared::batch::{Inventory, Record};
use tickbird_shared::protocol::OPEN_SECONDS;
use tickbird_shared::{Finding, Lane, Severity};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::buffer::{self, Buffer};
use crate::config::Config;
use crate::identity::{Identity, IdentityError};
use crate::inspect::host::{self, Attention, Ended, Endpoints, HostInspector};
use crate::inspect::http_endpoint::HttpInspector;
use crate::inspect::log_tail::LogInspector;
#[cfg(feature = "mysql")]
use crate::inspect::mysql::MySqlInspector;
use crate::inspect::pgbouncer::PgBouncerInspector;
use crate::inspect::pool_metrics::PoolInspector;
use crate::inspect::postgres::PostgresInspector;
#[cfg(feature = "rabbitmq")]
use crate::inspect::rabbitmq::RabbitMqInspector;
use crate::inspect::recording::Recorder;
#[cfg(feature = "redis")]
use crate::inspect::redis::RedisInspector;
use crate::inspect::resolver::{Names, NamesInspector};
use crate::inspect::schedule::{self, Clock, Looked, Place};
use crate::inspect::sqlite::{self, SqliteInspector};
use crate::inspect::summary::Minutes;
use crate::inspect::{Inspector, Reading, Rows};
use crate::judge::levels::Telling;
use crate::judge::{BudgetSeen, BufferSeen, BufferSums, CertificateSeen, Judge, LaneSums, Moment, Who};
use crate::kernel::reader::Reader;
use crate::ship::{self, Ship};
use crate::status::loopback::Loopback;
use crate::status::report::Source;
use crate::status::world::World;
use crate::status::{self, CollectorPart, socket};

mod accept;
mod budget;
mod canary;
mod once;
mod separation;
mod service;

pub use budget::Budget;
use budget::Pace;
use canary::Canaries;
pub use canary::EVERY as CANARY_EVERY;
pub use once::Once;
pub use separation::Separation;
use service::Watchdog;

/// What a signal asks of the running agent.
#[derive(Debug)]
pub enum Order {
    /// Drain, say goodbye, end.
    Stop,
    /// Go on with this configuration.
    Reload(Box<Config>),
}

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The state directory cannot be used.
    #[error("cannot use the state directory `{path}`")]
    StateDir {
        /// The directory.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The buffer cannot be opened.
    #[error(transparent)]
    Buffer(#[from] buffer::BufferError),
    /// There is an identity, but it cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The identity does not say where records go.
    #[error("cannot use the collector's address of the identity")]
    Origin(#[from] ship::OriginError),
    /// The page for probes cannot be served.
    #[error("cannot listen at {address} (local.listen)")]
    Listen {
        /// What was configured.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl AgentError {
    /// What the operator can do.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::StateDir { .. } => {
                Some("make it writable to the agent's user, or name another with state_dir or --state-dir")
            }
            Self::Buffer(error) => error.advice(),
            Self::Identity(error) => error.advice(),
            Self::Origin(_) => Some("enrol again, or set collector.url"),
            Self::Listen { .. } => Some("name a loopback address and a port that nobody else has"),
        }
    }
}

/// Runs the agent until it is told to stop or its channel of orders closes; `reader` looks into other processes.
///
/// # Errors
/// When it cannot start. Once it runs, trouble is told as findings and in the log, and it goes on.
pub async fn run(config: Config, reader: Reader, mut orders: mpsc::Receiver<Order>) -> Result<(), AgentError> {
    let state_error = |source| AgentError::StateDir { path: config.state_dir.display().to_string(), source };
    std::fs::create_dir_all(&config.state_dir).map_err(state_error)?;
    let listener = socket::listen(&config.state_dir.join(socket::NAME)).map_err(state_error)?;
    let loaded = match &config.identity {
        Some(files) => Arc::clone(files).load(wall()),
        None => Identity::load(&config.state_dir, wall()),
    };
    let identity = match loaded {
        Ok(identity) => Some(identity),
        // Without a collector the agent watches alone; with one, an agent that cannot reach it must not look well.
        Err(IdentityError::NotEnrolled { .. }) if config.collector.is_none() => None,
        Err(error) => return Err(error.into()),
    };

    let (asks, mut asked) = mpsc::channel(8);
    let mut page = match config.listen {
        Some(address) => {
            let page = Loopback::begin(address, asks.clone()).await;
            Some(page.map_err(|source| AgentError::Listen { address, source })?)
        }
        None => None,
    };
    let socket = tokio::spawn(socket::serve(listener, rustix::process::getegid().as_raw(), asks.clone()));
    let shipping = match &identity {
        Some(identity) => Some(Shipping::start(&config, identity)?),
        None => None,
    };
    let configured = config.collector.as_ref().map(ToString::to_string);
    let collector = configured.or_else(|| identity.as_ref().map(|it| it.card().url.clone()));
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        agent = identity.as_ref().map(|it| it.card().agent.as_str()),
        collector = collector.as_deref(),
        "agent started"
    );

    let clock = Clock::start();
    let mut watcher = Watcher::new(config, identity, shipping, clock);
    let mut eyes = Eyes::open(&watcher.config, &reader, clock);
    let mut watchdog = Watchdog::begin(clock.now());
    loop {
        watchdog.turned(clock.now());
        let wake = watcher.due_at().min(watchdog.due_at()).saturating_sub(clock.now());
        tokio::select! {
            Some(looked) = eyes.looked.recv() => {
                eyes.learn(&looked);
                // A probe tells nothing of a pool, and there may be hundreds of them.
                let is_probe = matches!(&looked.reading, Ok(Reading { rows: Rows::Probe(_), .. }));
                watcher.looked(looked).await;
                if !is_probe {
                    eyes.heed(&watcher.judge, watcher.pace.times());
                }
            }
            Some(ended) = eyes.ended.recv() => {
                let findings = watcher.judge.ended(&ended, watcher.moment());
                watcher.tell(findings).await;
                if watcher.judge.waits_for_look() {
                    eyes.hurry.notify_one();
                }
            }
            () = tokio::time::sleep(wake) => {
                let findings = watcher.judge.tick(watcher.moment());
                watcher.tell(findings).await;
                if watcher.judge.waits_for_look() {
                    eyes.hurry.notify_one();
                }
            }
            Some(ask) = asked.recv() => {
                // A caller that hung up is no trouble of ours.
                let _ = ask.send(watcher.report().await);
            }
            order = orders.recv() => match order {
                Some(Order::Reload(config)) => {
                    watcher.reconfigure(*config).await;
                    watcher.canaries_anew(rand::rng().random());
                    page = elsewhere(page, watcher.config.listen, &asks).await;
                    eyes = Eyes::open(&watcher.config, &reader, clock);
                    watcher.judge.begin_anew(eyes.intervals.iter().map(|it| it.inspector.clone()), watcher.moment());
                    tracing::info!("configuration reloaded");
                }
                Some(Order::Stop) | None => break,
            },
        }
        // Whatever it was that woke us: with a look each second the timer alone may never come round.
        watcher.look_at_itself().await;
        watcher.let_canary_go().await;
        watcher.tell_open_list().await;
    }
    tracing::info!("agent stopping");
    service::ends();
    drop((eyes, page));
    watcher.close().await;
    socket.abort();
    // The socket is ours; a reader must not find it without an agent behind it.
    let _ = std::fs::remove_file(watcher.config.state_dir.join(socket::NAME));
    Ok(())
}

/// The page for probes where it is to be now. An address that cannot be had is told, and ends nothing.
async fn elsewhere(
    page: Option<Loopback>,
    wanted: Option<SocketAddr>,
    asks: &mpsc::Sender<status::Ask>,
) -> Option<Loopback> {
    if page.as_ref().map(Loopback::address) == wanted {
        return page;
    }
    drop(page);
    let address = wanted?;
    let begun = Loopback::begin(address, asks.clone()).await;
    begun.map_err(|error| tracing::error!(%address, %error, "health and metrics cannot be served there")).ok()
}

/// The buffer and the task that empties it.
struct Shipping {
    buffer: Buffer,
    health: watch::Receiver<ship::Health>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Shipping {
    fn start(config: &Config, identity: &Identity) -> Result<Self, AgentError> {
        let (buffer, opened) = Buffer::open(config.buffer.clone(), wall())?;
        if opened.is_on_disk {
            tracing::info!(epoch = %opened.epoch, new = opened.is_new, "buffer open");
        }
        let origin = match &config.collector {
            Some(origin) => origin.clone(),
            None => identity.card().url.parse()?,
        };
        let (ship, health) = Ship::new(ship::Config::new(origin, wall), identity, buffer.clone());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(ship.run(async move {
            // A sender that is gone asks for the same.
            let _ = stopped.await;
        }));
        Ok(Self { buffer, health, stop, task })
    }

    /// Sends what waits for a few seconds, says goodbye, closes the buffer.
    async fn finish(self) {
        let _ = self.stop.send(());
        if let Err(error) = self.task.await {
            tracing::error!(%error, "shipping ended badly");
        }
        if let Err(error) = self.buffer.close().await {
            tracing::error!(%error, "the buffer's last state could not be synced");
        }
    }

    fn part(&self) -> CollectorPart {
        let health = self.health.borrow();
        CollectorPart {
            url: health.collector.clone(),
            breaker: health.breaker.to_string(),
            acknowledged_at: health.last_success,
            error: health.last_error.as_ref().map(|it| it.text.clone()),
            counts: health.to_json(),
        }
    }
}

/// Owner of everything the agent knows.
struct Watcher {
    config: Config,
    identity: Option<Identity>,
    shipping: Option<Shipping>,
    judge: Judge,
    world: World,
    minutes: Minutes,
    levels: Telling,
    recorder: Recorder,
    pace: Pace,
    canaries: Canaries,
    clock: Clock,
    started_at: Timestamp,
    targets_told: Option<Vec<String>>,
    /// When the next open list is due, on the monotonic clock.
    open_due: Duration,
    /// When the agent last looked at its own buffer and clock.
    itself_seen: Option<Duration>,
    /// Urgent records that the buffer had evicted when the last list was told.
    evicted: u64,
    /// Gaps that the collector was told of, as of the last look.
    bridged: u64,
    /// Epochs that the buffer had begun because it turned out to be a copy, as of the last look.
    begun_anew: u64,
    /// Findings were lost on their way since the last list: what still fires is said once more.
    has_lost: bool,
    /// Records that the disk did not take; findings among them stay visible in `status`.
    unbuffered: u64,
    /// Of these, critical findings that were held in memory instead.
    held: u64,
    /// When the log last said that records are not taken.
    refused_said: Option<Duration>,
    /// Intervals that went by since an inspector last saw anything, of those whose last look gave nothing.
    unseen: BTreeMap<String, u32>,
}

/// Between two looks of the agent at itself.
const OWN_INTERVAL: Duration = Duration::from_secs(10);
/// From a loss to the list that makes up for it.
const AFTER_LOSS: Duration = Duration::from_secs(60);
/// The first open list waits until every hold of a shipped default that looks at levels has had its time.
const FIRST_OPEN_LIST: Duration = Duration::from_secs(90);

impl Watcher {
    fn new(config: Config, identity: Option<Identity>, shipping: Option<Shipping>, clock: Clock) -> Self {
        let who = identity
            .as_ref()
            .map_or_else(Who::alone, |it| Who { tenant: it.card().tenant.clone(), agent: it.card().agent.clone() });
        let mut judge = Judge::new(who, config.checks.clone());
        judge.watches_servers(!servers(&config).is_empty());
        let canaries = Canaries::begin(config.canary, clock.now(), rand::rng().random());
        Self {
            config,
            identity,
            shipping,
            judge,
            world: World::default(),
            minutes: Minutes::default(),
            levels: Telling::default(),
            recorder: Recorder::default(),
            pace: Pace::default(),
            canaries,
            clock,
            started_at: wall(),
            targets_told: None,
            open_due: clock.now() + FIRST_OPEN_LIST,
            itself_seen: None,
            evicted: 0,
            bridged: 0,
            begun_anew: 0,
            has_lost: false,
            unbuffered: 0,
            held: 0,
            refused_said: None,
            unseen: BTreeMap::new(),
        }
    }

    fn moment(&self) -> Moment {
        Moment { mono: self.clock.now(), wall: wall() }
    }

    /// When something is due that no look brings along. Each wake on an idle host costs more than what is done in it.
    fn due_at(&self) -> Duration {
        let itself = self.itself_seen.map_or(Duration::ZERO, |last| last + OWN_INTERVAL);
        // An agent without a collector lets none go.
        let canary = if self.shipping.is_some() { self.canaries.due_at() } else { Duration::MAX };
        self.judge.wake_at().map_or(itself, |at| at.min(itself)).min(self.open_due).min(canary)
    }

    async fn reconfigure(&mut self, config: Config) {
        let findings = self.judge.reconfigure(config.checks.clone(), self.moment());
        self.judge.watches_servers(!servers(&config).is_empty());
        self.world.forget_configured();
        self.unseen.clear();
        self.config = config;
        // Other inspectors have to look first.
        self.open_due = self.clock.now() + FIRST_OPEN_LIST;
        self.tell(findings).await;
    }

    async fn looked(&mut self, looked: Looked) {
        let now = Moment { mono: looked.at, wall: wall() };
        let mut findings = Vec::new();
        match looked.reading {
            Ok(reading) => {
                self.unseen.remove(&looked.inspector);
                findings.extend(self.judge.look(&reading, now));
                self.recorder.add(&reading.observations, now.mono);
                let summaries = self.minutes.add(&reading.observations, now.wall);
                self.append(Lane::Bulk, summaries.into_iter().map(Record::Summary)).await;
                let is_host = matches!(reading.rows, Rows::Host(_));
                self.world.saw(reading.rows);
                if is_host {
                    self.tell_inventory(now.wall).await;
                    self.tell_levels(now).await;
                }
            }
            Err(why) => {
                *self.unseen.entry(looked.inspector.clone()).or_default() += 1 + looked.skipped;
                tracing::warn!(inspector = looked.inspector, took = ?looked.took, "{why}");
            }
        }
        if looked.skipped > 0 {
            tracing::warn!(inspector = looked.inspector, skipped = looked.skipped, "looks were left out");
        }
        let missed = self.unseen.get(&looked.inspector).copied().unwrap_or(looked.skipped);
        findings.extend(self.judge.ran(&looked.inspector, missed, now));
        self.tell(findings).await;
    }

    /// Logs findings and puts them where they survive, with the recording of each that turned critical.
    async fn tell(&mut self, findings: Vec<Finding<'static>>) {
        for it in &findings {
            let (check, target, change) = (&*it.check, &*it.target, it.change);
            let (status, severity, summary) = (it.status.as_str(), it.severity.as_str(), &*it.summary);
            if it.severity == Severity::Info {
                tracing::info!(check, target, status, severity, ?change, summary, "finding");
            } else {
                tracing::warn!(check, target, status, severity, ?change, summary, "finding");
            }
        }
        let now = self.moment();
        let recordings: Vec<_> = findings.iter().filter_map(|it| self.recorder.of(it, now.mono, now.wall)).collect();
        let is_taken = self.append(Lane::Urgent, findings.iter().cloned().map(Record::Finding)).await;
        if !is_taken {
            self.hold(findings).await;
        }
        self.append(Lane::Bulk, recordings.into_iter().map(Record::Recording)).await;
    }

    /// What it takes, its buffer and its clock, every ten seconds.
    async fn look_at_itself(&mut self) {
        let now = self.moment();
        if self.itself_seen.is_some_and(|last| now.mono < last + OWN_INTERVAL) {
            return;
        }
        self.itself_seen = Some(now.mono);
        let ahead = self.shipping.as_ref().and_then(|it| it.health.borrow().ahead);
        let mut findings = self.judge.own_clock(since_boot(), ahead, now);
        let taken = self.pace.measure(self.config.budget, now.mono);
        let seen = BudgetSeen {
            cpu: taken.cpu,
            cpu_budget: self.config.budget.cpu,
            memory: taken.memory,
            memory_budget: self.config.budget.memory,
            times_slower: self.pace.times(),
        };
        findings.extend(self.judge.own_budget(&seen, now));
        let (bridged, begun_anew) = self.shipping.as_ref().map_or((0, 0), |it| {
            let health = it.health.borrow();
            (health.bridged, health.begun_anew)
        });
        if std::mem::replace(&mut self.begun_anew, begun_anew) < begun_anew {
            // At once: a copy that goes on under the old epoch could end what was said there with its first open list.
            self.tell_again().await;
        }
        if std::mem::replace(&mut self.bridged, bridged) < bridged {
            self.note_loss();
        }
        if let Some(shipping) = &self.shipping {
            let sums = shipping.buffer.stat().await.ok().as_ref().map(buffer_sums);
            let seen = BufferSeen { sums, unbuffered: self.unbuffered, held: self.held };
            findings.extend(self.judge.own_buffer(&seen, now));
            let certificate = shipping.health.borrow().certificate.clone();
            let error = certificate.last_error.as_ref().map(|it| it.text.as_str());
            let seen = CertificateSeen { begins: certificate.begins, ends: certificate.ends, error };
            findings.extend(self.judge.own_certificate(&seen, now));
        }
        self.tell(findings).await;
    }

    /// The level behind the edges: after start and reload, after findings were lost, and every ten minutes.
    async fn tell_open_list(&mut self) {
        let now = self.clock.now();
        if now >= self.open_due {
            self.open_due = now + Duration::from_secs(OPEN_SECONDS);
            if std::mem::take(&mut self.has_lost) {
                self.tell_again().await;
            }
            let open = self.judge.open(self.moment());
            self.append(Lane::Urgent, [Record::Open(open)]).await;
        }
    }

    /// Who this is and what it watches, when that changed.
    async fn tell_inventory(&mut self, wall: Timestamp) {
        let targets = self.world.target_keys();
        if self.targets_told.as_ref().is_some_and(|told| told.iter().eq(targets.iter().map(|it| it.as_str()))) {
            return;
        }
        let targets: Vec<String> = targets.into_iter().map(|it| it.as_str().to_owned()).collect();
        let inventory = Inventory {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: host_name(),
            system: system_name(),
            labels: self.config.labels.clone(),
            targets: targets.clone(),
            observed_at: wall,
        };
        if self.append(Lane::Bulk, [Record::Inventory(inventory)]).await {
            self.targets_told = Some(targets);
        }
    }

    /// How full pools and servers are, for the rules over many agents.
    async fn tell_levels(&mut self, now: Moment) {
        let Some(host) = self.world.host() else { return };
        let levels = self.levels.due(host, self.world.servers(), now);
        self.append(Lane::Bulk, levels.map(Record::Levels)).await;
    }

    async fn report(&self) -> status::Report {
        let buffer = match &self.shipping {
            Some(shipping) => shipping.buffer.stat().await.ok().map(|it| it.to_json()),
            None => None,
        };
        status::report::report(&Source {
            judge: &self.judge,
            world: &self.world,
            identity: self.identity.as_ref(),
            buffer,
            shipping: self.shipping.as_ref().map(Shipping::part),
            started_at: self.started_at,
            times_slower: self.pace.times(),
            now: self.moment(),
            holds_respected: true,
        })
    }

    async fn close(&mut self) {
        let summaries = self.minutes.close();
        self.append(Lane::Bulk, summaries.into_iter().map(Record::Summary)).await;
        if let Some(shipping) = self.shipping.take() {
            shipping.finish().await;
        }
    }
}

/// The inspectors at work; they end when this is dropped.
struct Eyes {
    looked: mpsc::Receiver<Looked>,
    ended: mpsc::Receiver<Ended>,
    /// Where servers are, told to the host inspector as their addresses become known.
    endpoints: Endpoints,
    /// Names of servers, told to the resolver's inspector as they are come across.
    names: Names,
    /// What looks at the host do only when the judge asks for it.
    attention: Attention,
    /// Asks for a look at the host at once.
    hurry: Arc<Notify>,
    /// When each inspector looks; dropping one ends it.
    intervals: Vec<Interval>,
}

/// Between two looks of an inspector.
struct Interval {
    inspector: String,
    calm: Duration,
    /// While a pool of this server is over 80 % or suspect.
    suspect: Duration,
    /// It is what makes the agent dear: it gets longer when the budget is short.
    is_elastic: bool,
    now: watch::Sender<Duration>,
}

/// Readings that wait for the judge at most; beyond, inspectors wait, and their skipped turns are counted.
const READINGS: usize = 64;

impl Eyes {
    fn open(config: &Config, reader: &Reader, clock: Clock) -> Self {
        let (out, looked) = mpsc::channel(READINGS);
        let mut intervals = Vec::new();
        let begun = Instant::now();
        let mut begin = |inspector: Box<dyn Inspector>, [calm, suspect]: [Duration; 2], limit, hurry: Arc<Notify>| {
            let (now, receiver) = watch::channel(calm);
            let is_elastic = [host::ABOUT.name, sqlite::ABOUT.name].contains(&inspector.about().name);
            intervals.push(Interval { inspector: inspector.name(), calm, suspect, is_elastic, now });
            let place = match inspector.about().name {
                name if name == host::ABOUT.name => Place::alone(begun),
                _ => Place::among(begun, rand::rng().random()),
            };
            tokio::spawn(schedule::run(inspector, receiver, hurry, limit, place, clock, out.clone()));
        };
        let endpoints = Endpoints::default();
        let attention = Attention::default();
        let host =
            host::Config { attention: attention.clone(), reader: reader.clone(), ..config.host(endpoints.clone()) };
        let (host, ended) = HostInspector::new(host);
        let hurry = Arc::<Notify>::default();
        begin(Box::new(host), [config.host_interval; 2], config.host_interval * 10, hurry.clone());
        let mut start = |inspector, intervals, limit| begin(inspector, intervals, limit, Arc::default());
        for (inspector, interval) in servers(config) {
            start(inspector, [interval, interval.min(SUSPECT_INTERVAL)], Duration::from_secs(15));
        }
        for it in &config.pools {
            let limit = it.inspector.timeout() + Duration::from_secs(1);
            let inspector = Box::new(PoolInspector::new(it.inspector.clone()));
            start(inspector, [it.interval, it.interval.min(SUSPECT_INTERVAL)], limit);
        }
        for it in &config.endpoints {
            let limit = it.inspector.timeout + Duration::from_secs(1);
            start(Box::new(HttpInspector::new(it.inspector.clone())), [it.interval; 2], limit);
        }
        for log in &config.logs {
            start(Box::new(LogInspector::new(log.clone(), reader.clone())), [LOG_INTERVAL; 2], LOG_INTERVAL * 10);
        }
        let sqlite = Box::new(SqliteInspector::new(reader.clone()));
        start(sqlite, [config.sqlite_interval; 2], config.sqlite_interval);
        let names = Names::default();
        let resolver = Box::new(NamesInspector::new(names.clone()));
        start(resolver, [config.resolver_interval; 2], config.resolver_interval * 3);
        Self { looked, ended, endpoints, names, attention, hurry, intervals }
    }

    /// Connections to a configured server are a pool, whatever its port, and names in DSNs are worth asking for.
    fn learn(&self, looked: &Looked) {
        match &looked.reading {
            Ok(Reading { rows: Rows::Server(look), .. }) => {
                self.endpoints.learn(&looked.inspector, look);
                self.names.learn_server(&looked.inspector, look);
            }
            Ok(Reading { rows: Rows::Host(look), .. }) => self.names.learn_host(look),
            _ => (),
        }
    }

    /// Servers with a suspect pool are asked more often, the host is looked at twice while an order is sought, and so many
    /// times less often while the agent would take more than its budget.
    fn heed(&self, judge: &Judge, times_slower: u32) {
        self.attention.want_order_test(judge.wants_order_test());
        for it in &self.intervals {
            let interval = if judge.is_suspect(&it.inspector) { it.suspect } else { it.calm };
            let wanted = if it.is_elastic { interval * times_slower } else { interval };
            it.now.send_if_modified(|now| std::mem::replace(now, wanted) != wanted);
        }
    }
}

/// The inspectors of configured servers, each with its interval.
fn servers(config: &Config) -> Vec<(Box<dyn Inspector>, Duration)> {
    let mut all: Vec<(Box<dyn Inspector>, Duration)> = Vec::new();
    for it in &config.postgres {
        all.push((Box::new(PostgresInspector::new(it.inspector.clone())), it.interval));
    }
    for it in &config.pgbouncer {
        all.push((Box::new(PgBouncerInspector::new(it.inspector.clone())), it.interval));
    }
    #[cfg(feature = "mysql")]
    for it in &config.mysql {
        all.push((Box::new(MySqlInspector::new(it.inspector.clone())), it.interval));
    }
    #[cfg(feature = "redis")]
    for it in &config.redis {
        all.push((Box::new(RedisInspector::new(it.inspector.clone())), it.interval));
    }
    #[cfg(feature = "rabbitmq")]
    for it in &config.rabbitmq {
        all.push((Box::new(RabbitMqInspector::new(it.inspector.clone())), it.interval));
    }
    all
}

/// Between two looks at a log.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// How often a server is asked while a pool of it is over 80 % or suspect.
const SUSPECT_INTERVAL: Duration = Duration::from_secs(2);

/// What the buffer says of itself, as the judge takes it.
fn buffer_sums(stat: &buffer::Stat) -> BufferSums {
    BufferSums {
        lanes: stat.lanes.map(|it| LaneSums {
            lane: it.lane,
            backlog: it.backlog,
            bytes_on_disk: it.bytes_on_disk,
            evicted: it.evicted,
            quarantined: it.quarantined,
        }),
        max_bytes: stat.max_bytes.unwrap_or(0),
        available_bytes: stat.available_bytes,
        is_disk_full: stat.is_disk_full(),
    }
}

/// Since the host started, its sleep included.
fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(time).unwrap_or_default()
}

/// The wall clock.
pub fn wall() -> Timestamp {
    Timestamp::now()
}

/// The host's name, as it calls itself.
pub fn host_name() -> String {
    sysinfo::System::host_name().unwrap_or_else(|_| "unknown".to_owned())
}

/// Distribution and kernel: `Debian GNU/Linux 12, Linux 6.1.0`.
fn system_name() -> String {
    let distribution = sysinfo::System::long_os_version().unwrap_or_else(|_| "Linux".to_owned());
    let kernel = sysinfo::System::kernel_version().unwrap_or_default();
    format!("{distribution}, Linux {kernel}")
}

/// Sends the log to standard error: text with a time, coloured on a terminal, at `info` and above.
pub fn log_to_stderr() {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
    let started = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .with_max_level(tracing::Level::INFO)
        .try_init();
    if started.is_err() {
        tracing::debug!("the log was set up already");
    }
}
