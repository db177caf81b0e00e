//! What one look of the agent costs the watched PostgreSQL: the CPU of the agent's own backend, at 20, 100 and 350 idle sessions, and
//! at 100 that each ask something between any two looks.
//! In turns with it (A B A B), with the same right and as often, somebody asks the view `pg_stat_activity` for all that it has,
//! prepared once: the least that any observer pays who reads it. Not at the same time: one who asks each second is for the other
//! a session in which something happens.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tickbird_tests::agent::{User, postgres};
use tickbird_tests::postgres::{APPLICATION, password};
use tickbird_tests::{Agent, Postgres, Seconds, Stage, StageError, until};

use crate::cost::{run_seconds, warm_up};
use crate::{Figure, median};

/// Sessions, and whether they ask something.
const SIZES: [(usize, bool); 4] = [(20, false), (100, false), (350, false), (100, true)];
/// Each observer has so many turns, and in each so many parts, each of them one value; the middle of them is the figure.
const TURNS: u64 = 2;
const PARTS: u64 = 3;
/// Looks in a part: one a second.
const LOOKS: u64 = 20;
/// On a server where something happens all the time the agent asks more and more seldom whether nothing did: at last every 32 looks. So
/// long it takes after the other's turn until it looks as it does where nothing happens.
const CALM: Duration = Duration::from_secs(35);
const MONITOR: &str = "tickbird";

pub(crate) fn look(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let figures = SIZES.map(|(sessions, ask)| look_at(stage, sessions, ask));
    figures.into_iter().collect::<Result<Vec<_>, _>>().map(|all| all.into_iter().flatten().collect())
}

fn look_at(stage: &Stage, sessions: usize, ask: bool) -> Result<Vec<Figure>, StageError> {
    let server = Postgres::start(stage, u16::try_from(sessions).unwrap_or(u16::MAX) + 35)?;
    let mut clients =
        (0..sessions).map(|_| Client::start(&server, APPLICATION, STATEMENT)).collect::<Result<Vec<_>, _>>()?;
    let mut bare = Client::start(&server, (MONITOR, APPLICATION.1), BARE)?;
    let section = postgres(&server.dsn_file(MONITOR)?) + "interval = \"1s\"\n";
    let mut agent = Agent::prepare(stage, &section, User::Same)?;
    agent.run()?;
    let ours = |name: &str| {
        let told = format!("application_name = '{name}' AND usename = '{MONITOR}'");
        server.sql(&format!("SELECT pid FROM pg_stat_activity WHERE {told}"))
    };
    let backend = |name: &str| {
        let rows = ours(name).map_err(|error| error.to_string())?;
        match &rows[..] {
            [row] => row[0].parse::<u32>().map_err(|error| error.to_string()),
            other => Err(format!("{} sessions of {name}", other.len())),
        }
    };
    let (of_agent, of_bare) = until("the agent and all clients are connected", 60.s(), || {
        let asked = format!("SELECT pid FROM pg_stat_activity WHERE usename = '{}'", APPLICATION.0);
        match server.sql(&asked).map_err(|error| error.to_string())?.len() {
            found if found == sessions => Ok((backend("tickbird-agent")?, backend("psql")?)),
            other => Err(format!("{other} clients")),
        }
    })?;
    warm_up(5.s())?;
    let mut part = |of: u32, bare: Option<&mut Client>| -> Result<f64, StageError> {
        let before = run_seconds(of)?;
        let mut bare = bare;
        for _ in 0..LOOKS {
            warm_up(1.s())?;
            if let Some(bare) = &mut bare {
                bare.asks("EXECUTE bare;")?;
            }
            if ask {
                clients.iter_mut().try_for_each(|it| it.asks("SELECT 1;"))?;
            }
        }
        Ok(1000.0 * (run_seconds(of)? - before) / LOOKS as f64)
    };
    let (mut looks, mut bares) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        if !ask {
            warm_up(CALM)?;
        }
        for _ in 0..PARTS {
            looks.push(part(of_agent, None)?);
        }
        for _ in 0..PARTS {
            bares.push(part(of_bare, Some(&mut bare))?);
        }
    }
    let connections = ours("tickbird-agent")?.len();
    agent.stop()?;
    let ratio = median(&looks) / median(&bares);
    let mut figures = Vec::new();
    let who = format!("{sessions} {} sessions", if ask { "busy" } else { "idle" });
    let of = |what: &str, values| Figure::of_all(format!("{who}: {what}"), values, "ms");
    let look = of("a look, the server's CPU", looks);
    figures.push(if sessions == 100 { look.at_most(0.3) } else { look });
    figures.push(of("a bare SELECT * FROM pg_stat_activity", bares).for_comparison());
    figures.push(Figure::of(format!("{who}: look to bare view"), ratio, ""));
    figures.push(Figure::of("connections of the agent", connections as f64, "").at_most(1.0));
    Ok(figures)
}

/// A real client that has asked once and stays.
struct Client(Child);

impl Client {
    fn start(server: &Postgres, (role, database): (&str, &str), statement: &str) -> Result<Self, StageError> {
        let mut client = Command::new("/usr/bin/psql");
        client.args(["-XAtq", "-h", "127.0.0.1", "-p", &server.port().to_string()]);
        client.args(["-U", role, "-d", database, "-c", statement, "-f", "-"]);
        client.env("PGPASSWORD", password(role)).stdin(Stdio::piped()).stdout(Stdio::null());
        client.spawn().map(Self).map_err(StageError::system("start psql"))
    }

    fn asks(&mut self, statement: &str) -> Result<(), StageError> {
        let input = self.0.stdin.as_mut().expect("it is piped");
        writeln!(input, "{statement}").map_err(StageError::system("ask psql"))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The end of its input ends it.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// As long as an ORM's statements are.
const STATEMENT: &str = "SELECT relname, relkind, relpages, reltuples, relallvisible, relhasindex, relisshared, \
                         relpersistence FROM pg_catalog.pg_class WHERE relname = 'pg_class' ORDER BY relname LIMIT 10";
const BARE: &str = "PREPARE bare AS SELECT * FROM pg_stat_activity";
