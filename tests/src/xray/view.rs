//! What the agent says of pools: `pools` of `tickbird-agent status --json`, once a second.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::agent::Agent;
use crate::stage::StageError;
use crate::wait::{Paced, paced};

/// One connection with the agent's verdict.
#[derive(Debug, Clone, PartialEq)]
pub struct ConnectionSeen {
    /// Descriptor in the owner.
    pub fd: Option<u32>,
    /// Local end: `address:port`, or a path.
    pub local: String,
    /// `leased`, `busy`, `held`, `group stop`, `free` or `unknown`.
    pub verdict: String,
    /// The rule that led to it.
    pub rule: String,
    /// For how long.
    pub age: Option<f64>,
    /// The server's number of its session.
    pub session: Option<u64>,
    /// What the server says.
    pub state: Option<String>,
}

impl ConnectionSeen {
    /// Local port; 0 on a unix socket.
    pub fn port(&self) -> u16 {
        self.local.rsplit(':').next().and_then(|it| it.parse().ok()).unwrap_or(0)
    }
}

/// One pool as the agent sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolSeen {
    /// Key of its target.
    pub target: String,
    /// The process that owns it, where visible.
    pub pid: Option<u32>,
    /// `rotating`, `stack` or `unknown`.
    pub discipline: String,
    /// Everything that it says beside the connections.
    pub all: Value,
    /// Each connection.
    pub connections: Vec<ConnectionSeen>,
}

/// Everything the agent said at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// When it had answered, in seconds since 1970.
    pub at: f64,
    /// All pools of the host.
    pub pools: Vec<PoolSeen>,
    /// Everything that fires: `check`, `severity`, `target`, `evidence`.
    pub findings: Vec<Value>,
}

impl Sample {
    /// Pools of this process.
    pub fn of(&self, pid: u32) -> impl Iterator<Item = &PoolSeen> {
        self.pools.iter().filter(move |it| it.pid == Some(pid))
    }

    /// What fires of `check` on targets that contain `part`.
    pub fn finding(&self, check: &str, part: &str) -> Option<&Value> {
        let about = |it: &&Value| it["target"].as_str().is_some_and(|it| it.contains(part));
        self.findings.iter().filter(|it| it["check"] == check).find(about)
    }

    /// Every connection that `pool.leak` or `pool.leak_rate` names, as its evidence has it.
    pub fn leaks(&self) -> impl Iterator<Item = &Value> {
        let leaks = self.findings.iter().filter(|it| it["check"] == "pool.leak" || it["check"] == "pool.leak_rate");
        leaks.flat_map(|it| it["evidence"]["connections"].as_array().into_iter().flatten())
    }
}

/// Reads the pools of a status report.
///
/// # Errors
/// When it has none, or one is not as agreed.
pub fn pools_in(status: &Value) -> Result<Vec<PoolSeen>, StageError> {
    let wrong =
        |found: &Value| StageError::Malformed { what: "`pools` of the status".into(), found: found.to_string() };
    let rows = status["pools"].as_array().ok_or_else(|| wrong(&status["pools"]))?;
    rows.iter().map(|row| pool(row).ok_or_else(|| wrong(row))).collect()
}

fn pool(row: &Value) -> Option<PoolSeen> {
    let connections = row["connections"].as_array()?.iter().map(connection).collect::<Option<_>>()?;
    let mut all = row.clone();
    if let Some(fields) = all.as_object_mut() {
        fields.remove("connections");
    }
    Some(PoolSeen {
        target: row["target"].as_str()?.to_owned(),
        pid: row["pid"].as_u64().and_then(|it| it.try_into().ok()),
        discipline: row["discipline"].as_str()?.to_owned(),
        all,
        connections,
    })
}

fn connection(row: &Value) -> Option<ConnectionSeen> {
    // More than one after a fork; the applications here do not.
    let fd = row["fds"][0].as_u64();
    Some(ConnectionSeen {
        fd: fd.and_then(|it| it.try_into().ok()),
        local: row["local"].as_str()?.to_owned(),
        verdict: row["verdict"].as_str()?.to_owned(),
        rule: row["rule"].as_str().unwrap_or_default().to_owned(),
        age: row["age_seconds"].as_f64(),
        session: row["session"].as_u64(),
        state: row["state"].as_str().map(str::to_owned),
    })
}

/// Looks at the agent once a second for so long; `each` hears every sample and may end it early by `Ok(true)`.
///
/// # Errors
/// The first that the agent or `each` gives.
pub fn watch_pools(
    agent: &Agent,
    time: Duration,
    mut each: impl FnMut(&Sample) -> Result<bool, StageError>,
) -> Result<Vec<Sample>, StageError> {
    let mut samples = Vec::new();
    paced(Duration::from_secs(1), time, || {
        let status = agent.status()?;
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let findings = status["findings"].as_array().cloned().unwrap_or_default();
        let sample = Sample { at, findings, pools: pools_in(&status)? };
        let enough = each(&sample)?;
        samples.push(sample);
        Ok(if enough { Paced::Enough } else { Paced::More })
    })?;
    Ok(samples)
}
