//! A private Alertmanager that tells nobody, to be told of incidents.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::postgres::free_port;
use crate::process::{Running, installed, last_lines};
use crate::requests::exchange;
use crate::stage::{Stage, StageError};
use crate::wait::{Seconds, until};

/// It knows nobody, so it only keeps what it is told.
const CONFIGURATION: &str = "route:\n  receiver: nobody\nreceivers:\n  - name: nobody\n";

/// The server. Dropped, it is asked to end.
#[derive(Debug)]
pub struct Alertmanager {
    room: PathBuf,
    port: u16,
    process: Option<Running>,
}

impl Alertmanager {
    /// Starts a server on a free port of 127.0.0.1, alone in its cluster.
    ///
    /// # Errors
    /// When it is not installed, or will not start: then with the end of its log.
    pub fn start(stage: &Stage) -> Result<Self, StageError> {
        let mut it = Self { room: stage.room("alertmanager")?, port: free_port()?, process: None };
        it.runs()?;
        Ok(it)
    }

    /// Starts it on the same port, after [`Self::ends`].
    pub fn runs(&mut self) -> Result<(), StageError> {
        let file = self.room.join("alertmanager.yml");
        std::fs::write(&file, CONFIGURATION).map_err(StageError::system("write Alertmanager's configuration"))?;
        let log = self.room.join("log");
        let mut command = Command::new(installed("/usr/bin/prometheus-alertmanager", "prometheus-alertmanager")?);
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.path={}", self.room.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{}", self.port))
            .arg("--cluster.listen-address=");
        let command = command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = Running::start("alertmanager", command, &log)?;
        until("Alertmanager is ready", 30.s(), || {
            process.alive()?;
            let answer = exchange(self.port, "GET", "/-/ready").unwrap_or_default();
            if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(format!("{answer}{}", last_lines(&log, 5))) }
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills it: what it held is forgotten.
    pub fn ends(&mut self) -> Result<(), StageError> {
        self.process.take().map_or(Ok(()), |mut it| it.kill().map(drop))
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The alerts that it holds for active now.
    ///
    /// # Errors
    /// When it does not answer with a list.
    pub fn alerts(&self) -> Result<Vec<Value>, StageError> {
        let ask = || {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            // In one piece, however long it is: HTTP/1.0 knows no others.
            stream.write_all(b"GET /api/v2/alerts HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        let answer = ask().map_err(StageError::system("ask Alertmanager"))?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let listed = serde_json::from_str(body).ok();
        listed.ok_or_else(|| StageError::Malformed { what: "Alertmanager's alerts".into(), found: answer.clone() })
    }
}
