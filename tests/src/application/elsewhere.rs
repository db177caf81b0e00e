//! Applications of another user, and in a network namespace of their own.

use std::path::PathBuf;

use super::{Application, Kind, python};
use crate::postgres::Postgres;
use crate::process::installed;
use crate::stage::{Stage, StageError};

/// User and group of an application that is not root.
const NOBODY: u32 = 65534;

impl Application {
    /// [`Application::pooled`] as user 65534, with none of root's rights.
    pub fn pooled_by_nobody(stage: &Stage, name: &str, server: &Postgres) -> Result<Self, StageError> {
        installed("/usr/lib/python3/dist-packages/sqlalchemy", "python3-sqlalchemy")?;
        installed("/usr/lib/python3/dist-packages/psycopg2", "python3-psycopg2")?;
        let room = stage.room(name)?;
        let mut program: Vec<PathBuf> = vec![installed("/usr/bin/setpriv", "util-linux")?];
        program.extend([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")].map(PathBuf::from));
        program.push("--clear-groups".into());
        program.extend(python("pooled.py")?);
        // The workspace may be in a home that others may not enter.
        if let Some(script) = program.last_mut() {
            let copy = room.join("pooled.py");
            std::fs::copy(&script, &copy).map_err(StageError::system("copy a script"))?;
            *script = copy;
        }
        let dsn = format!("{}?pool_size=20&max_overflow=10&application_name={name}", server.dsn("app"));
        let kind = Kind {
            program,
            arguments: vec!["--name".into(), name.into()],
            environment: vec![("DATABASE_URL", dsn)],
            log: room.join("log"),
        };
        Self::start(name, kind)
    }

    /// [`Application::sockets`] in a network namespace of its own, where nobody else listens on that port.
    pub fn sockets_elsewhere(stage: &Stage, port: u16, connections: u32) -> Result<Self, StageError> {
        let mut program: Vec<PathBuf> = vec![installed("/usr/bin/unshare", "util-linux")?];
        installed("/sbin/ip", "iproute2")?;
        let words = ["--net", "/bin/sh", "-c", "/sbin/ip link set lo up && exec \"$@\"", "sh"];
        program.extend(words.map(PathBuf::from));
        program.extend(python("sockets.py")?);
        let arguments = vec![port.to_string(), connections.to_string()];
        let log = stage.room("sockets")?.join("log");
        Self::start("sockets", Kind { program, arguments, environment: Vec::new(), log })
    }
}
