//! Workers that write a log of their own, with the errors of real libraries as those libraries word them.

use std::path::{Path, PathBuf};

use super::{Application, Kind, python};
use crate::library::{java, node, node_path};
use crate::process::installed;
use crate::stage::{Stage, StageError, workspace};

/// Whose errors a worker writes, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failing {
    /// SQLAlchemy on psycopg2, asyncpg and psycopg_pool, by Python's logging.
    Python,
    /// HikariCP on PostgreSQL's JDBC driver, by java.util.logging.
    Java,
    /// node-postgres and its pool, as Node's console shows an error.
    Node,
    /// ActiveRecord on Ruby's pg, by Ruby's logger.
    Ruby,
}

impl Failing {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Python, Self::Java, Self::Node, Self::Ruby];

    fn program(self) -> Result<Vec<PathBuf>, StageError> {
        let sources = workspace().join("tests/applications/failing");
        match self {
            Self::Python => {
                for (module, package) in [
                    ("sqlalchemy", "python3-sqlalchemy"),
                    ("greenlet", "python3-greenlet"),
                    ("psycopg2", "python3-psycopg2"),
                    ("asyncpg", "python3-asyncpg"),
                    ("psycopg_pool", "python3-psycopg-pool"),
                ] {
                    installed(&format!("/usr/lib/python3/dist-packages/{module}"), package)?;
                }
                python("failing.py")
            }
            Self::Java => java(&sources.join("Failing.java")),
            Self::Node => node(&sources.join("failing.js")),
            Self::Ruby => {
                installed("/usr/share/doc/ruby-activerecord", "ruby-activerecord")?;
                installed("/usr/lib/ruby/vendor_ruby/pg", "ruby-pg")?;
                Ok(vec![installed("/usr/bin/ruby", "ruby")?, sources.join("failing.rb")])
            }
        }
    }
}

impl Application {
    /// A worker that writes a log of its own ([`Application::written`]) with the errors of SQLAlchemy and asyncpg.
    pub fn failing(stage: &Stage, name: &str, server: Vec<(&'static str, String)>) -> Result<Self, StageError> {
        Self::failing_as(Failing::Python, stage, name, server)
    }

    /// The same with the errors of other libraries.
    pub fn failing_as(
        whose: Failing,
        stage: &Stage,
        name: &str,
        server: Vec<(&'static str, String)>,
    ) -> Result<Self, StageError> {
        let room = stage.room(name)?;
        let written = room.join("app.log").display().to_string();
        let arguments = ["--name", name, "--log", &written].map(str::to_owned).into();
        let mut environment = server;
        environment.extend((whose == Failing::Node).then(node_path));
        Self::start(name, Kind { program: whose.program()?, arguments, environment, log: room.join("log") })
    }

    /// The log that it writes itself.
    ///
    /// # Panics
    /// When it is none of [`Application::failing_as`].
    pub fn written(&self) -> &Path {
        self.argument("--log")
    }
}
