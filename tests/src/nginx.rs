//! A private nginx: one port, pages that are always the same, nothing of the distribution's server.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::postgres::free_port;
use crate::process::{Running, installed, last_lines};
use crate::requests::exchange;
use crate::stage::{Stage, StageError};
use crate::wait::{Seconds, until};

/// A running server. Dropped, it is asked to end.
#[derive(Debug)]
pub struct Nginx {
    port: u16,
    _process: Running,
}

impl Nginx {
    /// Starts a server on a free port of 127.0.0.1 that answers every path with 200 and a few bytes, and `/status` with its
    /// own counts.
    ///
    /// # Errors
    /// When nginx is not installed, or will not start: then with the end of its log.
    pub fn start(stage: &Stage) -> Result<Self, StageError> {
        let (room, port) = (stage.room("nginx")?, free_port()?);
        let at = |file: &str| room.join(file).display().to_string();
        let places: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|it| format!("{it}_temp_path {};\n", at(it)))
            .concat();
        let settings = format!(
            "daemon off;\nworker_processes 1;\npid {};\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{places}\
             server {{\nlisten 127.0.0.1:{port};\nlocation / {{ return 200 \"well\\n\"; }}\n\
             location = /status {{ stub_status; }}\n}}\n}}\n",
            at("pid"),
        );
        let file: PathBuf = room.join("nginx.conf");
        std::fs::write(&file, settings).map_err(StageError::system("write the server's configuration"))?;
        let log = room.join("log");
        let mut command = Command::new(installed("/usr/sbin/nginx", "nginx-light")?);
        command.arg("-e").arg("stderr").arg("-c").arg(&file).arg("-p").arg(&room);
        let mut process = Running::start("nginx", command.stdin(Stdio::null()).stdout(Stdio::null()), &log)?;
        until("nginx answers", 10.s(), || {
            process.alive()?;
            let open = TcpStream::connect(("127.0.0.1", port));
            open.map(drop).map_err(|error| format!("{error}: {}", last_lines(&log, 5)))
        })?;
        Ok(Self { port, _process: process })
    }

    /// Its port on 127.0.0.1.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The address of one of its pages.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// How many requests it has answered, this one included.
    pub fn requests(&self) -> Result<u64, StageError> {
        let text = exchange(self.port, "GET", "/status")?;
        // "server accepts handled requests", and a line of three numbers.
        let numbers = text.lines().skip_while(|line| !line.starts_with("server accepts")).nth(1);
        let requests = numbers.and_then(|line| line.split_ascii_whitespace().nth(2)?.parse().ok());
        requests.ok_or(StageError::Malformed { what: "the counts of nginx".into(), found: text })
    }
}
