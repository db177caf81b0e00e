//! Text in, a configuration that cannot be wrong out, or every mistake at once.

mod canary;
pub mod expectations;
mod fields;
mod receivers;
mod routing;
mod rules;
pub mod trials;

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::aggregate::{self, Flapping, MOST_RETURNS};
use crate::alert::Policy;
use crate::certificates::{Brought, Naming, ServerFiles, Settings};
use crate::ingest::Limits;
use crate::notify::Destination;
use crate::pki::Lives;
use crate::store::Bounds;

use fields::Fields;

/// A collector's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// What this collector calls itself.
    pub name: String,
    /// Where agents connect to.
    pub agents: SocketAddr,
    /// What enrolment tells agents; none: made of the server certificate's first name and the port.
    pub agents_url: Option<String>,
    /// Where people connect to.
    pub people: SocketAddr,
    /// How long and how much is kept.
    pub bounds: Bounds,
    /// How long what the collector's authority signs is valid, and what is brought from another PKI.
    pub certificates: Settings,
    /// What one agent may have and send.
    pub limits: Limits,
    /// When the collector tells of itself.
    pub own: aggregate::Settings,
    /// Who hears of incidents, and of which.
    pub policy: Policy,
    /// What is added up over many agents.
    pub rules: Vec<aggregate::Rule>,
    /// Receivers that were taken out and never hear the end of what they were told of.
    pub abandoned: Vec<String>,
    /// Files that it names: another reading looks for their successors beside them.
    pub files: Vec<PathBuf>,
    /// How each of them is reached, by name.
    pub destinations: Vec<(String, Destination)>,
}

impl Config {
    /// What of another configuration cannot be taken over while this one serves.
    pub fn fixed_parts(&self, other: &Self) -> Vec<&'static str> {
        let parts = [
            ("name", self.name == other.name),
            ("agents", (self.agents, &self.agents_url) == (other.agents, &other.agents_url)),
            ("people", self.people == other.people),
            ("certificates", self.certificates == other.certificates),
            ("limits", self.limits == other.limits),
            ("own", self.own == other.own),
        ];
        parts.into_iter().filter(|(_, is_same)| !is_same).map(|(name, _)| name).collect()
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The key: `receiver[0].webhook.url`; empty for the file as a whole.
    pub at: String,
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub advice: String,
}

/// Everything that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes {
    /// The file.
    pub path: PathBuf,
    /// At least one.
    pub mistakes: Vec<Mistake>,
}

impl std::error::Error for Mistakes {}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.mistakes.len();
        write!(f, "{count} mistake{} in `{}`", if count == 1 { "" } else { "s" }, self.path.display())?;
        let said = |it: &Mistake| if it.at.is_empty() { it.what.clone() } else { format!("{}: {}", it.at, it.what) };
        let width = self.mistakes.iter().map(|it| said(it).chars().count()).max().unwrap_or(0);
        for it in &self.mistakes {
            write!(f, "\n  {:width$}  advice: {}", said(it), it.advice)?;
        }
        Ok(())
    }
}

impl Config {
    /// Reads a file. Paths in it are relative to its own directory.
    ///
    /// # Errors
    /// Every mistake, not only the first.
    pub fn read(path: &Path) -> Result<Self, Mistakes> {
        let whole = |what: String, advice: &str| Mistakes {
            path: path.into(),
            mistakes: vec![Mistake { at: String::new(), what, advice: advice.into() }],
        };
        let text = std::fs::read_to_string(path)
            .map_err(|e| whole(format!("cannot be read: {e}"), "make a collector with `tickbird-collector init`"))?;
        let directory = path.parent().unwrap_or(Path::new("."));
        Self::parse(&text, directory).map_err(|mistakes| Mistakes { path: path.into(), mistakes })
    }

    /// Reads the text of a file whose directory is `directory`.
    ///
    /// # Errors
    /// Every mistake, not only the first.
    pub fn parse(text: &str, directory: &Path) -> Result<Self, Vec<Mistake>> {
        let table = table(text).map_err(|it| vec![it])?;
        let files = files(&table).into_iter().map(|it| directory.join(it)).collect();
        let mut mistakes = Vec::new();
        let mut root = Fields::new(String::new(), table);
        let name = root.text("name", &mut mistakes).unwrap_or_else(|| "collector".into());

        let mut agents = root.table("agents", &mut mistakes);
        let agents_listen = agents.address("listen", 7443, &mut mistakes);
        let agents_url = agents.text("url", &mut mistakes);
        if let Some(url) = &agents_url
            && !is_origin(url)
        {
            agents.mistake("url", format!("`{url}` is not where agents can send to"), ORIGIN, &mut mistakes);
        }
        let (of_agents, naming) = (brought(&mut agents, directory, &mut mistakes), naming(&mut agents, &mut mistakes));
        agents.finish(&mut mistakes);

        let mut people = root.table("people", &mut mistakes);
        let people_listen = people.address("listen", 7444, &mut mistakes);
        let of_people = brought(&mut people, directory, &mut mistakes);
        people.finish(&mut mistakes);
        if agents_listen == people_listen && agents_listen.port() != 0 {
            people.mistake("listen", "agents listen there".into(), "give people another port", &mut mistakes);
        }

        let bounds = bounds(root.table("retention", &mut mistakes), &mut mistakes);
        let lives = lives(root.table("certificates", &mut mistakes), &mut mistakes);
        let limits = limits(root.table("limits", &mut mistakes), &mut mistakes);
        let own = own(root.table("own", &mut mistakes), &mut mistakes);
        let flapping = flapping(root.table("flapping", &mut mistakes), &mut mistakes);
        let (mut receivers, mut destinations, mut names) = (Vec::new(), Vec::new(), HashSet::new());
        for fields in root.tables("receiver", &mut mistakes) {
            if let Some((receiver, destination)) = receivers::one(fields, directory, &mut names, &mut mistakes) {
                destinations.push((receiver.name.clone(), destination));
                receivers.push(receiver);
            }
        }
        let abandoned = root.texts("abandoned_receivers", &mut mistakes).unwrap_or_default();
        for name in abandoned.iter().filter(|it| names.contains(*it)) {
            let what = format!("`{name}` is a receiver");
            root.mistake("abandoned_receivers", what, "take it out of one of the two", &mut mistakes);
        }
        let route = root.has("route").then(|| root.table("route", &mut mistakes));
        let windows = routing::windows(root.tables("time_intervals", &mut mistakes), &mut mistakes);
        let known = routing::Names { receivers: &names, windows: &windows.iter().map(|it| it.name.clone()).collect() };
        let route = route.and_then(|fields| routing::top(fields, &known, &mut mistakes));
        let canary = root.has("canary").then(|| root.table("canary", &mut mistakes));
        let canary = canary.and_then(|fields| canary::read(fields, &names, &mut mistakes));
        let rules = root.tables("inhibit_rules", &mut mistakes);
        let inhibitions: Vec<_> = rules.into_iter().filter_map(|it| routing::inhibition(it, &mut mistakes)).collect();
        let mut dependencies = routing::dependencies(root.table("dependencies", &mut mistakes), &mut mistakes);
        let declared = root.tables("depends_on", &mut mistakes).into_iter();
        dependencies.declared = declared.filter_map(|it| routing::declared(it, &mut mistakes)).collect();
        let fleet = rules::rules(root.tables("rule", &mut mistakes), &mut mistakes);
        root.finish(&mut mistakes);
        if mistakes.is_empty() {
            let (agents, people) = (agents_listen, people_listen);
            let certificates = Settings { lives, agents: of_agents, people: of_people, naming };
            Ok(Self {
                name,
                agents,
                agents_url,
                people,
                bounds,
                certificates,
                limits,
                own,
                policy: Policy { receivers, route, inhibitions, windows, flapping, dependencies, canary },
                rules: fleet,
                destinations,
                abandoned,
                files,
            })
        } else {
            Err(mistakes)
        }
    }
}

/// What the keys name that are `file` or end with `_file`, wherever they stand.
fn files(table: &toml::Table) -> Vec<&str> {
    let mut found = Vec::new();
    for (key, value) in table {
        match value {
            toml::Value::String(path) if key == "file" || key.ends_with("_file") => found.push(path.as_str()),
            toml::Value::Table(table) => found.extend(files(table)),
            toml::Value::Array(all) => found.extend(all.iter().filter_map(toml::Value::as_table).flat_map(files)),
            _ => (),
        }
    }
    found
}

/// The text of a file as a table.
fn table(text: &str) -> Result<toml::Table, Mistake> {
    text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        let what = format!("line {line}: {}", error.message());
        Mistake { at: String::new(), what, advice: "write it as TOML".into() }
    })
}

/// For tests; nobody is served by less than hours.
const SHORTEST_LIFE: std::time::Duration = std::time::Duration::from_secs(5);
/// For tests, too: whoever is far away needs more.
const SHORTEST_TIME: std::time::Duration = std::time::Duration::from_secs(1);
/// The collector looks at itself each second.
const SHORTEST_HOLD: std::time::Duration = std::time::Duration::from_secs(1);
const ORIGIN: &str = "write https://host:port, without a path";

fn is_origin(url: &str) -> bool {
    let Ok(uri) = url.parse::<axum::http::Uri>() else { return false };
    let has_host = uri.host().is_some_and(|host| !host.is_empty());
    uri.scheme_str() == Some("https")
        && has_host
        && uri.port_u16().is_some()
        && uri.path() == "/"
        && uri.query().is_none()
}

fn bounds(mut fields: Fields, mistakes: &mut Vec<Mistake>) -> Bounds {
    let mut bounds = Bounds::default();
    let ages = [
        ("findings", &mut bounds.findings),
        ("incidents", &mut bounds.incidents),
        ("summaries", &mut bounds.summaries),
    ];
    for (key, age) in ages {
        if let Some(written) = fields.duration(key, mistakes) {
            *age = written;
            if written < std::time::Duration::from_secs(3600) {
                let what = "is under an hour, the time in which an incident may come back".to_owned();
                fields.mistake(key, what, "write at least \"1h\"", mistakes);
            }
        }
    }
    if let Some(bytes) = fields.bytes("bytes", mistakes) {
        bounds.bytes = bytes;
        if bytes < 16 << 20 {
            fields.mistake("bytes", "is too small to work with".into(), "write at least \"16MiB\"", mistakes);
        }
    }
    fields.finish(mistakes);
    bounds
}

/// Files of another PKI: a certificate goes with its key and with what others should trust for it.
fn brought(fields: &mut Fields, directory: &Path, mistakes: &mut Vec<Mistake>) -> Brought {
    let mut path = |key: &str| fields.text(key, mistakes).map(|it| directory.join(it));
    let files = [path("certificate_file"), path("key_file"), path("ca_file")];
    let clients = path("client_ca_file");
    let server = match files {
        [Some(certificate), Some(key), Some(authority)] => Some(ServerFiles { certificate, key, authority }),
        [None, None, None] => None,
        _ => {
            let what = "certificate_file, key_file and ca_file go together";
            fields.mistake("certificate_file", what.into(), "write all three, or none for one made here", mistakes);
            None
        }
    };
    Brought { server, clients }
}

fn naming(fields: &mut Fields, mistakes: &mut Vec<Mistake>) -> Naming {
    match fields.text("client_name", mistakes).as_deref() {
        None | Some("uri") => Naming::Uri,
        Some("dns") => Naming::Dns,
        Some("cn") => Naming::CommonName,
        Some(other) => {
            let what = format!("`{other}` is no place in a certificate");
            fields.mistake("client_name", what, "write \"uri\", \"dns\" or \"cn\"", mistakes);
            Naming::Uri
        }
    }
}

fn lives(mut fields: Fields, mistakes: &mut Vec<Mistake>) -> Lives {
    let mut lives = Lives::default();
    let written = [("agent", &mut lives.agent), ("server", &mut lives.server), ("authority", &mut lives.authority)];
    for (key, life) in written {
        if let Some(written) = fields.duration(key, mistakes) {
            *life = written;
            if written < SHORTEST_LIFE {
                fields.mistake(key, "is too short to be renewed in time".into(), "write at least \"5s\"", mistakes);
            }
        }
    }
    if lives.authority < lives.agent.saturating_mul(10) {
        let what = "is under ten lives of an agent's certificate: not every agent would hear of the next in time";
        fields.mistake("authority", what.into(), "write more, or shorten `agent`", mistakes);
    }
    fields.finish(mistakes);
    lives
}

fn limits(mut fields: Fields, mistakes: &mut Vec<Mistake>) -> Limits {
    let mut limits = Limits::default();
    if let Some(connections) = fields.count("connections", mistakes) {
        limits.connections = connections as usize;
    }
    if let Some(series) = fields.count("series", mistakes) {
        limits.series = series as usize;
    }
    let rates = [
        ("records_per_second", &mut limits.rate),
        ("burst", &mut limits.burst),
        ("handshakes_per_second", &mut limits.handshake_rate),
    ];
    for (key, limit) in rates {
        if let Some(written) = fields.count(key, mistakes) {
            *limit = f64::from(written);
        }
    }
    let times = [
        ("handshake_time", &mut limits.handshake),
        ("idle_time", &mut limits.idle),
        ("body_time", &mut limits.body),
        ("answer_time", &mut limits.answer),
    ];
    for (key, time) in times {
        if let Some(written) = fields.duration(key, mistakes) {
            *time = written;
            if written < SHORTEST_TIME {
                fields.mistake(key, "is too short for a slow network".into(), "write at least \"1s\"", mistakes);
            }
        }
    }
    fields.finish(mistakes);
    limits
}

fn own(mut fields: Fields, mistakes: &mut Vec<Mistake>) -> aggregate::Settings {
    let mut own = aggregate::Settings::default();
    if let Some(bytes) = fields.bytes("disk_free", mistakes) {
        own.disk_free = bytes;
    }
    let holds = [
        ("disk_hold", &mut own.disk_hold),
        ("queue_hold", &mut own.queue_hold),
        ("receiver_hold", &mut own.receiver_hold),
    ];
    for (key, hold) in holds {
        if let Some(written) = fields.duration(key, mistakes) {
            *hold = written;
            if written < SHORTEST_HOLD {
                fields.mistake(
                    key,
                    "is less than the second between two looks".into(),
                    "write at least \"1s\"",
                    mistakes,
                );
            }
        }
    }
    fields.finish(mistakes);
    own
}

/// For tests; an agent looks each second, and most checks hold for longer.
const SHORTEST_CALM: std::time::Duration = std::time::Duration::from_secs(5);
const LONGEST_FLAP: std::time::Duration = std::time::Duration::from_secs(86_400);

fn flapping(mut fields: Fields, mistakes: &mut Vec<Mistake>) -> Flapping {
    let mut flapping = Flapping::default();
    let enabled = fields.flag("enabled", mistakes).unwrap_or(true);
    if let Some(returns) = fields.count("returns", mistakes) {
        flapping.returns = returns;
        if returns < 2 {
            let what = "would hold back the end of whatever returns once".to_owned();
            fields.mistake("returns", what, "write at least 2, or enabled = false", mistakes);
        } else if returns > MOST_RETURNS {
            let advice = format!("write at most {MOST_RETURNS}");
            fields.mistake("returns", "is more than is remembered".into(), &advice, mistakes);
        }
    }
    for (key, time) in [("within", &mut flapping.within), ("calm", &mut flapping.calm)] {
        if let Some(written) = fields.duration(key, mistakes) {
            *time = written;
            if !(SHORTEST_CALM..=LONGEST_FLAP).contains(&written) {
                let what = "is no time in which something flaps".to_owned();
                fields.mistake(key, what, "write from \"5s\" to \"1d\"", mistakes);
            }
        }
    }
    fields.finish(mistakes);
    if enabled { flapping } else { Flapping::NEVER }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use tickbird_shared::Severity;

    use crate::aggregate::CanarySettings;
    use crate::alert::{By, Dependencies, Grouping};

    fn mistakes(text: &str) -> Vec<String> {
        let found = Config::parse(text, Path::new("/nonexistent")).expect_err("must be refused");
        found.into_iter().map(|it| format!("{}: {}", it.at, it.what)).collect()
    }

    #[test]
    fn who_depends_on_what_is_learnt_unless_written_otherwise() {
        let read = |text: &str| Config::parse(text, Path::new("/nonexistent")).expect("is read").policy.dependencies;
        assert_eq!(read(""), Dependencies::default());
        let text = "[dependencies]\nlearn = false\nsource_matchers = ['check=\"db.connect\"']\n\
                    [[depends_on]]\nmatchers = ['team=\"shop\"']\nserver = \"db.internal:5432\"";
        let read = read(text);
        assert_eq!((read.learnt, read.sources.len(), read.targets.len(), read.declared.len()), (false, 1, 1, 1));
        let text = "[dependencies]\nlearn = 1\nsource_matchers = []\ntarget_matchers = ['check']\n\
                    [[depends_on]]\nserver = \"db.internal\"\n[[depends_on]]\nmatchers = ['team=\"shop\"']\non = 3";
        assert_eq!(
            mistakes(text),
            [
                "dependencies.learn: is not true or false but an integer",
                "dependencies.source_matchers: is empty: every incident would match",
                "dependencies.target_matchers: `check`: has none of =, !=, =~ and !~",
                "depends_on[0].matchers: is missing: without it everything would depend on it",
                "depends_on[0].server: `db.internal` names no server",
                "depends_on[1].server: is missing",
                "depends_on[1].on: is not a key here",
            ]
        );
    }

    #[test]
    fn when_something_flaps_is_written_in_three_keys() {
        let read = |text: &str| Config::parse(text, Path::new("/nonexistent")).expect("is read").policy.flapping;
        assert_eq!(read(""), Flapping::default());
        let written = read("[flapping]\nreturns = 5\nwithin = \"2h\"\ncalm = \"30m\"");
        let (within, calm) = (Duration::from_secs(7_200), Duration::from_secs(1_800));
        assert_eq!(written, Flapping { returns: 5, within, calm });
        assert_eq!(read("[flapping]\nenabled = false\nreturns = 5"), Flapping::NEVER);
        let text = "[flapping]\nreturns = 1\nwithin = \"1s\"\ncalm = \"2d\"\nfrom = 3";
        assert_eq!(
            mistakes(text),
            [
                "flapping.returns: would hold back the end of whatever returns once",
                "flapping.within: is no time in which something flaps",
                "flapping.calm: is no time in which something flaps",
                "flapping.from: is not a key here",
            ]
        );
        assert_eq!(mistakes("[flapping]\nreturns = 21"), ["flapping.returns: is more than is remembered"]);
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = Config::parse("", Path::new(".")).expect("reads");
        assert_eq!((config.agents.to_string(), config.people.to_string()), ("[::]:7443".into(), "[::]:7444".into()));
        assert_eq!(config.bounds, Bounds::default());
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.own, aggregate::Settings::default());
    }

    #[test]
    fn the_shipped_example_differs_from_the_defaults_only_by_its_receiver() {
        let directory = tempfile::tempdir().expect("makes one");
        std::fs::write(directory.path().join("ops.secret"), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
            .expect("writes");
        let text =
            include_str!("../../packaging/config/collector.toml").replace("/etc/tickbird/ops.secret", "ops.secret");
        let config = Config::parse(&text, directory.path()).expect("reads");
        assert_eq!((config.bounds, config.limits), (Bounds::default(), Limits::default()));
        assert_eq!(config.own, aggregate::Settings::default());
        assert_eq!(config.certificates, Settings::default());
        assert_eq!(config.policy.receivers.len(), 1);
        assert_eq!(
            (config.policy.receivers[0].name.as_str(), config.policy.receivers[0].min_severity),
            ("ops", Severity::Warning)
        );
    }

    #[test]
    fn every_mistake_is_said_at_once_by_its_key() {
        let text = r#"
            nmae = "x"
            [agents]
            listen = "collector:7443"
            url = "http://host"
            client_name = "email"
            [people]
            listen = 7444
            certificate_file = "only.pem"
            [retention]
            findings = "90"
            incidents = "5 fortnights"
            summaries = "1s"
            bytes = "10 GB of it"
            [certificates]
            agent = "1s"
            authority = "9s"
            [limits]
            connections = 0
            series = -1
            body_time = "10ms"
            [own]
            disk_free = 5
            queue_hold = "999ms"
            [[receiver]]
            name = "ops"
            min_severity = "loud"
            webhook.secret_file = "missing"
            [[receiver]]
            name = "ops"
            webhook.url = "http://127.0.0.1:1/hook"
            [route]
            matchers = ["severity=critical"]
            continue = "yes"
            [[route.routes]]
            receiver = "nobody"
            matchers = ["severity", 'check=~"("']
            group = "x"
            group_by = ["...", "team"]
            group_wait = 30
            group_interval = "500ms"
            repeat_interval = { critical = "0s", loud = "1h" }
            mute_time_intervals = ["night"]
            [canary]
            receiver = "nobody"
            every = "2h"
            missing_after = "500ms"
            slow = 5
            loud = true
            [[inhibit_rules]]
            source_matchers = ["severity"]
            [[time_intervals]]
            [[time_intervals]]
            name = "off"
            [[time_intervals.time_intervals]]
            times = [{ start_time = "22:00", end_time = "06:00" }, { start_time = "9:00" }]
            weekdays = ["friday:monday"]
            days_of_month = ["0", "25:-1"]
            months = ["13"]
            location = "Europe/Nowhere"
        "#;
        insta::assert_snapshot!(mistakes(text).join("\n"), @r#"
        agents.listen: `collector:7443` is not an address and a port
        agents.url: `http://host` is not where agents can send to
        agents.client_name: `email` is no place in a certificate
        people.listen: is not a text but an integer
        people.certificate_file: certificate_file, key_file and ca_file go together
        retention.findings: `90` has no unit
        retention.incidents: `5 fortnights` has a unit that is none of ms, s, m, h, d, w
        retention.summaries: is under an hour, the time in which an incident may come back
        retention.bytes: `10 GB of it` has a unit that is none of B, KiB, MiB, GiB, TiB
        certificates.agent: is too short to be renewed in time
        certificates.authority: is under ten lives of an agent's certificate: not every agent would hear of the next in time
        limits.connections: is out of range
        limits.series: is out of range
        limits.body_time: is too short for a slow network
        own.disk_free: `5` has no unit
        own.queue_hold: is less than the second between two looks
        receiver[0].min_severity: `loud` is no severity
        receiver[0].webhook.url: is missing
        receiver[0].webhook.secret_file: may not read `/nonexistent/missing`: No such file or directory (os error 2)
        receiver[1].name: `ops` is there twice
        time_intervals[0].name: is missing
        time_intervals[0].time_intervals: is missing: it would never hold
        time_intervals[1].time_intervals[0].times[0].end_time: is not after start_time
        time_intervals[1].time_intervals[0].times[1].start_time: `9:00` is no time of a day
        time_intervals[1].time_intervals[0].times[1].end_time: is missing
        time_intervals[1].time_intervals[0].weekdays: `friday:monday` is none of these
        time_intervals[1].time_intervals[0].months: `13` is none of these
        time_intervals[1].time_intervals[0].days_of_month: `0` are no days of a month
        time_intervals[1].time_intervals[0].location: this host knows no time zone `Europe/Nowhere`
        route.matchers: every incident enters here, so this one has none
        route.continue: every incident enters here, so this one has none
        route.receiver: is missing: who is told when no other route matches
        route.routes[0].receiver: there is no receiver `nobody`
        route.routes[0].matchers: `severity`: has none of =, !=, =~ and !~
        route.routes[0].matchers: `check=~"("`: `(` is no regular expression
        route.routes[0].group_by: `...` is each incident by itself, so no label can stand beside it
        route.routes[0].group_wait: `30` has no unit
        route.routes[0].group_interval: is less than a second
        route.routes[0].repeat_interval.critical: is less than a second
        route.routes[0].repeat_interval.loud: is not a key here
        route.routes[0].mute_time_intervals: there is no time interval `night`
        route.routes[0].group: is not a key here
        canary.receiver: there is no receiver `nobody`
        canary.every: is not between a second and an hour
        canary.missing_after: is not between a second and an hour
        canary.slow: `5` has no unit
        canary.missing_after: is less than `every`: each one would be missed before it can be told
        canary.loud: is not a key here
        inhibit_rules[0].source_matchers: `severity`: has none of =, !=, =~ and !~
        inhibit_rules[0].target_matchers: is missing: without it every incident would match
        nmae: is not a key here
        "#);
    }

    #[test]
    fn a_file_that_is_not_toml_is_one_mistake_with_its_line() {
        let found = mistakes("name = \"a\"\n[agents\nlisten = 1");
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("line 2"), "{found:?}");
    }

    #[test]
    fn routes_take_over_how_their_parents_group_and_one_without_a_word_does_not() {
        let text = r#"
            [[receiver]]
            name = "ops"
            webhook.url = "https://hooks.example.org/ops"
            [route]
            receiver = "ops"
            [[route.routes]]
            matchers = ["team=db"]
            group_by = ["target", "check"]
            repeat_interval = { critical = "1h30m" }
            [[route.routes.routes]]
            matchers = ["severity=critical"]
            group_by = ["..."]
            group_wait = "0s"
        "#;
        let top = Config::parse(text, Path::new(".")).expect("reads").policy.route.expect("a route");
        assert_eq!(top.grouping, None, "each by itself and at once, as before there were groups");
        let team = &top.routes[0];
        let hours = |hours: f64| Duration::from_secs_f64(hours * 3_600.0);
        let repeat = [(Severity::Info, hours(4.0)), (Severity::Warning, hours(4.0)), (Severity::Critical, hours(1.5))];
        let grouping = Grouping {
            by: By::Labels(vec!["target".into(), "check".into()]),
            wait: Grouping::WAIT,
            interval: Grouping::INTERVAL,
            repeat: repeat.into(),
        };
        let each = Grouping { by: By::Each, wait: Duration::ZERO, ..grouping.clone() };
        assert_eq!((team.grouping.as_ref(), team.routes[0].grouping.as_ref()), (Some(&grouping), Some(&each)));
    }

    #[test]
    fn routes_take_over_the_steps_of_their_parents_unless_they_name_their_own_or_none() {
        let text = r#"
            [[receiver]]
            name = "ops"
            webhook.url = "https://hooks.example.org/ops"
            [route]
            receiver = "ops"
            escalate = [
                { after = "15m", receiver = "ops" },
                { after = { critical = "1h" }, receiver = "ops", min_severity = "critical" },
            ]
            [[route.routes]]
            matchers = ["team=db"]
            [[route.routes]]
            matchers = ["team=web"]
            escalate = []
        "#;
        let top = Config::parse(text, Path::new(".")).expect("reads").policy.route.expect("a route");
        let names: Vec<_> = top.escalate.iter().map(|it| (it.name.as_str(), it.at.as_str(), it.after.len())).collect();
        assert_eq!(names, [("1 ops", "route.escalate[0]", 3), ("2 ops", "route.escalate[1]", 1)]);
        assert_eq!((&top.routes[0].escalate, top.routes[1].escalate.len()), (&top.escalate, 0));
        let wrong = text.replace("after = \"15m\", receiver = \"ops\"", "after = \"0s\", receiver = \"nobody\"");
        let wrong =
            wrong.replace("after = { critical = \"1h\" }, ", "").replace("\"critical\" }", "\"loud\", to = 1 }");
        insta::assert_snapshot!(mistakes(&wrong).join("\n"), @r#"
        route.escalate[0].receiver: there is no receiver `nobody`
        route.escalate[0].after: is less than a second
        route.escalate[1].after: is missing: how long nobody has acknowledged it
        route.escalate[1].min_severity: `loud` is no severity
        route.escalate[1].to: is not a key here
        "#);
    }

    #[test]
    fn who_waits_for_canaries_is_read_and_nobody_does_without_a_word() {
        let receiver = "[[receiver]]\nname = \"switch\"\nwebhook.url = \"https://hooks.example.org/alive\"\n";
        let read = |text: &str| Config::parse(&format!("{receiver}{text}"), Path::new("."));
        assert_eq!(read("").expect("reads").policy.canary, None);
        let canary = |text: &str| read(text).expect("reads").policy.canary.expect("somebody waits");
        let defaults = CanarySettings::new("switch".into());
        assert_eq!(canary("[canary]\nreceiver = \"switch\""), defaults);
        let s = Duration::from_secs;
        let (every, missing_after, slow, slow_hold) = (s(30), s(120), s(5), s(90));
        let written = "every = \"30s\"\nmissing_after = \"2m\"\nslow = \"5s\"\nslow_hold = \"90s\"";
        let settings = CanarySettings { every, missing_after, slow, slow_hold, ..defaults };
        assert_eq!(canary(&format!("[canary]\nreceiver = \"switch\"\n{written}")), settings);
        let wrong = read("[canary]\nevery = \"30s\"").expect_err("nobody is named");
        assert_eq!(wrong.iter().map(|it| it.at.as_str()).collect::<Vec<_>>(), ["canary.receiver"]);
    }

    #[test]
    fn units_are_read() {
        let text = "[retention]\nfindings = \"36h\"\nincidents = \"2w\"\nsummaries = \"90m\"\nbytes = \"512MiB\"";
        let bounds = Config::parse(text, Path::new(".")).expect("reads").bounds;
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let expected = Bounds {
            findings: hours(36),
            incidents: hours(14 * 24),
            summaries: Duration::from_secs(5_400),
            bytes: 512 << 20,
        };
        assert_eq!(bounds, expected);
    }
}
