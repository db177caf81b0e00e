//! The shipped collector: made, served, asked, stopped, killed.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::https::{Answer, Client};
use crate::postgres::free_port;
use crate::process::{Running, installed, run};
use crate::stage::{Stage, StageError};
use crate::wait::{Seconds, until};
use crate::webhook::Webhook;

/// What a traced collector is asked for.
const TRACED: &str = "trace=pwrite64,fsync,fdatasync,read,recvfrom,write,writev,sendto,sendmsg";

/// A collector in a directory of its own.
#[derive(Debug)]
pub struct Collector {
    binary: PathBuf,
    directory: PathBuf,
    log: PathBuf,
    /// What the client trusts; read anew for each request, since the collector renews it.
    authority: PathBuf,
    admin_token: String,
    enrolment_token: String,
    agents: String,
    people: String,
    process: Option<Running>,
    trace: Option<PathBuf>,
    environment: Vec<(&'static str, String)>,
}

impl Collector {
    /// Runs `init` for 127.0.0.1 with two free ports. It does not serve yet.
    pub fn init(stage: &Stage) -> Result<Self, StageError> {
        Self::init_with(stage, &[])
    }

    /// The same with further arguments of `init`.
    pub fn init_with(stage: &Stage, arguments: &[&str]) -> Result<Self, StageError> {
        let room = stage.room("collector")?;
        let directory = room.join("collector");
        Self::init_at(stage, directory, room.join("log"), arguments)
    }

    /// The same in a directory that is given, with its log elsewhere.
    pub fn init_in(stage: &Stage, directory: PathBuf, log: PathBuf) -> Result<Self, StageError> {
        Self::init_at(stage, directory, log, &[])
    }

    fn init_at(stage: &Stage, directory: PathBuf, log: PathBuf, arguments: &[&str]) -> Result<Self, StageError> {
        let binary = stage.binary("tickbird-collector")?;
        // The ports stay the same over restarts, which port 0 would not promise.
        let (agents, people) = (free_port()?, free_port()?);
        let (agents, people) = (format!("127.0.0.1:{agents}"), format!("127.0.0.1:{people}"));
        let mut init = Command::new(&binary);
        init.args(["init", "--json", "--name", "127.0.0.1", "--dir"]).arg(&directory);
        init.args(["--listen-agents", &agents, "--listen-people", &people]);
        let text = run(init.args(arguments))?;
        let made: Value = serde_json::from_str(&text)
            .map_err(|_| StageError::Malformed { what: "the output of init --json".into(), found: text.clone() })?;
        let field = |key: &str| {
            made[key].as_str().map(str::to_owned).ok_or_else(|| StageError::Malformed {
                what: format!("`{key}` of init --json"),
                found: made[key].to_string(),
            })
        };
        Ok(Self {
            authority: field("ca")?.into(),
            admin_token: field("admin_token")?,
            enrolment_token: field("enrolment_token")?,
            agents,
            people,
            binary,
            directory,
            log,
            process: None,
            trace: None,
            environment: Vec::new(),
        })
    }

    /// `init` with one receiver, then `serve`.
    pub fn serving(stage: &Stage, webhook: &Webhook) -> Result<Self, StageError> {
        let mut it = Self::init(stage)?;
        it.configure(&receiver(webhook))?;
        it.serve()?;
        Ok(it)
    }

    /// Adds lines to its configuration.
    pub fn configure(&self, lines: &str) -> Result<(), StageError> {
        let path = self.directory.join("collector.toml");
        let failed = || StageError::system(format!("write {}", path.display()));
        let mut file = OpenOptions::new().append(true).open(&path).map_err(failed())?;
        file.write_all(lines.as_bytes()).map_err(failed())
    }

    /// Replaces a line of its configuration.
    pub fn rewrite(&self, line: &str, by: &str) -> Result<(), StageError> {
        let path = self.directory.join("collector.toml");
        let failed = || StageError::system(format!("rewrite {}", path.display()));
        let text = std::fs::read_to_string(&path).map_err(failed())?;
        if !text.contains(line) {
            return Err(StageError::Malformed { what: format!("`{line}` in collector.toml"), found: text });
        }
        std::fs::write(&path, text.replacen(line, by, 1)).map_err(failed())
    }

    /// Lets the client trust this authority from now on.
    pub fn trust(&mut self, authority: &Path) {
        self.authority = authority.to_owned();
    }

    /// Serves, and waits until it is ready.
    pub fn serve(&mut self) -> Result<(), StageError> {
        self.start()?;
        until("the collector is ready", 30.s(), || {
            let answer = self.get_as("/readyz", None).map_err(|error| error.to_string())?;
            if answer.status == 200 { Ok(()) } else { Err(format!("{}: {}", answer.status, answer.body)) }
        })
    }

    /// Writes the system calls of every life from now on to `trace`: what it receives, writes, syncs and sends.
    pub fn traced(&mut self, trace: PathBuf) -> Result<(), StageError> {
        installed("/usr/bin/strace", "strace")?;
        self.trace = Some(trace);
        Ok(())
    }

    /// Gives it a variable of the environment in every life from now on.
    pub fn knows(&mut self, variable: &'static str, value: String) {
        self.environment.push((variable, value));
    }

    /// Serves, and waits until it listens.
    pub fn start(&mut self) -> Result<(), StageError> {
        let mut command = match &self.trace {
            None => Command::new(&self.binary),
            Some(trace) => {
                let mut command = Command::new("/usr/bin/strace");
                // With its tracer aside strace replaces itself with the collector, so the child's pid is the collector's.
                command.args(["-D", "-f", "-qq", "-yy", "-s", "0", "-e", TRACED, "-o"]).arg(trace).arg(&self.binary);
                command
            }
        };
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command.args(["serve", "--dir"]).arg(&self.directory).stdin(Stdio::null()).stdout(Stdio::null());
        let addresses = self.directory.join("addresses.json");
        // One that was killed could not remove it.
        let _ = std::fs::remove_file(&addresses);
        let mut process = Running::start("tickbird-collector", &mut command, &self.log)?;
        self.people = until("the collector writes addresses.json", 30.s(), || {
            process.alive()?;
            let text = std::fs::read(&addresses).map_err(|error| error.to_string())?;
            let found: Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
            found["people"].as_str().map(str::to_owned).ok_or_else(|| found.to_string())
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Asks it to end (`SIGTERM`), and waits.
    pub fn stop(&mut self) -> Result<ExitStatus, StageError> {
        self.process.take().map_or_else(|| Err(self.does_not_run()), |mut it| it.stop())
    }

    /// Waits until it has ended by itself, or by a signal that it had before.
    pub fn ends(&mut self) -> Result<ExitStatus, StageError> {
        self.process.take().map_or_else(|| Err(self.does_not_run()), |mut it| it.ends(30.s()))
    }

    /// Kills it (`SIGKILL`), and waits.
    pub fn kill(&mut self) -> Result<ExitStatus, StageError> {
        self.process.take().map_or_else(|| Err(self.does_not_run()), |mut it| it.kill())
    }

    fn does_not_run(&self) -> StageError {
        StageError::Failed { what: "the collector".into(), said: "it does not run".into() }
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Running::pid)
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its directory (`--dir`).
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Address of the listener for agents: `127.0.0.1:41236`.
    pub fn agents(&self) -> &str {
        &self.agents
    }

    /// Sends it a signal; nothing happens when it does not run.
    pub fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// Lets it read its configuration again, and waits for its word: what it logs of that.
    pub fn reload(&self) -> Result<String, StageError> {
        let words = || {
            let said =
                |line: &&str| line.contains("the configuration was read again") || line.contains("stays as it was");
            self.log().lines().filter(said).map(str::to_owned).collect::<Vec<_>>()
        };
        let before = words().len();
        self.signal(Signal::HUP);
        until("it tells of its configuration", 60.s(), || words().get(before).cloned().ok_or_else(|| self.log()))
    }

    /// What it has counted under this name, over all labels: `tickbird_records_received`.
    pub fn counted(&self, name: &str) -> Result<u64, StageError> {
        let answer = self.get("/metrics")?;
        let total = format!("{name}_total");
        let lines = answer.body.lines().filter_map(|line| line.rsplit_once(' '));
        let found: Vec<f64> = lines
            .filter(|(key, _)| key.split('{').next() == Some(&total))
            .filter_map(|(_, value)| value.parse().ok())
            .collect();
        if found.is_empty() {
            return Err(StageError::Malformed { what: format!("{total} of /metrics"), found: answer.body });
        }
        Ok(found.iter().sum::<f64>() as u64)
    }

    /// Address of the listener for people: `127.0.0.1:41235`.
    pub fn people(&self) -> &str {
        &self.people
    }

    /// The first administrator token, as `init` printed it.
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    /// The first enrolment token, as `init` printed it.
    pub fn enrolment_token(&self) -> &str {
        &self.enrolment_token
    }

    /// Runs another of its commands: `["agent", "list"]`; `--dir` is added.
    pub fn command(&self, arguments: &[&str]) -> Result<String, StageError> {
        self.command_at(&self.directory, arguments)
    }

    /// The same for the collector of another directory.
    pub fn command_at(&self, directory: &Path, arguments: &[&str]) -> Result<String, StageError> {
        run(Command::new(&self.binary).args(arguments).arg("--dir").arg(directory))
    }

    /// `GET path` as the administrator; whatever the status is.
    pub fn get(&self, path: &str) -> Result<Answer, StageError> {
        self.get_as(path, Some(&self.admin_token))
    }

    /// `GET path` with another token, or none.
    pub fn get_as(&self, path: &str, token: Option<&str>) -> Result<Answer, StageError> {
        Client::trusting(&self.authority)?.get(&self.people, path, token)
    }

    /// All items of a collection (`incidents`, `findings`, `agents`), page by page. `query`: `status=firing`.
    pub fn items(&self, collection: &str, query: &str) -> Result<Vec<Value>, StageError> {
        let mut items = Vec::new();
        let mut cursor = String::new();
        loop {
            let path = format!("/v1/{collection}?limit=50&{query}{cursor}");
            let answer = self.get(&path)?;
            let page = answer.json()?;
            let Some(found) = page["items"].as_array().filter(|_| answer.status == 200) else {
                return Err(StageError::Failed { what: format!("GET {path}"), said: answer.body });
            };
            items.extend(found.iter().cloned());
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(items),
            }
        }
    }

    /// Waits until an incident is as wanted.
    pub fn has_incident(
        &self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, StageError> {
        until(format!("the collector has {what}"), within, || {
            let incidents = self.items("incidents", "").map_err(|error| error.to_string())?;
            incidents.iter().find(|it| wanted(it)).cloned().ok_or_else(|| titles(&incidents))
        })
    }
}

/// The section of the configuration that tells `webhook`, under the name `ops`.
pub fn receiver(webhook: &Webhook) -> String {
    format!(
        "\n[[receiver]]\nname = \"ops\"\nwebhook.url = \"{}\"\nwebhook.secret_file = \"{}\"\n",
        webhook.url(),
        webhook.secret_file().display()
    )
}

/// Incidents or findings in one line, for an error.
pub fn titles(items: &[Value]) -> String {
    let word = |it: &Value, key: &str| it[key].as_str().unwrap_or("?").to_owned();
    let title = |it: &Value| {
        format!("{} {} {}: {}", word(it, "status"), word(it, "check"), word(it, "target"), word(it, "summary"))
    };
    let titles: Vec<String> = items.iter().map(title).collect();
    format!("{} of them: {}", titles.len(), titles.join("; "))
}
