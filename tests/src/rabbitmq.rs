//! A private RabbitMQ with its management API: its own node, ports and data, nothing of the distribution's server.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::certificate::Certificate;
use crate::postgres::{Owner, Route, free_port, password};
use crate::process::{Running, installed, run};
use crate::stage::{Stage, StageError};
use crate::wait::{Seconds, until};

const PACKAGE: &str = "rabbitmq-server";
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";

/// Of all descriptors that it may use a node keeps a tenth for files, and two.
const fn descriptors_for(sockets: u16) -> u32 {
    (sockets as u32 * 10 + 20).div_ceil(9)
}

/// A running broker. Dropped, it is asked to end.
#[derive(Debug)]
pub struct RabbitMq {
    room: PathBuf,
    port: u16,
    tls_port: u16,
    management: u16,
    management_tls: u16,
    authority: PathBuf,
    environment: Vec<(&'static str, String)>,
    owner: Owner,
    _process: Running,
}

impl RabbitMq {
    /// Starts a node that listens on v4, v6 and for TLS, and takes about so many connections, with the users `app`,
    /// `tickbird` (tag `monitoring`) and `manager` (tag `management`).
    pub fn start(stage: &Stage, certificate: &Certificate, sockets: u16) -> Result<Self, StageError> {
        let room = stage.room("rabbitmq")?;
        let (port, tls_port, distribution) = (free_port()?, free_port()?, free_port()?);
        let (management, management_tls) = (free_port()?, free_port()?);
        let owner = Owner::of_servers()?;
        owner.give(&room)?;
        let at = |file: &str| room.join(file).display().to_string();
        let write = |file: &str, text: &str| {
            let path = room.join(file);
            std::fs::write(&path, text).map_err(StageError::system(format!("write {}", path.display())))?;
            owner.give(&path)
        };
        for (from, to) in [(&certificate.chain, "server.crt"), (&certificate.key, "server.key")] {
            std::fs::copy(from, room.join(to)).map_err(StageError::system("give the server its certificate"))?;
            owner.give(&room.join(to))?;
        }
        write("enabled_plugins", "[rabbitmq_management].\n")?;
        write(
            "advanced.config",
            &format!("[{{rabbit, [{{file_handles_high_watermark, {}}}]}}].\n", descriptors_for(sockets)),
        )?;
        let (chain, key) = (at("server.crt"), at("server.key"));
        write(
            "rabbitmq.conf",
            &format!(
                "listeners.tcp.1 = 127.0.0.1:{port}\nlisteners.tcp.2 = ::1:{port}\nlisteners.ssl.1 = 127.0.0.1:{tls_port}\n\
                 ssl_options.cacertfile = {chain}\nssl_options.certfile = {chain}\nssl_options.keyfile = {key}\n\
                 ssl_options.verify = verify_none\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management}\n\
                 management.ssl.ip = 127.0.0.1\nmanagement.ssl.port = {management_tls}\nmanagement.ssl.cacertfile = {chain}\n\
                 management.ssl.certfile = {chain}\nmanagement.ssl.keyfile = {key}\n\
                 default_user = app\ndefault_pass = {}\nloopback_users = none\nlog.file = false\nlog.console = true\n",
                password("app"),
            ),
        )?;
        let environment = vec![
            ("HOME", room.display().to_string()),
            ("RABBITMQ_NODENAME", "tickbird@localhost".to_owned()),
            ("RABBITMQ_MNESIA_BASE", at("mnesia")),
            ("RABBITMQ_LOG_BASE", at("logs")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", at("enabled_plugins")),
            ("RABBITMQ_CONFIG_FILE", at("rabbitmq")),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", at("advanced.config")),
            ("RABBITMQ_PID_FILE", at("pid")),
            ("RABBITMQ_DIST_PORT", distribution.to_string()),
            // One scheduler that sleeps at once: other scenarios run at the same time.
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 1:1 +sbwt none".to_owned()),
        ];
        let mut command = owner.command(&installed(&format!("{PROGRAMS}/rabbitmq-server"), PACKAGE)?);
        command.envs(environment.iter().cloned()).stdin(Stdio::null()).stdout(Stdio::null());
        let process = Running::start("rabbitmq", &mut command, &room.join("log"))?;
        let authority = certificate.chain.clone();
        let mut it =
            Self { room, port, tls_port, management, management_tls, authority, environment, owner, _process: process };
        until("RabbitMQ answers", 90.s(), || {
            it._process.alive()?;
            it.answers()
        })?;
        // The API answers a moment before the broker has begun.
        it.control(&["await_startup"])?;
        for (user, tag) in [("tickbird", "monitoring"), ("manager", "management")] {
            it.control(&["add_user", user, &password(user)])?;
            it.control(&["set_user_tags", user, tag])?;
        }
        Ok(it)
    }

    /// The API asks who we are, so it is there.
    fn answers(&self) -> Result<(), String> {
        let said = |error: std::io::Error| error.to_string();
        let mut socket = TcpStream::connect(("127.0.0.1", self.management)).map_err(said)?;
        socket.set_read_timeout(Some(Duration::from_secs(5))).map_err(said)?;
        socket.write_all(b"GET /api/whoami HTTP/1.0\r\n\r\n").map_err(said)?;
        let mut answer = [0; 12];
        socket.read_exact(&mut answer).map_err(said)?;
        if answer.ends_with(b"401") { Ok(()) } else { Err(String::from_utf8_lossy(&answer).into_owned()) }
    }

    /// What the server's own control program does.
    pub fn control(&self, words: &[&str]) -> Result<String, StageError> {
        let mut command = self.owner.command(Path::new(&format!("{PROGRAMS}/rabbitmqctl")));
        command.envs(self.environment.iter().cloned()).arg("--quiet").args(words);
        run(&mut command)
    }

    /// `host:port` of its management API, as targets name it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.management)
    }

    /// The same over TLS.
    pub fn tls_address(&self) -> String {
        format!("127.0.0.1:{}", self.management_tls)
    }

    /// Variables of the environment for an application that comes by this route.
    pub fn environment(&self, route: Route) -> Vec<(&'static str, String)> {
        let host = if route == Route::V6 { "::1" } else { "127.0.0.1" };
        let port = if route == Route::Tls { self.tls_port } else { self.port };
        let mut all = vec![
            ("AMQP_HOST", host.to_owned()),
            ("AMQP_PORT", port.to_string()),
            ("AMQP_USER", "app".to_owned()),
            ("AMQP_PASSWORD", password("app")),
        ];
        if route == Route::Tls {
            all.push(("AMQP_CA", self.authority.display().to_string()));
        }
        all
    }

    /// A `[[rabbitmq]]` section of a user with this password; its URL goes to a file.
    pub fn section(&self, user: &str, password: &str) -> Result<String, StageError> {
        self.section_of(user, &format!("http://{user}:{password}@{}", self.address()))
    }

    /// The same for an agent that asks over TLS.
    pub fn tls_section(&self, user: &str, password: &str) -> Result<String, StageError> {
        let (to, authority) = (self.tls_address(), self.authority.display());
        self.section_of(user, &format!("https://{user}:{password}@{to}/?ssl_ca_certs={authority}"))
    }

    fn section_of(&self, user: &str, url: &str) -> Result<String, StageError> {
        let path = self.room.join(format!("{user}.url"));
        std::fs::write(&path, url).map_err(StageError::system("write a URL"))?;
        Ok(format!("[[rabbitmq]]\ndsn_file = \"{}\"\n", path.display()))
    }
}
