//! Small real applications of `tests/applications`, told over their standard input what to do.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;

use serde_json::Value;

use crate::library::{Library, Sizes};
use crate::network::Far;
use crate::postgres::{Postgres, Route};
use crate::process::{Running, installed};
use crate::stage::{Stage, StageError, workspace};
use crate::wait::Seconds;

mod elsewhere;
mod failing;

pub use elsewhere::{Cgroup, Network};
pub use failing::Failing;

/// A running application.
#[derive(Debug)]
pub struct Application {
    name: String,
    process: Running,
    answers: Receiver<String>,
    port: Option<u16>,
    kind: Kind,
}

#[derive(Debug, Clone)]
struct Kind {
    /// The interpreter and its own arguments, or the program itself.
    program: Vec<PathBuf>,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
    log: PathBuf,
}

impl Kind {
    fn web(stage: &Stage, name: &str, arguments: Vec<String>) -> Result<Self, StageError> {
        let log = stage.room(name)?.join("log");
        Ok(Self { program: python("web.py")?, arguments, environment: Vec::new(), log })
    }
}

/// A connection that an application keeps, as the application itself sees it: the truth of a finding's evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    /// Process id.
    pub pid: u32,
    /// Descriptor of the connection.
    pub fd: u32,
    /// Backend's process id at the server.
    pub backend: i32,
    /// Local port of the connection.
    pub port: u16,
}

impl Application {
    /// SQLAlchemy with a pool of 20 on `server`, all opened, and 10 more under load; `name` stands in its command line.
    pub fn pooled(stage: &Stage, name: &str, server: &Postgres) -> Result<Self, StageError> {
        for module in ["sqlalchemy", "psycopg2"] {
            let package = if module == "sqlalchemy" { "python3-sqlalchemy" } else { "python3-psycopg2" };
            installed(&format!("/usr/lib/python3/dist-packages/{module}"), package)?;
        }
        let dsn = format!("{}?pool_size=20&max_overflow=10&application_name={name}", server.dsn("app"));
        let kind = Kind {
            program: python("pooled.py")?,
            arguments: vec!["--name".into(), name.into()],
            environment: vec![("DATABASE_URL", dsn)],
            log: stage.room(name)?.join("log"),
        };
        Self::start(name, kind)
    }

    /// An application with this library's own pool on `server`, which writes the truth to [`Application::truth`].
    pub fn of_library(
        stage: &Stage,
        name: &str,
        library: Library,
        server: &Postgres,
        sizes: Sizes,
    ) -> Result<Self, StageError> {
        Self::through(stage, name, library, server.environment("app", Route::V4), sizes)
    }

    /// The same, and it finds its server by these variables.
    pub fn through(
        stage: &Stage,
        name: &str,
        library: Library,
        server: Vec<(&'static str, String)>,
        sizes: Sizes,
    ) -> Result<Self, StageError> {
        Self::placed(stage, name, library, server, sizes, Vec::new())
    }

    /// The same on another host. With [`Far::begin_apart`] its process id is that of somebody who waits for it.
    pub fn through_on(
        far: &Far,
        stage: &Stage,
        name: &str,
        library: Library,
        server: Vec<(&'static str, String)>,
        sizes: Sizes,
    ) -> Result<Self, StageError> {
        Self::placed(stage, name, library, server, sizes, far.enter())
    }

    fn placed(
        stage: &Stage,
        name: &str,
        library: Library,
        server: Vec<(&'static str, String)>,
        sizes: Sizes,
        leading: Vec<String>,
    ) -> Result<Self, StageError> {
        let room = stage.room(name)?;
        let program = leading.into_iter().map(PathBuf::from).chain(library.program(&room)?).collect();
        let truth = room.join("truth");
        let mut arguments: Vec<String> = ["--name", name, "--truth"].map(str::to_owned).into();
        arguments.push(truth.display().to_string());
        for (key, value) in [("--size", sizes.most), ("--least", sizes.least)] {
            arguments.extend([key.to_owned(), value.to_string()]);
        }
        arguments.extend(library.module().into_iter().flat_map(|it| ["--library".to_owned(), it.to_owned()]));
        let mut environment = server;
        environment.push(("PGAPPNAME", name.to_owned()));
        environment.extend(library.environment());
        Self::start(name, Kind { program, arguments, environment, log: room.join("log") })
    }

    /// The file that it writes the truth to.
    ///
    /// # Panics
    /// When it is none of [`Application::of_library`].
    pub fn truth(&self) -> &Path {
        self.argument("--truth")
    }

    /// The file that it was told after this word.
    fn argument(&self, word: &str) -> &Path {
        let at = self.kind.arguments.iter().position(|it| it == word).expect("it was started with such a file");
        Path::new(&self.kind.arguments[at + 1])
    }

    /// The file that its standard error goes to.
    pub fn log(&self) -> &Path {
        &self.kind.log
    }

    /// A worker that shows its secrets in its command line and its environment, as well as in all it does.
    pub fn indiscreet(
        stage: &Stage,
        name: &str,
        words: &[&str],
        environment: Vec<(&'static str, String)>,
    ) -> Result<Self, StageError> {
        installed("/usr/lib/python3/dist-packages/psycopg2", "python3-psycopg2")?;
        let arguments = ["--name", name].iter().chain(words).map(|it| (*it).to_owned()).collect();
        let log = stage.room(name)?.join("log");
        Self::start(name, Kind { program: python("indiscreet.py")?, arguments, environment, log })
    }

    /// A worker whose transactions wait for one another, fail, or are on a server that was superseded.
    pub fn transacting(stage: &Stage, name: &str, server: Vec<(&'static str, String)>) -> Result<Self, StageError> {
        installed("/usr/lib/python3/dist-packages/sqlalchemy", "python3-sqlalchemy")?;
        installed("/usr/lib/python3/dist-packages/psycopg2", "python3-psycopg2")?;
        let (arguments, log) = (vec!["--name".into(), name.into()], stage.room(name)?.join("log"));
        let mut environment = server;
        environment.push(("PGAPPNAME", name.to_owned()));
        Self::start(name, Kind { program: python("transactions.py")?, arguments, environment, log })
    }

    /// A web server whose requests need a connection of a pool of `size` on `server`, and wait for one. Without a size it
    /// has five, and nothing outside its code tells so.
    pub fn waiting(stage: &Stage, name: &str, server: &Postgres, size: Option<u32>) -> Result<Self, StageError> {
        installed("/usr/lib/python3/dist-packages/sqlalchemy", "python3-sqlalchemy")?;
        installed("/usr/lib/python3/dist-packages/psycopg2", "python3-psycopg2")?;
        let sizes = size.map(|it| format!("&pool_size={it}&max_overflow=0")).unwrap_or_default();
        let dsn = format!("{}?application_name={name}{sizes}", server.dsn("app"));
        let kind = Kind {
            program: python("waiting.py")?,
            arguments: vec!["--name".into(), name.into()],
            environment: vec![("DATABASE_URL", dsn)],
            log: stage.room(name)?.join("log"),
        };
        Self::start(name, kind)
    }

    /// A web server on a free port of 127.0.0.1 (`port` 0) or on a port it shares with its predecessor.
    pub fn web(stage: &Stage, name: &str, port: u16) -> Result<Self, StageError> {
        let arguments = vec!["--name".into(), name.into(), "--port".into(), port.to_string()];
        Self::start(name, Kind::web(stage, name, arguments)?)
    }

    /// The same on a free port, each of whose pages asks a server over a pool of SQLAlchemy.
    pub fn web_of(stage: &Stage, name: &str, server: &Postgres) -> Result<Self, StageError> {
        installed("/usr/lib/python3/dist-packages/sqlalchemy", "python3-sqlalchemy")?;
        installed("/usr/lib/python3/dist-packages/psycopg2", "python3-psycopg2")?;
        let arguments = ["--name", name, "--port", "0", "--database"].map(str::to_owned).into();
        let environment = server.environment("app", Route::V4);
        Self::start(name, Kind { environment, ..Kind::web(stage, name, arguments)? })
    }

    /// The same, that takes so many seconds from its start to the moment when it listens.
    pub fn slow_web(stage: &Stage, name: &str, seconds: u64) -> Result<Self, StageError> {
        let mut arguments: Vec<String> = ["--name", name, "--port", "0", "--imports"].map(str::to_owned).into();
        arguments.push(seconds.to_string());
        Self::start(name, Kind::web(stage, name, arguments)?)
    }

    /// The same over TLS.
    pub fn web_tls(
        stage: &Stage,
        name: &str,
        certificate: &crate::certificate::Certificate,
    ) -> Result<Self, StageError> {
        let files = [&certificate.chain, &certificate.key].map(|it| it.display().to_string());
        let arguments = ["--name", name, "--tls"].map(str::to_owned).into_iter().chain(files).collect();
        Self::start(name, Kind::web(stage, name, arguments)?)
    }

    /// A process that holds `connections` connections to itself on `port`; it also prices a bare dump of sockets.
    pub fn sockets(stage: &Stage, port: u16, connections: u32) -> Result<Self, StageError> {
        let arguments = vec![port.to_string(), connections.to_string()];
        let log = stage.room("sockets")?.join("log");
        Self::start("sockets", Kind { program: python("sockets.py")?, arguments, environment: Vec::new(), log })
    }

    /// A second one like this, on the same port if it has one: the successor in a rolling restart. It writes a truth of
    /// its own.
    pub fn successor(&self) -> Result<Self, StageError> {
        let mut kind = self.kind.clone();
        if let Some(at) = kind.arguments.iter().position(|it| it == "--truth") {
            kind.arguments[at + 1] += "-of-successor";
        }
        if let (Some(port), Some(at)) = (self.port, kind.arguments.iter().position(|it| it == "--port")) {
            kind.arguments[at + 1] = port.to_string();
        }
        Self::start(&self.name, kind)
    }

    fn start(name: &str, kind: Kind) -> Result<Self, StageError> {
        let (program, leading) = kind.program.split_first().expect("every kind has a program");
        let mut command = Command::new(program);
        command.args(leading).args(&kind.arguments);
        command.envs(kind.environment.iter().map(|(key, value)| (key, value)));
        // Compiled scripts would be written beside the sources.
        command.env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Running::start(name, &mut command, &kind.log)?;
        let answers = lines(process.child().stdout.take().expect("standard output is a pipe"));
        let mut it = Self { name: name.to_owned(), process, answers, port: None, kind };
        let ready = it.answer("start")?;
        it.port = ready["port"].as_u64().and_then(|port| u16::try_from(port).ok());
        Ok(it)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The name that stands in its command line.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The page that a web server serves.
    pub fn url(&self) -> String {
        let scheme = if self.kind.arguments.iter().any(|it| it == "--tls") { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}/health", self.port())
    }

    /// The address of one of its pages.
    pub fn page(&self, name: &str) -> String {
        self.url().replace("/health", &format!("/{name}"))
    }

    /// The port that it listens on.
    ///
    /// # Panics
    /// When it is no web server.
    pub fn port(&self) -> u16 {
        self.port.expect("only a web server is asked for its port")
    }

    /// What tells its processes from all others: a part of its command line, for `[[app]] command`.
    pub fn command(&self) -> String {
        format!("--name {}", self.name)
    }

    /// Gives one command and waits for its answer.
    ///
    /// # Errors
    /// When the application refuses, has ended, or does not answer within 30 s.
    pub fn does(&mut self, command: &str) -> Result<Value, StageError> {
        let what = format!("tell {} to {command}", self.name);
        let pipe = self.process.child().stdin.as_mut().expect("standard input is a pipe");
        writeln!(pipe, "{command}").map_err(StageError::system(what))?;
        let mut answer = self.answer(command)?;
        Ok(answer["did"].take())
    }

    /// Keeps `count` sessions idle in transaction, one after another.
    pub fn leaks(&mut self, count: usize) -> Result<Vec<Held>, StageError> {
        self.keeps("leak", count)
    }

    /// Keeps `count` sessions in an aborted transaction.
    pub fn aborts(&mut self, count: usize) -> Result<Vec<Held>, StageError> {
        self.keeps("abort", count)
    }

    /// Keeps `count` connections leased and idle, outside a transaction.
    pub fn holds(&mut self, count: usize) -> Result<Vec<Held>, StageError> {
        self.keeps("hold", count)
    }

    fn keeps(&mut self, verb: &str, count: usize) -> Result<Vec<Held>, StageError> {
        let rows = self.does(&format!("{verb} {count}"))?;
        let rows = rows.as_array().map(Vec::as_slice).unwrap_or_default();
        rows.iter().map(|row| held(row).ok_or_else(|| malformed(&self.name, row.to_string()))).collect()
    }

    /// Closes everything that is kept.
    pub fn repairs(&mut self) -> Result<(), StageError> {
        self.does("repair").map(drop)
    }

    /// Requests that were served and that failed, so far.
    pub fn served(&mut self) -> Result<(u64, u64), StageError> {
        let counts = self.does("served")?;
        let count = |key: &str| counts[key].as_u64().ok_or_else(|| malformed(&self.name, counts.to_string()));
        Ok((count("served")?, count("failed")?))
    }

    /// Asks it to end, and waits.
    pub fn stop(&mut self) -> Result<ExitStatus, StageError> {
        self.process.stop()
    }

    /// Kills it (`SIGKILL`), and does not wait: until [`Self::kill`] it stays as a zombie, whose end can be read.
    pub fn dies(&self) {
        self.process.signal(rustix::process::Signal::KILL);
    }

    /// Kills it, and waits.
    pub fn kill(&mut self) -> Result<ExitStatus, StageError> {
        self.process.kill()
    }

    fn answer(&self, what: &str) -> Result<Value, StageError> {
        let failed = |said: String| StageError::Failed { what: format!("{}: {what}", self.name), said };
        let line = self.answers.recv_timeout(30.s()).map_err(|error| match error {
            RecvTimeoutError::Timeout => failed("no answer within 30 s".into()),
            RecvTimeoutError::Disconnected => failed(self.process.last_words()),
        })?;
        let answer: Value = serde_json::from_str(&line).map_err(|_| malformed(&self.name, line))?;
        match answer["failed"].as_str() {
            Some(said) => Err(failed(said.to_owned())),
            None => Ok(answer),
        }
    }
}

/// The interpreter and one of its scripts.
fn python(script: &str) -> Result<Vec<PathBuf>, StageError> {
    Ok(vec![installed("/usr/bin/python3", "python3")?, workspace().join("tests/applications").join(script)])
}

/// Rows of an answer. Each number has its bound; a negative pid is as wrong as a missing one.
fn held(row: &Value) -> Option<Held> {
    let number = |key: &str| row[key].as_u64();
    Some(Held {
        pid: number("pid")?.try_into().ok()?,
        fd: number("fd")?.try_into().ok()?,
        backend: number("backend")?.try_into().ok()?,
        port: number("port")?.try_into().ok()?,
    })
}

fn malformed(name: &str, found: String) -> StageError {
    StageError::Malformed { what: format!("the answer of {name}"), found }
}

/// Lines of a pipe, readable with a deadline. The thread ends with the pipe.
fn lines(pipe: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}
