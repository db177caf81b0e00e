//! What one look of the agent costs the watched PostgreSQL: the CPU of the agent's own backend, at 100 idle sessions.

use std::process::{Child, Command, Stdio};

use tickbird_tests::agent::{User, postgres};
use tickbird_tests::postgres::{APPLICATION, password};
use tickbird_tests::{Agent, Postgres, Seconds, Stage, StageError, until};

use crate::cost::{run_seconds, warm_up};
use crate::{Figure, median};

const SESSIONS: usize = 100;
/// Each of so many parts of a run is one value; the middle of them is the figure.
const PARTS: u64 = 5;
/// Looks in a part: one a second.
const LOOKS: u64 = 30;

pub(crate) fn look(stage: &Stage) -> Result<Vec<Figure>, StageError> {
    let server = Postgres::start(stage, 135)?;
    let _clients = (0..SESSIONS).map(|_| Client::start(&server)).collect::<Result<Vec<_>, _>>()?;
    let section = postgres(&server.dsn_file("tickbird")?) + "interval = \"1s\"\n";
    let mut agent = Agent::prepare(stage, &section, User::Same)?;
    agent.run()?;
    let backend = until("the agent and its server's clients are connected", 60.s(), || {
        let count = |name: &str| {
            let asked = format!("SELECT pid FROM pg_stat_activity WHERE application_name = '{name}'");
            server.sql(&asked).map_err(|error| error.to_string())
        };
        let (clients, ours) = (count("psql")?.len(), count("tickbird-agent")?);
        match (clients, &ours[..]) {
            // The one that asks is a psql too.
            (clients, [row]) if clients > SESSIONS => row[0].parse::<u32>().map_err(|error| error.to_string()),
            _ => Err(format!("{clients} clients, agent {ours:?}")),
        }
    })?;
    warm_up(5.s())?;
    let (mut looks, mut seconds) = (Vec::new(), Vec::new());
    for _ in 0..PARTS {
        let before = run_seconds(backend)?;
        warm_up(LOOKS.s())?;
        seconds.push(run_seconds(backend)? - before);
        looks.push(1000.0 * seconds[seconds.len() - 1] / LOOKS as f64);
    }
    let (least, most) = looks.iter().fold((f64::MAX, 0.0_f64), |(a, b), it| (a.min(*it), b.max(*it)));
    agent.stop()?;
    Ok(vec![
        Figure::of(format!("{SESSIONS} idle sessions: a look, the server's CPU"), median(looks), "ms"),
        Figure::of("the least of five", least, "ms"),
        Figure::of("the most of five", most, "ms"),
    ])
}

/// A real client that has asked once and stays.
struct Client(Child);

impl Client {
    fn start(server: &Postgres) -> Result<Self, StageError> {
        let mut client = Command::new("/usr/bin/psql");
        client.args(["-XAtq", "-h", "127.0.0.1", "-p", &server.port().to_string()]);
        client.args(["-U", APPLICATION.0, "-d", APPLICATION.1, "-c", STATEMENT, "-f", "-"]);
        client.env("PGPASSWORD", password(APPLICATION.0)).stdin(Stdio::piped()).stdout(Stdio::null());
        client.spawn().map(Self).map_err(StageError::system("start psql"))
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
