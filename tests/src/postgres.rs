//! A private PostgreSQL 15: its own cluster, port and socket, with nothing of the distribution's cluster.

use std::fmt::Write as _;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::certificate::Certificate;
use crate::network::Far;
use crate::process::{Running, installed, run};
use crate::stage::{Stage, StageError};
use crate::wait::{Seconds, until};

const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
const PACKAGE: &str = "postgresql-15";

/// The application's role and database, made at start.
pub const APPLICATION: (&str, &str) = ("app", "app");
/// Between the statements of the superuser's client; no value that is asked for contains it.
const COLUMN: &str = "\u{1f}";

/// How a client reaches the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// TCP over v4; with TLS where the server has a certificate.
    V4,
    /// TCP over v6.
    V6,
    /// A v6 socket to the v4 address in v6 form.
    Mapped,
    /// The server's unix socket.
    Unix,
    /// TCP over v4 with TLS.
    Tls,
}

/// A running server. Dropped, it is stopped at once, by its own process id.
#[derive(Debug)]
pub struct Postgres {
    room: PathBuf,
    host: String,
    port: u16,
    max_connections: u16,
    encrypts: bool,
    process: Option<Running>,
}

impl Postgres {
    /// Makes a cluster with passwords over TCP, two roles (`app`, owner of database `app`, and `tickbird`, member of
    /// `pg_monitor`), and starts it on a free port of 127.0.0.1. It takes some two seconds.
    ///
    /// # Errors
    /// When PostgreSQL 15 is not installed, or will not start: then with the end of its log.
    pub fn start(stage: &Stage, max_connections: u16) -> Result<Self, StageError> {
        Self::make(stage, max_connections, ("127.0.0.1", free_port()?), None, None)
    }

    /// The same on a port that is known to be free.
    pub fn start_on(stage: &Stage, max_connections: u16, port: u16) -> Result<Self, StageError> {
        Self::make(stage, max_connections, ("127.0.0.1", port), None, None)
    }

    /// The same on this address of the stage, too, by which its clients and those of the network behind it come.
    pub fn start_at(stage: &Stage, max_connections: u16, host: &str) -> Result<Self, StageError> {
        Self::make(stage, max_connections, (host, free_port()?), None, None)
    }

    /// The same on another host.
    pub fn start_far(stage: &Stage, max_connections: u16, far: &Far) -> Result<Self, StageError> {
        Self::make(stage, max_connections, (&far.address(), free_port()?), None, Some(far))
    }

    /// The same with TLS, which its applications then require.
    pub fn start_tls(stage: &Stage, max_connections: u16, certificate: &Certificate) -> Result<Self, StageError> {
        Self::make(stage, max_connections, ("127.0.0.1", free_port()?), Some(certificate), None)
    }

    fn make(
        stage: &Stage,
        max_connections: u16,
        (host, port): (&str, u16),
        certificate: Option<&Certificate>,
        far: Option<&Far>,
    ) -> Result<Self, StageError> {
        let initdb = installed(&format!("{PROGRAMS}/initdb"), PACKAGE)?;
        let room = stage.room("postgres")?;
        let owner = Owner::of_servers()?;
        owner.give(&room)?;
        let password_file = room.join("superuser");
        std::fs::write(&password_file, password("postgres")).map_err(StageError::system("write a password file"))?;
        owner.give(&password_file)?;
        let mut initdb = owner.command(&initdb);
        initdb.args(["--username=postgres", "--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8"]);
        initdb.args(["--locale=C", "--no-sync", "--no-instructions", "--pgdata"]).arg(room.join("data"));
        run(initdb.arg("--pwfile").arg(&password_file))?;
        let rules = room.join("data/pg_hba.conf");
        let mut text = std::fs::read_to_string(&rules).map_err(StageError::system("read pg_hba.conf"))?;
        text += "host all all all scram-sha-256\n";
        std::fs::write(&rules, text).map_err(StageError::system("write pg_hba.conf"))?;
        if let Some(it) = certificate {
            for (from, to) in [(&it.chain, "server.crt"), (&it.key, "server.key")] {
                let to = room.join("data").join(to);
                std::fs::copy(from, &to).map_err(StageError::system("give the server its certificate"))?;
                owner.give(&to)?;
            }
        }
        let encrypts = certificate.is_some();
        let mut server = Self { room, host: host.to_owned(), port, max_connections, encrypts, process: None };
        let command = server.command()?;
        server.serve_by(match far {
            Some(far) => far.command(&command),
            None => command,
        })?;
        for role in [APPLICATION.0, "tickbird"] {
            server.sql(&format!("CREATE ROLE {role} LOGIN PASSWORD '{}'", password(role)))?;
        }
        server.sql("GRANT pg_monitor TO tickbird")?;
        server.sql(&format!("CREATE DATABASE {} OWNER {}", APPLICATION.1, APPLICATION.0))?;
        Ok(server)
    }

    /// Starts the server of this cluster, after [`Postgres::stop`].
    pub fn serve(&mut self) -> Result<(), StageError> {
        let command = self.command()?;
        self.serve_by(command)
    }

    /// A server on a copy of this one's cluster, with the same roles, on a free port of 127.0.0.1.
    pub(crate) fn copy(&self, room: PathBuf) -> Result<Self, StageError> {
        let (host, port) = ("127.0.0.1".to_owned(), free_port()?);
        let mut it = Self { room, host, port, process: None, ..*self };
        it.serve()?;
        Ok(it)
    }

    /// Its directory, and the port there.
    pub(crate) fn room(&self) -> &Path {
        &self.room
    }

    fn command(&self) -> Result<Command, StageError> {
        let mut command = Owner::of_servers()?.command(Path::new(&format!("{PROGRAMS}/postgres")));
        command.arg("-D").arg(self.room.join("data")).args(["-p", &self.port.to_string()]);
        // Nothing here has to survive a power cut, and the scenario should not wait for the disk.
        let also = if self.host == "127.0.0.1" { String::new() } else { format!(",{}", self.host) };
        let listen = format!("listen_addresses=127.0.0.1,::1{also}");
        let mut settings = vec!["fsync=off".to_owned(), listen];
        settings.push(format!("max_connections={}", self.max_connections));
        settings.push(format!("unix_socket_directories={}", self.room.display()));
        settings.extend(self.encrypts.then(|| "ssl=on".to_owned()));
        command.args(settings.iter().flat_map(|it| ["-c", it]));
        Ok(command)
    }

    fn serve_by(&mut self, mut command: Command) -> Result<(), StageError> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = Running::start("postgres", &mut command, &self.room.join("log"))?;
        let room = &self.room;
        until("PostgreSQL answers", 30.s(), || {
            process.alive()?;
            let mut ready = Command::new(format!("{PROGRAMS}/pg_isready"));
            ready.args(["-q", "-U", "postgres", "-p", &self.port.to_string(), "-h"]).arg(room);
            run(&mut ready).map_err(|error| error.to_string())
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// It runs no more until [`Postgres::thaws`]: the kernel takes clients in until its queue is full.
    pub fn freeze(&self) {
        self.process.iter().for_each(|it| it.signal(Signal::STOP));
    }

    /// It runs again.
    pub fn thaws(&self) {
        self.process.iter().for_each(|it| it.signal(Signal::CONT));
    }

    /// Ends the server as an operator's restart does: sessions are cut, what was committed stays.
    pub fn stop(&mut self) -> Result<(), StageError> {
        self.thaws();
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::INT); // "fast": PostgreSQL's SIGTERM would wait for its clients
            process.ends(30.s())?;
        }
        Ok(())
    }

    /// Runs statements as superuser over the unix socket with the real client; rows of columns as text.
    pub fn sql(&self, statement: &str) -> Result<Vec<Vec<String>>, StageError> {
        self.sql_in("postgres", statement)
    }

    /// The same in another database than `postgres`.
    pub fn sql_in(&self, database: &str, statement: &str) -> Result<Vec<Vec<String>>, StageError> {
        let mut client = Command::new(installed("/usr/bin/psql", "postgresql-client-15")?);
        client.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-F", COLUMN, "-U", "postgres", "-d", database]);
        client.args(["-p", &self.port.to_string(), "-c", statement, "-h"]).arg(&self.room);
        let text = run(&mut client)?;
        Ok(text.lines().map(|line| line.split(COLUMN).map(str::to_owned).collect()).collect())
    }

    /// Ends the sessions of these backends from the server's side; the client is not asked.
    pub fn terminate(&self, backends: impl IntoIterator<Item = i32>) -> Result<(), StageError> {
        let mut statement = String::from("SELECT true");
        for backend in backends {
            let _ = write!(statement, ", pg_terminate_backend({backend}, 5000)");
        }
        self.sql(&statement).map(drop)
    }

    /// Its port on 127.0.0.1.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Makes a role that may connect, and see nothing of the sessions of others.
    pub fn strange_role(&self, role: &str) -> Result<(), StageError> {
        self.sql(&format!("CREATE ROLE {role} LOGIN PASSWORD '{}'", password(role))).map(drop)
    }

    /// DSN of a role in the application's database, password included.
    pub fn dsn(&self, role: &str) -> String {
        format!("postgresql://{role}:{}@{}:{}/{}", password(role), self.host, self.port, APPLICATION.1)
    }

    /// The same as libpq's environment variables, for a client that comes by this route.
    pub fn environment(&self, role: &str, route: Route) -> Vec<(&'static str, String)> {
        let host = match route {
            Route::V4 | Route::Tls => self.host.clone(),
            Route::V6 => "::1".to_owned(),
            Route::Mapped => "::ffff:127.0.0.1".to_owned(),
            Route::Unix => self.room.display().to_string(),
        };
        let encrypts = self.encrypts && matches!(route, Route::V4 | Route::Tls);
        vec![
            ("PGHOST", host),
            ("PGPORT", self.port.to_string()),
            ("PGUSER", role.to_owned()),
            ("PGPASSWORD", password(role)),
            ("PGDATABASE", APPLICATION.1.to_owned()),
            ("PGSSLMODE", if encrypts { "require" } else { "disable" }.to_owned()),
        ]
    }

    /// Writes the DSN of a role to a file that only its owner may read, for `dsn_file`.
    pub fn dsn_file(&self, role: &str) -> Result<PathBuf, StageError> {
        let path = self.room.join(format!("{role}.dsn"));
        std::fs::write(&path, self.dsn(role)).map_err(StageError::system("write a DSN file"))?;
        Ok(path)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.stop().is_err() {
            // The drop of `Running` kills it.
            self.process = None;
        }
    }
}

/// The password of a role: different for each, so that a leak says whose it was.
pub fn password(role: &str) -> String {
    format!("{role}-canary-4f1c")
}

/// A port of 127.0.0.1 that nothing listened on a moment ago.
pub fn free_port() -> Result<u16, StageError> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).map_err(StageError::system("bind a free port"))?;
    Ok(listener.local_addr().map_err(StageError::system("read the port"))?.port())
}

/// The user that servers run as: PostgreSQL refuses to be root.
#[derive(Debug)]
pub(crate) struct Owner {
    /// `None`: we are not root, so the server runs as we do.
    ids: Option<(u32, u32)>,
}

impl Owner {
    pub(crate) fn of_servers() -> Result<Self, StageError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self { ids: None });
        }
        let id = |flag: &str| -> Result<u32, StageError> {
            let text = run(Command::new("/usr/bin/id").args([flag, "postgres"]))
                .map_err(|_| StageError::Missing { what: "the user postgres".into(), package: PACKAGE })?;
            text.trim().parse().map_err(|_| StageError::Malformed { what: "id".into(), found: text })
        };
        Ok(Self { ids: Some((id("-u")?, id("-g")?)) })
    }

    /// As whom the servers run.
    pub(crate) fn user_and_group(&self) -> (u32, u32) {
        let ours = || (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        self.ids.unwrap_or_else(ours)
    }

    pub(crate) fn give(&self, path: &Path) -> Result<(), StageError> {
        let Some((user, group)) = self.ids else { return Ok(()) };
        chown(path, Some(user), Some(group)).map_err(StageError::system(format!("give {} away", path.display())))
    }

    /// setpriv replaces itself with the program, so the child's pid is the server's.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let Some((user, group)) = self.ids else { return Command::new(program) };
        let mut command = Command::new("/usr/bin/setpriv");
        command.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".into()]);
        command.arg(program).current_dir("/");
        command
    }
}
