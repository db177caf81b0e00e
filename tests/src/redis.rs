//! A private Redis: its own ports and unix socket, nothing on disk, nothing of the distribution's server.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::certificate::Certificate;
use crate::postgres::{Owner, Route, free_port, password};
use crate::process::{Running, installed, run};
use crate::stage::{Stage, StageError};
use crate::wait::{Seconds, until};

const PACKAGE: &str = "redis-server";

/// Users beside `app`, who may do everything: the agent's, one that may list nobody, and one that may nothing.
const USERS: [(&str, &str); 3] = [
    ("tickbird", "+client|list +client|id +client|setname +info"),
    ("unlisted", "+client|id +client|setname +info"),
    ("nobody", "+ping"),
];

/// A running server. Dropped, it is asked to end.
#[derive(Debug)]
pub struct Redis {
    room: PathBuf,
    port: u16,
    tls_port: u16,
    authority: PathBuf,
    _process: Running,
}

impl Redis {
    /// Starts a server on free ports of v4 and v6, one of them for TLS, and on a unix socket, with room for so many
    /// clients and a password for each user.
    pub fn start(stage: &Stage, certificate: &Certificate, max_clients: u16) -> Result<Self, StageError> {
        let (room, port, tls_port) = (stage.room("redis")?, free_port()?, free_port()?);
        let owner = Owner::of_servers()?;
        owner.give(&room)?;
        for (from, to) in [(&certificate.chain, "server.crt"), (&certificate.key, "server.key")] {
            let to = room.join(to);
            std::fs::copy(from, &to).map_err(StageError::system("give the server its certificate"))?;
            owner.give(&to)?;
        }
        let at = |file: &str| room.join(file).display().to_string();
        let mut settings = format!(
            "bind 127.0.0.1 ::1\nport {port}\ntls-port {tls_port}\ntls-cert-file {}\ntls-key-file {}\n\
             tls-ca-cert-file {}\ntls-auth-clients no\nunixsocket {}\nunixsocketperm 777\ndir {}\nsave \"\"\n\
             maxclients {max_clients}\nuser default off\nuser app on ~* &* +@all >{}\n",
            at("server.crt"),
            at("server.key"),
            at("server.crt"),
            at("sock"),
            room.display(),
            password("app"),
        );
        for (user, rights) in USERS {
            settings += &format!("user {user} on {rights} >{}\n", password(user));
        }
        let file = room.join("redis.conf");
        std::fs::write(&file, settings).map_err(StageError::system("write the server's configuration"))?;
        owner.give(&file)?;
        let mut command = owner.command(&installed("/usr/bin/redis-server", PACKAGE)?);
        command.arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
        let process = Running::start("redis", &mut command, &room.join("log"))?;
        let mut server = Self { room, port, tls_port, authority: certificate.chain.clone(), _process: process };
        until("Redis answers", 30.s(), || {
            server._process.alive()?;
            server.says(&["PING"]).map_err(|error| error.to_string()).and_then(|said| match said.trim() {
                "PONG" => Ok(()),
                other => Err(other.to_owned()),
            })
        })?;
        Ok(server)
    }

    /// What it answers to `app` over its unix socket, by the real client.
    pub fn says(&self, words: &[&str]) -> Result<String, StageError> {
        let mut client = Command::new(installed("/usr/bin/redis-cli", "redis-tools")?);
        client.args(["--user", "app", "--no-auth-warning", "-s"]).arg(self.room.join("sock"));
        client.env("REDISCLI_AUTH", password("app"));
        run(client.args(words))
    }

    /// Its plain port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// `host:port` of its plain port, as targets name it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The URL of a user that comes by this route.
    pub fn url(&self, user: &str, route: Route) -> String {
        let who = format!("{user}:{}", password(user));
        let authority = self.authority.display();
        match route {
            Route::V6 => format!("redis://{who}@[::1]:{}/0", self.port),
            Route::Unix => format!("unix://{who}@{}?db=0", self.room.join("sock").display()),
            Route::Tls => format!("rediss://{who}@127.0.0.1:{}/0?ssl_ca_certs={authority}", self.tls_port),
            Route::V4 | Route::Mapped => format!("redis://{who}@127.0.0.1:{}/0", self.port),
        }
    }

    /// A `[[redis]]` section of a user that comes by this route; its URL goes to a file.
    pub fn section(&self, user: &str, route: Route) -> Result<String, StageError> {
        let path = self.room.join(format!("{user}.dsn"));
        std::fs::write(&path, self.url(user, route)).map_err(StageError::system("write a DSN file"))?;
        Ok(format!("[[redis]]\ndsn_file = \"{}\"\n", path.display()))
    }
}
