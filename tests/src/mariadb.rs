//! A private MariaDB: its own data directory, port and socket, with nothing of the distribution's server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::certificate::Certificate;
use crate::postgres::{Owner, Route, free_port, password};
use crate::process::{Running, installed, run};
use crate::stage::{Stage, StageError};
use crate::wait::{Seconds, until};

const PACKAGE: &str = "mariadb-server";

/// A running server. Dropped, it is asked to end.
#[derive(Debug)]
pub struct MariaDb {
    room: PathBuf,
    port: u16,
    authority: PathBuf,
    _process: Running,
}

impl MariaDb {
    /// Makes a server with the users `app` and `tickbird` and the table `app.orders`, with TLS for those who want it,
    /// and starts it on a free port of every address. `tickbird` may see all sessions; `performance_schema` is off as
    /// the distribution has it, or on.
    pub fn start(
        stage: &Stage,
        certificate: &Certificate,
        performance_schema: bool,
        max_connections: u16,
    ) -> Result<Self, StageError> {
        let name = if performance_schema { "mariadb-schema" } else { "mariadb" };
        let (room, port, owner) = (stage.room(name)?, free_port()?, Owner::of_servers()?);
        owner.give(&room)?;
        for (from, to) in [(&certificate.chain, "server.crt"), (&certificate.key, "server.key")] {
            let to = room.join(to);
            std::fs::copy(from, &to).map_err(StageError::system("give the server its certificate"))?;
            owner.give(&to)?;
        }
        let mut install = owner.command(&installed("/usr/bin/mariadb-install-db", PACKAGE)?);
        install.arg("--no-defaults").arg(format!("--datadir={}/data", room.display()));
        run(install.args(["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]))?;
        let mut command = owner.command(&installed("/usr/sbin/mariadbd", PACKAGE)?);
        let at = |option: &str, file: &str| format!("--{option}={}/{file}", room.display());
        command.args(["--no-defaults".to_owned(), at("datadir", "data"), at("socket", "sock"), at("pid-file", "pid")]);
        command.args([at("ssl-cert", "server.crt"), at("ssl-key", "server.key"), format!("--port={port}")]);
        command.args([format!("--max-connections={max_connections}"), "--bind-address=*".into()]);
        command.args(["--innodb-flush-log-at-trx-commit=0".to_owned(), "--innodb-buffer-pool-size=16M".into()]);
        command.arg(format!("--performance-schema={}", if performance_schema { "ON" } else { "OFF" }));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let process = Running::start(name, &mut command, &room.join("log"))?;
        let mut server = Self { room, port, authority: certificate.chain.clone(), _process: process };
        server.is_ready()?;
        for user in ["app", "tickbird"] {
            server.sql(&format!("CREATE USER {user}@'%' IDENTIFIED BY '{}'", password(user)))?;
        }
        server.sql("CREATE DATABASE app; CREATE TABLE app.orders (id INT PRIMARY KEY) ENGINE=InnoDB")?;
        server.sql("INSERT INTO app.orders VALUES (1); GRANT ALL ON app.* TO app@'%'")?;
        server.sql("GRANT PROCESS ON *.* TO tickbird@'%'; GRANT SELECT ON performance_schema.* TO tickbird@'%'")?;
        Ok(server)
    }

    fn is_ready(&mut self) -> Result<(), StageError> {
        let process = &mut self._process;
        let room = &self.room;
        until("MariaDB answers", 60.s(), || {
            process.alive()?;
            client(room)
                .and_then(|mut it| run(it.args(["-e", "SELECT 1"])))
                .map(drop)
                .map_err(|error| error.to_string())
        })
    }

    /// Runs statements as the superuser over the unix socket with the real client.
    pub fn sql(&self, statements: &str) -> Result<String, StageError> {
        run(client(&self.room)?.args(["-e", statements]))
    }

    /// Its port on every address.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Variables of the environment for an application that comes by this route.
    pub fn environment(&self, route: Route) -> Vec<(&'static str, String)> {
        let host = if route == Route::V6 { "::1" } else { "127.0.0.1" };
        let mut all = vec![
            ("MYSQL_HOST", host.to_owned()),
            ("MYSQL_PORT", self.port.to_string()),
            ("MYSQL_USER", "app".to_owned()),
            ("MYSQL_PASSWORD", password("app")),
            ("MYSQL_DATABASE", "app".to_owned()),
        ];
        match route {
            Route::Unix => all.push(("MYSQL_SOCKET", self.room.join("sock").display().to_string())),
            Route::Tls => all.push(("MYSQL_CA", self.authority.display().to_string())),
            Route::V4 | Route::V6 | Route::Mapped => (),
        }
        all
    }

    /// A `[[mysql]]` section whose agent comes by this route, and by TLS is let in no other way; its DSN goes to a file.
    pub fn section(&self, route: Route) -> Result<String, StageError> {
        let path = self.room.join("tickbird.dsn");
        let options = match route {
            Route::Unix => format!("?socket={}/sock", self.room.display()),
            Route::Tls => {
                self.sql("ALTER USER tickbird@'%' REQUIRE SSL")?;
                format!("?ssl-mode=VERIFY_IDENTITY&ssl-ca={}", self.authority.display())
            }
            Route::V4 | Route::V6 | Route::Mapped => String::new(),
        };
        let host = if route == Route::V6 { "[::1]" } else { "127.0.0.1" };
        let dsn = format!("mysql://tickbird:{}@{host}:{}/{options}", password("tickbird"), self.port);
        std::fs::write(&path, dsn).map_err(StageError::system("write a DSN file"))?;
        Ok(format!("[[mysql]]\ndsn_file = \"{}\"\n", path.display()))
    }
}

fn client(room: &Path) -> Result<Command, StageError> {
    let mut client = Command::new(installed("/usr/bin/mariadb", "mariadb-client")?);
    client.args(["--no-defaults", "--batch", "--user=root"]).arg(format!("--socket={}", room.join("sock").display()));
    Ok(client)
}
