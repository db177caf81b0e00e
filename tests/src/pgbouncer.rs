//! A private PgBouncer before a private PostgreSQL.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::postgres::{APPLICATION, Owner, Postgres, Route, free_port, password};
use crate::process::{Running, installed};
use crate::stage::{Stage, StageError};
use crate::wait::{Seconds, until};

/// What the pooler's second name of the application's database ends in.
const ASIDE: &str = "_aside";

/// A running pooler. Dropped, it is asked to end.
#[derive(Debug)]
pub struct PgBouncer {
    room: PathBuf,
    address: String,
    port: u16,
    process: Running,
}

impl PgBouncer {
    /// Starts it on a free port of 127.0.0.1 and a unix socket; `tickbird` may look at its console.
    pub fn start(stage: &Stage, server: &Postgres) -> Result<Self, StageError> {
        Self::sized(stage, server, 60, "transaction")
    }

    /// The same on another address of this host.
    pub fn start_at(stage: &Stage, server: &Postgres, address: &str) -> Result<Self, StageError> {
        Self::of(stage, server, 60, "transaction", address)
    }

    /// The same with at most so many connections to the server, in this mode.
    pub fn sized(stage: &Stage, server: &Postgres, size: u16, mode: &str) -> Result<Self, StageError> {
        Self::of(stage, server, size, mode, "127.0.0.1")
    }

    fn of(stage: &Stage, server: &Postgres, size: u16, mode: &str, address: &str) -> Result<Self, StageError> {
        let program = installed("/usr/sbin/pgbouncer", "pgbouncer")?;
        let (room, port) = (stage.room("pgbouncer")?, free_port()?);
        let owner = Owner::of_servers()?;
        owner.give(&room)?;
        let (role, database) = APPLICATION;
        let users = [role, "tickbird"].map(|it| format!("\"{it}\" \"{}\"\n", password(it))).concat();
        let configuration = format!(
            "[databases]\n{database} = host=127.0.0.1 port={0} dbname={database}\n{database}{ASIDE} = host=127.0.0.1 \
             port={0} dbname={database}\n[pgbouncer]\nlisten_addr = {address}\n\
             listen_port = {port}\nunix_socket_dir = {room}\nauth_type = scram-sha-256\nauth_file = {room}/users\n\
             stats_users = tickbird\npool_mode = {mode}\ndefault_pool_size = {size}\nmax_client_conn = 200\n",
            server.port(),
            room = room.display(),
        );
        for (name, text) in [("users", &users), ("pgbouncer.ini", &configuration)] {
            let path = room.join(name);
            std::fs::write(&path, text).map_err(StageError::system(format!("write {name}")))?;
            owner.give(&path)?;
        }
        let mut command = owner.command(&program);
        command.arg("--quiet").arg(room.join("pgbouncer.ini")).stdin(Stdio::null());
        let mut process = Running::start("pgbouncer", &mut command, &room.join("log"))?;
        until("PgBouncer listens", 10.s(), || {
            process.alive()?;
            std::net::TcpStream::connect((address, port)).map(drop).map_err(|error| error.to_string())
        })?;
        Ok(Self { room, address: address.to_owned(), port, process })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// libpq's environment variables for an application that comes through the pooler over TCP or its unix socket.
    pub fn environment(&self, server: &Postgres, route: Route) -> Vec<(&'static str, String)> {
        let mut all = server.environment(APPLICATION.0, Route::V4);
        for (key, value) in &mut all {
            match *key {
                "PGHOST" if route == Route::Unix => *value = self.room.display().to_string(),
                "PGHOST" => value.clone_from(&self.address),
                "PGPORT" => *value = self.port.to_string(),
                _ => (),
            }
        }
        all
    }

    /// The same database over server connections of its own: what others prepared there is in nobody's way.
    pub fn dsn_aside(&self, driver: &str, keys: &str) -> String {
        self.dsn(driver, &format!("{ASIDE}{keys}"))
    }

    /// DSN of the application's role through the pooler, for this driver of SQLAlchemy and with these keys: `?key=value`.
    pub fn dsn(&self, driver: &str, keys: &str) -> String {
        let (role, database) = APPLICATION;
        format!("postgresql+{driver}://{role}:{}@{}:{}/{database}{keys}", password(role), self.address, self.port)
    }

    /// Somebody who asks the console for its numbers every two seconds over one connection, as an exporter of metrics does.
    pub fn console_client(&self, stage: &Stage) -> Result<Running, StageError> {
        let room = stage.room("console")?;
        let script = room.join("script");
        std::fs::write(&script, "SHOW STATS \\watch 2\n").map_err(StageError::system("write a script"))?;
        let mut command = Command::new(installed("/usr/bin/psql", "postgresql-client-15")?);
        command.args(["-XAtq", "-h", &self.address, "-U", "tickbird", "-d", "pgbouncer", "-p", &self.port.to_string()]);
        command.arg("-f").arg(&script).env("PGPASSWORD", password("tickbird"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Running::start("psql", &mut command, &room.join("log"))
    }

    /// Writes the DSN of its console to a file, for `[[pgbouncer]] dsn_file`.
    pub fn dsn_file(&self) -> Result<PathBuf, StageError> {
        let path = self.room.join("console.dsn");
        let dsn = format!("postgresql://tickbird:{}@{}:{}/pgbouncer", password("tickbird"), self.address, self.port);
        std::fs::write(&path, dsn).map_err(StageError::system("write a DSN file"))?;
        Ok(path)
    }
}
