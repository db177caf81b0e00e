//! The shipped agent: enrolled, run, asked, stopped, killed; also as another user with chosen capabilities.

use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::collector::Collector;
use crate::network::Far;
use crate::process::{Running, installed, output, run};
use crate::stage::{Stage, StageError};
use crate::wait::{Seconds, throughout, until};

/// Whom an agent runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// The user of the scenario: root.
    Same,
    /// User and group 65534 with these capabilities and no others: `["sys_ptrace"]`.
    Nobody(&'static [&'static str]),
    /// Root in a PID namespace of its own, as in a sidecar container: it shares the network and sees no other process.
    Sidecar,
    /// User 65534 without capabilities in a mount namespace of its own, as in a container of a pod that shares processes
    /// and network.
    Sharing,
    /// Root in a network namespace of its own: it sees the processes, and shares no address with them.
    OtherNetwork,
    /// The same as user 65534 without capabilities.
    OtherNetworkNobody,
    /// Root in a network and a PID namespace of its own: a container that shares nothing.
    Alone,
}

impl User {
    const fn is_nobody(self) -> bool {
        matches!(self, Self::Nobody(_) | Self::Sharing | Self::OtherNetworkNobody)
    }
}

const NOBODY: u32 = 65534;

/// An agent with a configuration and a state directory of its own.
#[derive(Debug)]
pub struct Agent {
    binary: PathBuf,
    room: PathBuf,
    user: User,
    process: Option<Running>,
    /// The words that bring it onto the host that it runs on, if that is not the stage's.
    host: Option<Vec<String>>,
    is_traced: bool,
    is_optimised: bool,
    environment: Vec<(&'static str, String)>,
}

impl Agent {
    /// One that asks these pages each second and holds nothing back, enrolled and running.
    pub fn asking(stage: &Stage, collector: &Collector, urls: &[&str]) -> Result<Self, StageError> {
        let section = |url: &&str| format!("[[endpoint]]\nurl = \"{url}\"\ninterval = \"1s\"\n");
        let settings: String = urls.iter().map(section).collect();
        let mut agent = Self::prepare(stage, &(settings + &check("http.status", "hold = \"0s\"")), User::Same)?;
        agent.enrol(collector)?;
        agent.run()?;
        Ok(agent)
    }

    /// An agent with this configuration (`state_dir` is added), that neither is enrolled nor runs.
    pub fn prepare(stage: &Stage, configuration: &str, user: User) -> Result<Self, StageError> {
        let (binary, room) = (stage.binary("tickbird-agent")?, stage.room("agent")?);
        // One that is not optimised takes many times the CPU time; the shipped budget is for the shipped binary.
        let is_optimised = !binary.parent().is_some_and(|it| it.ends_with("debug"));
        let (is_traced, environment) = (false, Vec::new());
        let mut it = Self { binary, room, user, process: None, host: None, is_traced, is_optimised, environment };
        std::fs::create_dir(it.state()).map_err(StageError::system("make the agent's state directory"))?;
        if user.is_nobody() {
            // The workspace may be in a home that others may not enter.
            let copy = it.room.join("tickbird-agent");
            std::fs::copy(&it.binary, &copy).map_err(StageError::system("copy the agent's binary"))?;
            it.binary = copy;
            for path in [&it.room, &it.state()] {
                chown(path, Some(NOBODY), Some(NOBODY)).map_err(StageError::system("give the agent its directory"))?;
            }
        }
        it.configure(configuration)?;
        Ok(it)
    }

    /// Gives it a variable of the environment from now on.
    pub fn knows(&mut self, variable: &'static str, value: String) {
        self.environment.push((variable, value));
    }

    /// An agent that is enrolled with `collector` and runs.
    pub fn running(stage: &Stage, collector: &Collector, configuration: &str) -> Result<Self, StageError> {
        let mut it = Self::prepare(stage, configuration, User::Same)?;
        it.enrol(collector)?;
        it.run()?;
        Ok(it)
    }

    /// Replaces its configuration; `state_dir` is added, and room in its budget where it is not optimised.
    pub fn configure(&self, configuration: &str) -> Result<(), StageError> {
        let mut text = format!("state_dir = \"{}\"\n{configuration}", self.state().display());
        if !self.is_optimised && !text.contains("[budget]") {
            text += "[budget]\ncpu = \"100%\"\nmemory = \"256MiB\"\n";
        }
        std::fs::write(self.configuration(), text).map_err(StageError::system("write the agent's configuration"))
    }

    /// Path of its configuration.
    pub fn configuration(&self) -> PathBuf {
        self.room.join("agent.toml")
    }

    /// Path of the binary.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    fn state(&self) -> PathBuf {
        self.room.join("state")
    }

    /// Enrols with the collector's first token.
    pub fn enrol(&self, collector: &Collector) -> Result<(), StageError> {
        self.enrol_with(collector, collector.enrolment_token())
    }

    /// Enrols with a token of the collector.
    pub fn enrol_with(&self, collector: &Collector, token: &str) -> Result<(), StageError> {
        let file = self.room.join("token");
        let failed = || StageError::system("write the enrolment token");
        std::fs::write(&file, token).map_err(failed())?;
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).map_err(failed())?;
        if self.user.is_nobody() {
            chown(&file, Some(NOBODY), Some(NOBODY)).map_err(failed())?;
        }
        let mut command = self.command("enroll");
        command.arg("--token-file").arg(&file).args(["--collector", &format!("https://{}", collector.people())]);
        run(&mut command).map(drop)
    }

    /// Runs, and waits until it answers for itself.
    pub fn run(&mut self) -> Result<(), StageError> {
        let mut command = self.command("run");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = Running::start("tickbird-agent", &mut command, &self.room.join("log"))?;
        until("the agent answers `status`", 30.s(), || {
            process.alive()?;
            self.status().map(drop).map_err(|error| error.to_string())
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// `tickbird-agent status --json` of the running agent.
    pub fn status(&self) -> Result<Value, StageError> {
        self.report("status", &[])
    }

    /// One of the commands that print a report with `--json`, and exit with 0 to 3 by what they found.
    pub fn report(&self, name: &str, arguments: &[&str]) -> Result<Value, StageError> {
        let output = self.ask(name, &[&["--json"], arguments].concat())?;
        let said = || [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
        if !matches!(output.status.code(), Some(0..=3)) {
            return Err(StageError::Failed { what: format!("tickbird-agent {name}"), said: said() });
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|_| StageError::Malformed { what: format!("tickbird-agent {name} --json"), found: said() })
    }

    /// Runs one of its commands to the end, with its configuration and as its user.
    pub fn ask(&self, name: &str, arguments: &[&str]) -> Result<Output, StageError> {
        output(self.command(name).args(arguments))
    }

    /// Counts its system calls `setns` in `inspect` and `run` from now on.
    pub fn traced(mut self) -> Result<Self, StageError> {
        installed("/usr/bin/strace", "strace")?;
        self.is_traced = true;
        Ok(self)
    }

    /// Runs on another host; it is enrolled and asked from here.
    pub fn on(mut self, host: &Far) -> Self {
        self.host = Some(host.enter());
        self
    }

    /// How often it has called `setns` since, in all of its threads, with what it answered.
    pub fn namespaces_entered(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.trace()).unwrap_or_default();
        text.lines().filter(|it| it.contains("setns(")).map(str::to_owned).collect()
    }

    fn trace(&self) -> PathBuf {
        self.room.join("setns")
    }

    /// nsenter, setpriv, unshare without a fork, and strace with its tracer aside replace themselves with the agent, so the
    /// child's pid is the agent's.
    fn command(&self, name: &str) -> Command {
        let mut words: Vec<OsString> = Vec::new();
        let mut add = |all: &[&str]| words.extend(all.iter().map(OsString::from));
        let forking = ["--fork", "--kill-child", "--mount-proc"];
        if let Some(enter) = self.host.as_ref().filter(|_| name == "run") {
            add(&enter.iter().map(String::as_str).collect::<Vec<_>>());
        }
        match self.user {
            User::Same | User::Nobody(_) => (),
            User::Sidecar => add(&[&["/usr/bin/unshare", "--pid"][..], &forking].concat()),
            User::Sharing => add(&["/usr/bin/unshare", "--mount"]),
            User::OtherNetwork | User::OtherNetworkNobody => add(&["/usr/bin/unshare", "--net"]),
            User::Alone => add(&[&["/usr/bin/unshare", "--net", "--pid"][..], &forking].concat()),
        }
        if self.user.is_nobody() {
            let capabilities = if let User::Nobody(it) = self.user { it } else { &[] };
            let set = capabilities.iter().map(|it| format!(",+{it}")).collect::<String>();
            let (user, group) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
            let (inherited, ambient) = (format!("--inh-caps=-all{set}"), format!("--ambient-caps=-all{set}"));
            add(&["/usr/bin/setpriv", &user, &group, "--clear-groups", &inherited, &ambient]);
        }
        if self.is_traced && matches!(name, "run" | "inspect") {
            add(&["/usr/bin/strace", "-D", "-f", "-qq", "-A", "-e", "trace=setns", "-o"]);
            words.push(self.trace().into());
        }
        words.push(self.binary.clone().into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(name.split(' ')).arg("--config").arg(self.configuration());
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command
    }

    /// Asks it to read its configuration again (`SIGHUP`).
    pub fn reload(&self) -> Result<(), StageError> {
        let process = self.process.as_ref().ok_or_else(Self::does_not_run)?;
        process.signal(Signal::HUP);
        until("the agent has reloaded", 20.s(), || {
            if self.log().contains("configuration reloaded") { Ok(()) } else { Err("not yet".to_owned()) }
        })
    }

    /// Stops it for so long, as a starved host would (`SIGSTOP`, `SIGCONT`).
    pub fn held_up(&self, time: std::time::Duration) -> Result<(), StageError> {
        let process = self.process.as_ref().ok_or_else(Self::does_not_run)?;
        process.signal(Signal::STOP);
        let waited = throughout("it is held up", time, || Ok(()));
        process.signal(Signal::CONT);
        waited
    }

    /// Sends it a signal; nothing happens when it does not run.
    pub fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// Asks it to end (`SIGTERM`): it says goodbye.
    pub fn stop(&mut self) -> Result<ExitStatus, StageError> {
        self.process.take().map_or_else(|| Err(Self::does_not_run()), |mut it| it.stop())
    }

    /// Kills it (`SIGKILL`).
    pub fn kill(&mut self) -> Result<ExitStatus, StageError> {
        self.process.take().map_or_else(|| Err(Self::does_not_run()), |mut it| it.kill())
    }

    fn does_not_run() -> StageError {
        StageError::Failed { what: "the agent".into(), said: "it does not run".into() }
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Running::pid)
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.room.join("log")).unwrap_or_default()
    }

    /// A file of its identity: `agent.pem`, `agent.key`, `ca.pem`.
    pub fn identity(&self, file: &str) -> PathBuf {
        self.state().join("identity").join(file)
    }

    /// Where its buffer and its identity are.
    pub fn state_directory(&self) -> PathBuf {
        self.state()
    }
}

/// A `[[app]]` section for the processes whose command line contains `command`.
pub fn app(name: &str, command: &str) -> String {
    format!("[[app]]\nname = \"{name}\"\ncommand = \"{command}\"\n")
}

/// A `[[postgres]]` section.
pub fn postgres(dsn_file: &Path) -> String {
    format!("[[postgres]]\ndsn_file = \"{}\"\n", dsn_file.display())
}

/// A `[check."…"]` section.
pub fn check(id: &str, settings: &str) -> String {
    format!("[check.\"{id}\"]\n{settings}\n")
}
