//! The truth that applications write, beside what the agent says of their pools at each look.

mod compare;
mod view;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

pub use self::compare::{Comparison, Kept, compare};
pub use self::view::{ConnectionSeen, PoolSeen, Sample, pools_in, watch_pools};
use crate::stage::StageError;

/// One connection of an application, as the application itself knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Connection {
    /// Which of its pools; `own` is none.
    pub pool: String,
    /// Local port; 0 on a unix socket.
    pub port: u16,
    /// Descriptor, where the library shows it.
    pub fd: Option<u32>,
    /// The backend's process id.
    pub backend: i32,
    /// Whether it was handed out just now.
    pub leased: bool,
    /// `leak`, `keep`, `listen`, `lock`, `batch`, or empty.
    pub kept: String,
    /// Since when it is leased or not, in seconds since 1970.
    pub since: f64,
    /// Leases so far.
    pub uses: u64,
}

/// What an application wrote at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Moment {
    /// In seconds since 1970.
    pub at: f64,
    /// Callers that waited for a connection.
    pub waiting: u64,
    /// Every connection that was ever leased, by local port. One that was closed stays as it was.
    pub connections: BTreeMap<u16, Connection>,
    /// The same as a list: over a unix socket none has a port.
    pub all: Vec<Connection>,
}

/// Everything an application has written, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Truth {
    moments: Vec<Moment>,
}

impl Truth {
    /// Reads the file of an application; a last line that is still being written is left out.
    ///
    /// # Errors
    /// When a whole line is not as agreed.
    pub fn read(file: &Path) -> Result<Self, StageError> {
        let text = std::fs::read_to_string(file)
            .map_err(StageError::system(format!("read the truth in {}", file.display())))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, StageError> {
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines = whole.lines().map(|line| {
            let json: Option<Value> = serde_json::from_str(line).ok();
            json.as_ref()
                .and_then(moment)
                .ok_or_else(|| StageError::Malformed { what: "a line of the truth".into(), found: line.to_owned() })
        });
        Ok(Self { moments: lines.collect::<Result<_, _>>()? })
    }

    /// The last word.
    pub fn last(&self) -> Option<&Moment> {
        self.moments.last()
    }

    /// What was written from `from` to `to`.
    pub fn between(&self, from: f64, to: f64) -> impl Iterator<Item = &Moment> {
        let first = self.moments.partition_point(|it| it.at < from);
        self.moments[first..].iter().take_while(move |it| it.at <= to)
    }
}

fn moment(line: &Value) -> Option<Moment> {
    let all: Vec<Connection> = line["connections"].as_array()?.iter().map(connection).collect::<Option<_>>()?;
    let connections = all.iter().map(|it| (it.port, it.clone())).collect();
    Some(Moment { at: line["at"].as_f64()?, waiting: line["waiting"].as_u64()?, connections, all })
}

fn connection(row: &Value) -> Option<Connection> {
    Some(Connection {
        pool: row["pool"].as_str()?.to_owned(),
        port: row["port"].as_u64()?.try_into().ok()?,
        fd: row["fd"].as_u64().and_then(|it| it.try_into().ok()),
        backend: row["backend"].as_i64()?.try_into().ok()?,
        leased: row["leased"].as_bool()?,
        kept: row["kept"].as_str()?.to_owned(),
        since: row["since"].as_f64()?,
        uses: row["uses"].as_u64()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_being_written_is_not_read_and_a_wrong_one_is_an_error() {
        let line = r#"{"at": 10.5, "waiting": 2, "connections": [{"pool": "main", "port": 4000, "fd": 7,
            "backend": 12, "leased": true, "kept": "keep", "since": 9.5, "uses": 3}]}"#
            .replace('\n', " ");
        let truth = Truth::parse(&format!("{line}\n{}", &line[..40])).expect("the whole line is good");
        let last = truth.last().expect("there is one");
        assert_eq!((truth.between(0.0, 99.0).count(), last.waiting), (1, 2));
        assert_eq!(last.connections[&4000].kept, "keep");
        assert!(Truth::parse("{\"at\": 1}\n").is_err());
    }
}
