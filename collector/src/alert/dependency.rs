//! Dependencies: while a server does not answer, nobody hears of what its clients suffer from it.
//!
//! Who depends on which server is learnt from sockets: agents tell where each pool leads (levels), and that is remembered for a day,
//! since a server that is down has no connections. Operators may declare more. Only what people hear is held back: checks go
//! on, incidents open and end.
//!
//! A server has many names: its own identifier, the addresses at which it is reached, and what a DSN calls it. Whoever asks it says
//! which belong together; a dependant needs to know one of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use tickbird_shared::Timestamp;
use tickbird_shared::levels::Levels;
use ulid::Ulid;

use super::inhibition::all;
use super::{Facts, IncidentKey, Matcher};
use crate::aggregate::{identity, place};
use crate::store::{AgentRow, DependencyRow, Edge, Edges, IncidentRow};

/// What is not seen for so long is not there any more.
const REMEMBERED: Duration = Duration::from_secs(86_400);
/// What is seen still is written anew after so long.
const WRITTEN_EVERY: Duration = Duration::from_secs(3_600);
/// Pools that are remembered of one agent: what it may tell of at once, twice.
const MOST_POOLS: usize = 400;
/// Names of one server that are remembered of one agent.
const MOST_NAMES: usize = 64;
/// Incidents of servers that are looked at to find one that each receiver knows.
const MOST_SOURCES: usize = 256;
/// How an identity begins that a server gave itself.
const SYSTEM: &str = "system/";
/// What stands for a server in a target's key.
const SERVER: &str = "server:";
/// The same behind the check of an [`About`].
const SERVER_TARGET: &str = "\0server:";

/// What of a server explains what of its clients, and who depends on what besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependencies {
    /// All have to match an incident about a server for it to explain others; without any, nothing does.
    pub sources: Vec<Matcher>,
    /// All have to match an incident of a client.
    pub targets: Vec<Matcher>,
    /// Whether what was learnt from sockets counts.
    pub learnt: bool,
    /// What operators say.
    pub declared: Vec<Declared>,
}

/// That incidents which match depend on a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Where it stands in the configuration: `depends_on[0]`.
    pub at: String,
    /// All have to match.
    pub matchers: Vec<Matcher>,
    /// Any name of the server, with its port: `db.internal:5432`.
    pub server: String,
}

impl Dependencies {
    /// Whether an incident may be one that explains others.
    pub(super) fn concern(&self, incident: &IncidentRow) -> bool {
        !self.sources.is_empty() && incident.target.starts_with(SERVER)
    }

    /// Nothing depends on anything.
    pub const NONE: Self = Self { sources: Vec::new(), targets: Vec::new(), learnt: false, declared: Vec::new() };
}

impl Default for Dependencies {
    fn default() -> Self {
        let matchers = |texts: &[&str]| texts.iter().filter_map(|it| it.parse().ok()).collect();
        Self {
            sources: matchers(&["check=~\"db\\.connect|db\\.headroom\"", "severity=\"critical\""]),
            targets: matchers(&[TARGETS]),
            learnt: true,
            declared: Vec::new(),
        }
    }
}

/// What clients suffer from a server that is away or full: not what they do to it, as a leak.
const TARGETS: &str =
    "check=~\"pool\\.(exhausted|absent|churn|connect_stuck|storm|timeout|close_wait|half_open|utilization)|http\\..*\"";

/// Everything that was learnt, and which servers do not answer.
#[derive(Debug, Default)]
pub(super) struct Graph {
    edges: HashMap<IncidentKey, Edges>,
    /// Per agent the applications that listen on a port.
    ports: HashMap<IncidentKey, BTreeMap<u16, String>>,
    /// What of which server fires and explains others, as an agent sees it.
    sources: HashMap<About, Source>,
    /// The same by tenant and each name of the server.
    down: HashMap<IncidentKey, BTreeSet<About>>,
    /// Incidents of servers that are not known any more by a name by which they were: what they explain may be another's.
    renamed: Vec<IncidentKey>,
    /// Servers that said which they are, by tenant and each of their names. Two sites may have one address.
    claims: HashMap<IncidentKey, BTreeSet<String>>,
}

/// Tenant, agent, check and target, as one text: fifty thousand incidents may be about one.
type About = String;

/// Incidents about one thing.
#[derive(Debug, Default)]
struct Source {
    tenant: String,
    /// In words for people.
    what: String,
    /// Of the server, as they are known now.
    names: BTreeSet<String>,
    /// Fifty thousand of them as texts would take four mebibytes more.
    incidents: BTreeSet<Ulid>,
}

/// What holds an incident back.
pub(super) struct Holder<'a> {
    /// The incident of the server.
    pub(super) incident: String,
    what: &'a str,
    why: String,
}

impl Holder<'_> {
    /// Why nobody is told, for the record.
    pub(super) fn why(&self) -> String {
        format!("depends on a server with incident {}, {}, {}", self.incident, self.what, self.why)
    }
}

impl Graph {
    /// As stored.
    pub(super) fn load(rows: Vec<DependencyRow>) -> Self {
        let edges = rows.into_iter().map(|row| ((row.tenant, row.agent), row.edges)).collect();
        let mut graph = Self { edges, ..Self::default() };
        for ((tenant, _), edges) in &graph.edges {
            edges.iter().for_each(|(server, edge)| claim(&mut graph.claims, tenant, server, edge));
        }
        graph
    }

    /// Learns which application listens where. Of several that have one name nobody knows which of them has the pool.
    pub(super) fn know(&mut self, agent: &AgentRow) {
        let mut ports: BTreeMap<_, _> = agent.targets.iter().filter_map(|it| listener(it)).collect();
        let mut times: BTreeMap<String, u32> = BTreeMap::new();
        ports.values().for_each(|it| *times.entry(it.clone()).or_default() += 1);
        ports.retain(|_, it| times[it] == 1);
        let key = (agent.tenant.clone(), agent.id.clone());
        if ports.is_empty() {
            self.ports.remove(&key);
        } else {
            self.ports.insert(key, ports);
        }
    }

    /// Learns from levels; the row when it is to be written.
    pub(super) fn learn(
        &mut self,
        tenant: &str,
        agent: &str,
        levels: &Levels,
        now: Timestamp,
    ) -> Option<DependencyRow> {
        let mut seen: BTreeMap<String, Edge> = BTreeMap::new();
        let edge =
            || Edge { pools: BTreeSet::new(), applications: BTreeSet::new(), names: BTreeSet::new(), seen_at: now };
        for pool in &levels.pools {
            let edge = seen.entry(identity(agent, &pool.server)).or_insert_with(edge);
            edge.pools.insert(pool.target.clone());
            edge.applications.insert(pool.application.clone());
        }
        for server in &levels.servers {
            let edge = seen.entry(identity(agent, &server.server)).or_insert_with(edge);
            let names = server.addresses.iter().chain(&server.asked_as).chain([&server.server.address]);
            edge.names.extend(names.map(|it| place(agent, it)));
        }
        let key = (tenant.to_owned(), agent.to_owned());
        if seen.is_empty() && !self.edges.contains_key(&key) {
            return None;
        }
        let known = self.edges.entry(key).or_default();
        let mut is_news = false;
        for (server, mut new) in seen {
            while new.names.len() > MOST_NAMES {
                new.names.pop_last();
            }
            claim(&mut self.claims, tenant, &server, &new);
            match known.get_mut(&server) {
                Some(old) => {
                    let is_old = new.pools.is_subset(&old.pools)
                        && new.applications.is_subset(&old.applications)
                        && new.names.is_subset(&old.names);
                    if is_old && elapsed(old.seen_at, now) < WRITTEN_EVERY && old.seen_at <= now {
                        continue;
                    }
                    // A pool that was not seen for a while goes with the others that were not.
                    if elapsed(old.seen_at, now) >= REMEMBERED {
                        *old = new;
                    } else {
                        old.pools.extend(new.pools);
                        old.applications.extend(new.applications);
                        old.names.extend(new.names.iter().cloned());
                        if old.names.len() > MOST_NAMES {
                            old.names = new.names;
                        }
                        old.seen_at = now;
                    }
                }
                None => drop(known.insert(server, new)),
            }
            is_news = true;
        }
        let before = known.len();
        known.retain(|_, edge| elapsed(edge.seen_at, now) < REMEMBERED);
        is_news |= known.len() != before;
        while known.values().map(|it| it.pools.len().max(1)).sum::<usize>() > MOST_POOLS {
            let oldest = known.iter().min_by_key(|(_, edge)| edge.seen_at).map(|(server, _)| server.clone());
            let Some(oldest) = oldest else { break };
            known.remove(&oldest);
        }
        if !is_news {
            return None;
        }
        let row = DependencyRow { tenant: tenant.into(), agent: agent.into(), edges: known.clone(), seen_at: now };
        self.name_sources(tenant, agent);
        Some(row)
    }

    /// What an agent says of a server that is down counts at once, under each name that it has now.
    fn name_sources(&mut self, tenant: &str, agent: &str) {
        let of_agent = [tenant, agent, ""].join("\0");
        let abouts = self.sources.keys().filter(|it| it.starts_with(&of_agent));
        let targets = abouts.filter_map(|it| Some((it.clone(), it.rsplit_once(SERVER_TARGET)?.1.to_owned())));
        for (about, target) in targets.collect::<Vec<_>>() {
            let names = self.names(tenant, agent, &target);
            self.rename(tenant, &about, names);
        }
    }

    /// A source is known by these names from now on.
    fn rename(&mut self, tenant: &str, about: &About, names: BTreeSet<String>) {
        let Some(source) = self.sources.get_mut(about).filter(|it| it.names != names) else { return };
        let before = std::mem::replace(&mut source.names, names.clone());
        if !before.is_subset(&names) {
            self.renamed.extend(source.incidents.iter().map(|id| (tenant.to_owned(), id.to_string())));
        }
        self.move_names(tenant, about, &before, &names);
    }

    /// Takes out incidents whose server lost a name: what they held back is decided anew.
    pub(super) fn take_renamed(&mut self) -> Vec<IncidentKey> {
        std::mem::take(&mut self.renamed)
    }

    /// Forgets an agent.
    pub(super) fn forget(&mut self, tenant: &str, agent: &str) {
        let key = (tenant.to_owned(), agent.to_owned());
        self.edges.remove(&key);
        self.ports.remove(&key);
    }

    /// Whether nothing is known to be down.
    pub(super) fn is_quiet(&self) -> bool {
        self.down.is_empty()
    }

    /// Whether an incident is one that explains others now.
    pub(super) fn explains(&self, incident: &IncidentRow) -> bool {
        let source = || self.sources.get(&about(incident));
        !self.is_quiet() && id_of(incident).is_some_and(|id| source().is_some_and(|it| it.incidents.contains(&id)))
    }

    /// Takes an incident as it is now; true when it explained something and does not any more.
    pub(super) fn take(&mut self, rules: &Dependencies, incident: &IncidentRow, fires: bool, facts: &Facts) -> bool {
        let Some(target) = incident.target.strip_prefix(SERVER) else { return false };
        if rules.sources.is_empty() {
            return false;
        }
        let (about, Some(id)) = (about(incident), id_of(incident)) else { return false };
        if !fires || !all(&rules.sources, facts) {
            return self.lets_go(&about, id);
        }
        let names = self.names(&incident.tenant, &incident.agent, target);
        let source = self.sources.entry(about.clone()).or_insert_with(|| Source {
            tenant: incident.tenant.clone(),
            what: format!("{} of {}", incident.check, incident.target),
            ..Source::default()
        });
        source.incidents.insert(id);
        self.rename(&incident.tenant, &about, names);
        false
    }

    /// One of a server is over; true when it was one.
    fn lets_go(&mut self, about: &About, id: Ulid) -> bool {
        let Some(source) = self.sources.get_mut(about) else { return false };
        let was = source.incidents.remove(&id);
        if source.incidents.is_empty()
            && let Some(gone) = self.sources.remove(about)
        {
            self.move_names(&gone.tenant, about, &gone.names, &BTreeSet::new());
        }
        was
    }

    /// What is known of a server is known under these names from now on.
    fn move_names(&mut self, tenant: &str, about: &About, before: &BTreeSet<String>, now: &BTreeSet<String>) {
        for gone in before.difference(now) {
            let place = (tenant.to_owned(), gone.clone());
            if let Some(there) = self.down.get_mut(&place) {
                there.remove(about);
                if there.is_empty() {
                    self.down.remove(&place);
                }
            }
        }
        for new in now.difference(before) {
            self.down.entry((tenant.to_owned(), new.clone())).or_default().insert(about.clone());
        }
    }

    /// All names of the server that an agent's DSN calls so: `db.internal:5432/shop`.
    fn names(&self, tenant: &str, agent: &str, target: &str) -> BTreeSet<String> {
        let address = target.split_once('/').map_or(target, |(address, _)| address);
        let (called, bare) = (place(agent, address), address.to_owned());
        let edges = self.edges.get(&(tenant.to_owned(), agent.to_owned()));
        let is_it = |edge: &&(&String, &Edge)| edge.1.names.contains(&called);
        let known = edges.into_iter().flatten().filter(|it| is_it(&it));
        let known = known.flat_map(|(server, edge)| edge.names.iter().chain([server]).cloned());
        known.chain([called.clone(), bare]).collect()
    }

    /// What explains an incident of these facts, and `counts`: of an id, whether it does and whether more are looked for.
    pub(super) fn holders<'a>(
        &'a self,
        rules: &Dependencies,
        incident: &IncidentRow,
        facts: &Facts,
        mut counts: impl FnMut(&str) -> (bool, bool),
    ) -> Vec<Holder<'a>> {
        // What explains others is not explained: two servers could hold back one another.
        if self.is_quiet() || self.explains(incident) || !all(&rules.targets, facts) {
            return Vec::new();
        }
        let (tenant, agent, target) = (&incident.tenant, &incident.agent, incident.target.as_str());
        let host = facts.get("host").map_or("", String::as_str);
        let (mut found, mut room) = (Vec::new(), MOST_SOURCES);
        let mut take = |server: &str, why: String| {
            let down = self.down.get(&(tenant.clone(), server.to_owned())).into_iter().flatten();
            let sources = down.filter_map(|it| self.sources.get(it));
            for (id, what) in sources.flat_map(|it| it.incidents.iter().map(|id| (id, it.what.as_str()))) {
                if room == 0 {
                    return;
                }
                let id = id.to_string();
                let (does, goes_on) = counts(&id);
                room = if goes_on { room - 1 } else { 0 };
                if does {
                    found.push(Holder { incident: id, what, why: why.clone() });
                }
            }
        };
        for it in rules.declared.iter().filter(|it| all(&it.matchers, facts)) {
            take(&it.server, format!("by {}", it.at));
        }
        let edges = self.edges.get(&(tenant.clone(), agent.clone())).filter(|_| rules.learnt);
        let application = self.application(tenant, agent, target, host);
        let leads = |edge: &Edge| match target.strip_prefix("pool:") {
            Some(_) => edge.pools.iter().any(|it| is_of_pool(target, it)),
            None => application.is_some_and(|it| edge.applications.contains(it)),
        };
        let clear = |server: &str| {
            // An address to which two servers lay claim may be that of either.
            let claims = self.claims.get(&(tenant.clone(), server.to_owned()));
            server.starts_with(SYSTEM) || claims.is_none_or(|it| it.len() < 2)
        };
        for (server, edge) in edges.into_iter().flatten().filter(|(server, edge)| leads(edge) && clear(server)) {
            take(server, format!("as its sockets said ({server}, at {})", edge.seen_at));
        }
        found
    }

    /// Which application a target is of, or stands behind it on the same host.
    fn application<'a>(&'a self, tenant: &str, agent: &str, target: &'a str, host: &str) -> Option<&'a str> {
        if let Some(rest) = target.strip_prefix("process:") {
            return rest.rsplit_once('/').map(|(application, _)| application);
        }
        if let Some(rest) = target.strip_prefix("log:") {
            return rest.split_once(":/").map(|(application, _)| application);
        }
        let uri: axum::http::Uri = target.strip_prefix("endpoint:")?.parse().ok()?;
        let named = uri.host()?.trim_start_matches('[').trim_end_matches(']');
        let is_loopback = named.parse::<IpAddr>().is_ok_and(|it| it.to_canonical().is_loopback());
        if !is_loopback && named != "localhost" && named != host {
            return None;
        }
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        self.ports.get(&(tenant.to_owned(), agent.to_owned()))?.get(&port).map(String::as_str)
    }
}

/// None of one whose id is damaged.
fn id_of(incident: &IncidentRow) -> Option<Ulid> {
    Ulid::from_string(&incident.id).ok()
}

fn about(incident: &IncidentRow) -> About {
    [&*incident.tenant, &*incident.agent, &*incident.check, &*incident.target].join("\0")
}

/// Notes the names of a server that said which it is.
fn claim(claims: &mut HashMap<IncidentKey, BTreeSet<String>>, tenant: &str, server: &str, edge: &Edge) {
    if !server.starts_with(SYSTEM) {
        return;
    }
    for name in &edge.names {
        let those = claims.entry((tenant.to_owned(), name.clone())).or_default();
        // Which two they are does not matter.
        if those.len() < 2 && !those.contains(server) {
            those.insert(server.to_owned());
        }
    }
}

/// Whether a target is a pool, or part of one that the server's view tells apart by database and user.
fn is_of_pool(target: &str, pool: &str) -> bool {
    target.strip_prefix(pool).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        || pool.strip_prefix(target).is_some_and(|rest| rest.starts_with('/'))
}

/// Port and application of `process:<application>/<role>:<port>`.
fn listener(target: &str) -> Option<(u16, String)> {
    let (application, role) = target.strip_prefix("process:")?.rsplit_once('/')?;
    let (_, port) = role.rsplit_once(':')?;
    Some((port.parse().ok()?, application.to_owned()))
}

fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    to.duration_since(from).try_into().unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use tickbird_shared::Severity;
    use tickbird_shared::levels::{Amount, FORM, PoolLevel, ServerLevel, ServerName};

    use super::*;
    use crate::alert::facts;

    const TENANT: &str = "default";
    const DOWN: &str = "01JCZZZZZZZZZZZZZZZZZZZZZ1";
    const OTHER: &str = "01JCZZZZZZZZZZZZZZZZZZZZZ2";
    const ADDRESS: &str = "10.0.0.5:5432";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).expect("in range")
    }

    fn name(address: &str, system: Option<&str>) -> ServerName {
        ServerName { system: system.map(str::to_owned), replica: false, address: address.into() }
    }

    fn pool(application: &str, server: ServerName) -> PoolLevel {
        PoolLevel {
            target: format!("pool:{application}/main>{}", server.address),
            server,
            database: None,
            user: None,
            application: application.into(),
            instances: 1,
            limit: Amount::Known(20),
            open: 3,
            leased: Amount::Known(1),
            dsn: None,
            by_transaction: None,
        }
    }

    fn levels(pools: Vec<PoolLevel>, asked: Option<(ServerName, &str)>) -> Levels {
        let server = |(server, asked_as): (ServerName, &str)| ServerLevel {
            addresses: vec![server.address.clone()],
            server,
            asked_as: Some(asked_as.into()),
            slots: Amount::Known(97),
            used: Amount::Known(9),
            by_transaction: None,
        };
        let servers = asked.map(server).into_iter().collect();
        Levels { form: FORM, observed_at: at(0), pools, left_out: 0, servers }
    }

    fn incident(id: &str, agent: &str, check: &str, target: &str) -> IncidentRow {
        let severity = if check.starts_with("db.") { Severity::Critical } else { Severity::Warning };
        let (id, agent, target) = (id.into(), agent.into(), target.into());
        IncidentRow { id, agent, target, ..crate::alert::tests::incident(check, severity, 1) }
    }

    /// What is told of the server that `watch` asks.
    fn down() -> IncidentRow {
        incident(DOWN, "watch", "db.connect", "server:db.internal:5432/shop")
    }

    fn of_host(incident: &IncidentRow) -> Facts {
        facts(incident, Some(&agent(&incident.agent, &[])))
    }

    fn take(graph: &mut Graph, rules: &Dependencies, incident: &IncidentRow, fires: bool) -> bool {
        graph.take(rules, incident, fires, &of_host(incident))
    }

    fn holders<'a>(graph: &'a Graph, rules: &Dependencies, incident: &IncidentRow) -> Vec<Holder<'a>> {
        graph.holders(rules, incident, &of_host(incident), |_| (true, true))
    }

    fn agent(id: &str, targets: &[&str]) -> AgentRow {
        AgentRow {
            targets: targets.iter().map(|it| (*it).to_owned()).collect(),
            ..AgentRow::enrolled((TENANT, id), "web-1", at(0), at(9))
        }
    }

    /// Agent `web` sees the pools of `shop` and `blog` to two servers, agent `watch` asks the first of them by a name.
    fn graph() -> Graph {
        let mut graph = Graph::default();
        let pools = vec![pool("shop", name(ADDRESS, None)), pool("blog", name("10.0.0.6:5432", None))];
        assert!(graph.learn(TENANT, "web", &levels(pools, None), at(0)).is_some());
        let asked = levels(Vec::new(), Some((name(ADDRESS, Some("731")), "db.internal:5432")));
        assert!(graph.learn(TENANT, "watch", &asked, at(0)).is_some());
        graph.know(&agent("web", &["process:shop/main:8000", "process:blog/main:8001", "process:nginx/main"]));
        graph
    }

    /// What of `web` the server's incident explains.
    fn explained(graph: &Graph, rules: &Dependencies) -> Vec<&'static str> {
        let all = [
            ("pool.exhausted", "pool:shop/main>10.0.0.5:5432"),
            ("pool.exhausted", "pool:shop/main>10.0.0.5:5432/shop?user=shop"),
            ("http.status", "endpoint:http://127.0.0.1:8000/till"),
            ("http.latency", "endpoint:http://web-1:8000/"),
            ("http.status", "endpoint:http://127.0.0.1:8001/"),
            ("http.status", "endpoint:http://10.9.9.9:8000/"),
            ("pool.exhausted", "pool:blog/main>10.0.0.6:5432"),
            ("pool.exhausted", "pool:shop/main>10.0.0.5:54321"),
            ("pool.leak", "pool:shop/main>10.0.0.5:5432"),
            ("proc.memory", "process:shop/main:8000"),
        ];
        let is_held = |it: &&(&str, &str)| !holders(graph, rules, &incident(OTHER, "web", it.0, it.1)).is_empty();
        all.iter().filter(is_held).map(|it| it.1).collect()
    }

    const OF_SHOP: [&str; 4] = [
        "pool:shop/main>10.0.0.5:5432",
        "pool:shop/main>10.0.0.5:5432/shop?user=shop",
        "endpoint:http://127.0.0.1:8000/till",
        "endpoint:http://web-1:8000/",
    ];

    #[test]
    fn a_server_that_is_down_explains_what_its_clients_suffer_and_nothing_else() {
        let (mut graph, rules) = (graph(), Dependencies::default());
        assert_eq!(explained(&graph, &rules), [""; 0]);
        assert!(!take(&mut graph, &rules, &down(), true));
        assert_eq!(explained(&graph, &rules), OF_SHOP);
        let page = incident(OTHER, "web", "http.status", OF_SHOP[2]);
        let held = holders(&graph, &rules, &page);
        let [it] = &held[..] else { panic!("{} holders", held.len()) };
        let why = "depends on a server with incident 01JCZZZZZZZZZZZZZZZZZZZZZ1, db.connect of server:db.internal:5432/shop, as its sockets said \
                   (10.0.0.5:5432, at 2026-09-21T14:13:20Z)";
        assert_eq!((it.incident.as_str(), it.why().as_str()), (DOWN, why));
        // Another tenant's application of the same name.
        assert!(holders(&graph, &rules, &IncidentRow { tenant: "other".into(), ..page }).is_empty());
        assert!(take(&mut graph, &rules, &down(), false));
        assert_eq!(explained(&graph, &rules), [""; 0]);
        assert!(graph.is_quiet() && graph.sources.is_empty());
    }

    #[test]
    fn of_many_incidents_of_a_server_the_last_one_ends_what_it_explains() {
        let (mut graph, rules) = (graph(), Dependencies::default());
        let each = (0..100).map(|it| IncidentRow { id: format!("01JCZZZZZZZZZZZZZZZZZZZ{it:03}"), ..down() });
        each.clone().for_each(|it| assert!(!take(&mut graph, &rules, &it, true)));
        let page = incident(OTHER, "web", "http.status", OF_SHOP[2]);
        assert_eq!(holders(&graph, &rules, &page).len(), 100);
        let mut left = 40;
        let some = |_: &str| {
            left -= 1;
            (left < 2, left > 0)
        };
        assert_eq!(graph.holders(&rules, &page, &of_host(&page), some).len(), 2, "those that count, and no more");
        for it in each {
            assert_eq!(explained(&graph, &rules), OF_SHOP);
            assert!(graph.explains(&it) && take(&mut graph, &rules, &it, false) && !graph.explains(&it));
        }
        assert_eq!(explained(&graph, &rules), [""; 0]);
    }

    #[test]
    fn of_two_applications_with_one_name_neither_is_taken_for_the_other() {
        let (mut graph, rules) = (graph(), Dependencies::default());
        take(&mut graph, &rules, &down(), true);
        graph.know(&agent("web", &["process:shop/main:8000", "process:shop/worker:8000", "process:shop/main:8001"]));
        assert_eq!(explained(&graph, &rules), OF_SHOP[..2]);
    }

    #[test]
    fn what_a_server_suffers_short_of_being_away_or_full_explains_nothing() {
        let (mut graph, rules) = (graph(), Dependencies::default());
        for (check, severity) in [("db.locks", Severity::Critical), ("db.headroom", Severity::Warning)] {
            let it = IncidentRow { severity, ..incident(DOWN, "watch", check, "server:db.internal:5432/shop") };
            take(&mut graph, &rules, &it, true);
            assert_eq!(explained(&graph, &rules), [""; 0], "{check}");
        }
    }

    #[test]
    fn it_is_remembered_for_a_day_and_written_each_hour() {
        let (mut graph, rules) = (graph(), Dependencies::default());
        // The server is down: no socket leads there.
        let none = levels(Vec::new(), None);
        assert_eq!(graph.learn(TENANT, "web", &none, at(600)), None);
        let pools = || levels(vec![pool("shop", name(ADDRESS, None))], None);
        assert_eq!(graph.learn(TENANT, "web", &pools(), at(601)), None, "nothing is new");
        let row = graph.learn(TENANT, "web", &pools(), at(3_601)).expect("is written anew");
        assert_eq!((row.edges.len(), row.edges[ADDRESS].seen_at), (2, at(3_601)));
        let row = graph.learn(TENANT, "web", &pools(), at(86_401)).expect("one is forgotten");
        assert_eq!(row.edges.keys().collect::<Vec<_>>(), [ADDRESS]);
        // As after a restart.
        let asked = levels(Vec::new(), Some((name(ADDRESS, Some("731")), "db.internal:5432")));
        let asked = Graph::default().learn(TENANT, "watch", &asked, at(0)).expect("is new");
        let mut again = Graph::load(vec![row, asked]);
        again.know(&agent("web", &["process:shop/main:8000"]));
        take(&mut again, &rules, &down(), true);
        assert_eq!(explained(&again, &rules), OF_SHOP);
        again.forget(TENANT, "web");
        assert_eq!(explained(&again, &rules), [""; 0]);
    }

    #[test]
    fn what_operators_declare_holds_beside_what_is_learnt() {
        let mut graph = Graph::default();
        let declared = Declared {
            at: "depends_on[0]".into(),
            matchers: vec!["target=~\"endpoint:http://127.0.0.1:8001/.*\"".parse().expect("a matcher")],
            server: "db.internal:5432".into(),
        };
        let rules = Dependencies { declared: vec![declared], learnt: false, ..Dependencies::default() };
        take(&mut graph, &rules, &down(), true);
        assert_eq!(explained(&graph, &rules), ["endpoint:http://127.0.0.1:8001/"]);
        // Nothing holds back what explains it.
        let everything = || vec!["check=~\".+\"".parse().expect("a matcher")];
        let declared = Declared { matchers: everything(), ..rules.declared[0].clone() };
        let rules = Dependencies { targets: everything(), declared: vec![declared], ..rules };
        assert!(holders(&graph, &rules, &down()).is_empty());
        assert_eq!(holders(&graph, &rules, &IncidentRow { id: OTHER.into(), ..down() }).len(), 1);
    }

    #[test]
    fn an_address_of_two_servers_explains_nothing() {
        let (mut graph, rules) = (graph(), Dependencies::default());
        take(&mut graph, &rules, &down(), true);
        // Another site has its own server at that address.
        let asked = levels(Vec::new(), Some((name(ADDRESS, Some("999")), "10.0.0.5:5432")));
        let row = graph.learn(TENANT, "elsewhere", &asked, at(1)).expect("is new");
        assert_eq!(explained(&graph, &rules), [""; 0]);
        // Who asks the server itself knows which it is.
        let mut pools = vec![pool("shop", name(ADDRESS, Some("731")))];
        pools[0].target = OF_SHOP[0].into();
        let own = levels(pools, Some((name(ADDRESS, Some("731")), "10.0.0.5:5432")));
        graph.learn(TENANT, "web", &own, at(2));
        assert_eq!(explained(&graph, &rules), OF_SHOP);
        assert_eq!(Graph::load(vec![row]).claims.len(), 1, "also after a restart");
    }

    #[test]
    fn what_is_learnt_of_a_server_that_is_down_already_counts_at_once() {
        let (mut graph, rules) = (Graph::default(), Dependencies::default());
        let pools = vec![pool("shop", name(ADDRESS, None))];
        assert!(graph.learn(TENANT, "web", &levels(pools, None), at(0)).is_some());
        graph.know(&agent("web", &["process:shop/main:8000"]));
        take(&mut graph, &rules, &down(), true);
        assert_eq!(explained(&graph, &rules), [""; 0], "nobody knows where its name leads");
        let asked = levels(Vec::new(), Some((name(ADDRESS, Some("731")), "db.internal:5432")));
        assert!(graph.learn(TENANT, "watch", &asked, at(1)).is_some());
        assert_eq!(explained(&graph, &rules), OF_SHOP);
        // A day later it is forgotten.
        graph.learn(TENANT, "watch", &levels(Vec::new(), None), at(1 + 86_400));
        assert_eq!(explained(&graph, &rules), [""; 0]);
        assert!(take(&mut graph, &rules, &down(), false) && graph.is_quiet());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut graph = Graph::default();
        for number in 0..1_000 {
            let pools = vec![pool("shop", name(&format!("10.0.{}.{}:5432", number / 250, number % 250), None))];
            graph.learn(TENANT, "web", &levels(pools, None), at(number));
        }
        for number in 0..1_000 {
            let asked = levels(Vec::new(), Some((name(ADDRESS, Some("731")), &*format!("db-{number}:5432"))));
            graph.learn(TENANT, "watch", &asked, at(number));
        }
        let names = &graph.edges[&(TENANT.to_owned(), "watch".to_owned())]["system/731"].names;
        assert!(names.len() <= MOST_NAMES && names.contains("db-999:5432"), "the newest stay: {names:?}");
        let edges = &graph.edges[&(TENANT.to_owned(), "web".to_owned())];
        assert_eq!(edges.len(), MOST_POOLS);
        assert!(edges.contains_key("10.0.3.249:5432") && !edges.contains_key("10.0.0.0:5432"), "the oldest go");
    }
}
