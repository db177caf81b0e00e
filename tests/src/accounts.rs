//! The two sums that tell whether anything was lost or counted twice: at the agent by lane, at the collector over all.

use std::process::Command;

use serde_json::Value;

use crate::agent::Agent;
use crate::collector::{Collector, titles};
use crate::process::{installed, run};
use crate::stage::StageError;
use crate::wait::{Seconds, until};

/// What the buffer says of each lane, urgent first.
///
/// # Panics
/// When a lane's sum is not whole, or a record is evicted, refused or quarantined.
pub fn lanes(agent: &Agent) -> Result<[Value; 2], StageError> {
    let stat = agent.report("buffer stat", &[])?;
    let lanes = [stat["lanes"][0].clone(), stat["lanes"][1].clone()];
    for lane in &lanes {
        assert_eq!(lane["whole"], true, "{lane}");
        for lost in ["evicted", "refused", "quarantined"] {
            assert_eq!(lane[lost], 0, "nothing is lost: {lane}");
        }
    }
    Ok(lanes)
}

/// Everything that these agents appended is at the collector once. They have ended, and nobody else sends to it.
///
/// # Panics
/// When it is not.
pub fn are_whole(collector: &Collector, agents: &[&Agent]) -> Result<(), StageError> {
    let count = |lane: &Value, what: &str| lane[what].as_u64().unwrap_or(u64::MAX);
    let mut appended = 0;
    for agent in agents {
        for lane in lanes(agent)? {
            assert_eq!(count(&lane, "backlog"), 0, "it was drained at the end: {lane}");
            appended += count(&lane, "appended");
        }
    }
    let counted = |what: &str| collector.counted(&format!("tickbird_records_{what}"));
    let (received, committed) = (counted("received")?, counted("committed")?);
    assert_eq!(counted("refused")?, 0);
    assert_eq!(received, committed + counted("duplicate")?);
    assert_eq!(committed, appended, "each record is there, and none twice");
    assert_eq!(
        collector.counted("tickbird_batches_superseded")?,
        0,
        "each start of an agent went on from the one before"
    );
    Ok(())
}

/// What became of the records of an agent, both lanes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcomes {
    /// Accepted by its buffer, ever.
    pub appended: u64,
    /// On the collector's disk.
    pub acknowledged: u64,
    /// Gone to make room.
    pub evicted: u64,
    /// Never to be stored.
    pub refused: u64,
    /// Could not be read back.
    pub quarantined: u64,
    /// Waiting.
    pub backlog: u64,
}

impl Outcomes {
    /// By the files of its buffer.
    ///
    /// # Panics
    /// When a lane's sum is not whole.
    pub fn of(agent: &Agent) -> Result<Self, StageError> {
        let stat = agent.report("buffer stat", &[])?;
        let mut it = Self::default();
        for lane in stat["lanes"].as_array().into_iter().flatten() {
            let count = |what: &str| lane[what].as_u64().unwrap_or_default();
            let outcomes = ["acknowledged", "evicted", "refused", "quarantined", "backlog"].map(count);
            assert_eq!(count("appended"), outcomes.iter().sum::<u64>(), "each record has one outcome: {lane}");
            let [acknowledged, evicted, refused, quarantined, backlog] = outcomes;
            it.appended += count("appended");
            it.acknowledged += acknowledged;
            it.evicted += evicted;
            it.refused += refused;
            it.quarantined += quarantined;
            it.backlog += backlog;
        }
        Ok(it)
    }

    /// Waits until nothing waits.
    ///
    /// # Errors
    /// With what still does.
    pub fn drained(agent: &Agent) -> Result<Self, StageError> {
        until("the backlog has gone", 120.s(), || {
            let it = Self::of(agent).map_err(|error| error.to_string())?;
            if it.backlog == 0 { Ok(it) } else { Err(format!("{it:?}")) }
        })
    }
}

/// What a collector made of the records that came to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Stored, the records of losses among them.
    pub committed: u64,
    /// Known already.
    pub duplicate: u64,
    /// Never to be stored.
    pub refused: u64,
    /// Told as gone, by records of losses.
    pub lost: u64,
    /// Records of losses in its store.
    pub losses: u64,
}

/// Reads how many losses a store has, and how many records they speak of. It may be in use.
const LOSSES: &str = "import sqlite3, sys
store = sqlite3.connect('file:' + sys.argv[1] + '?mode=ro', uri=True)
print(*store.execute('SELECT count(*), coalesce(sum(count), 0) FROM losses').fetchone())";

impl Received {
    /// By its metrics and its store.
    ///
    /// # Panics
    /// When its sum is not whole, or its store knows of other losses than it counted.
    pub fn by(collector: &Collector) -> Result<Self, StageError> {
        let counted = |what: &str| collector.counted(&format!("tickbird_records_{what}"));
        let store = collector.directory().join("store.db");
        let said = run(Command::new(installed("/usr/bin/python3", "python3")?).args(["-c", LOSSES]).arg(store))?;
        let numbers: Vec<u64> = said.split_whitespace().filter_map(|it| it.parse().ok()).collect();
        let [losses, lost] = numbers[..] else {
            return Err(StageError::Malformed { what: "the losses of a store".into(), found: said });
        };
        let [committed, duplicate, refused] = [counted("committed")?, counted("duplicate")?, counted("refused")?];
        assert_eq!(counted("received")?, committed + duplicate + refused, "each record has one outcome");
        assert_eq!(counted("lost")?, lost, "what is counted as lost is what its store knows as lost");
        Ok(Self { committed, duplicate, refused, lost, losses })
    }
}

/// Everything that these agents appended is at the collector once, refused there, or told to it as lost. They have ended, and
/// nobody else sends to it.
///
/// # Panics
/// When it is not.
pub fn agree(collector: &Collector, agents: &[&Agent]) -> Result<(Outcomes, Received), StageError> {
    let mut all = Outcomes::default();
    for agent in agents {
        let it = Outcomes::of(agent)?;
        assert_eq!(it.backlog, 0, "it was drained at the end: {it:?}");
        all.appended += it.appended;
        all.acknowledged += it.acknowledged;
        all.evicted += it.evicted;
        all.refused += it.refused;
        all.quarantined += it.quarantined;
    }
    let received = Received::by(collector)?;
    let Received { committed, refused, lost, losses, .. } = received;
    assert_eq!(all.appended, committed - losses + refused + lost, "{all:?} and {received:?}");
    Ok((all, received))
}

/// Waits until no incident of these checks fires.
///
/// # Errors
/// With those that still do.
pub fn nothing_is_stuck(collector: &Collector, checks: &[&str]) -> Result<(), StageError> {
    // The first open list of a life makes up for what the last ones did not see.
    until("no incident is stuck open", 240.s(), || {
        let mut stuck = collector.items("incidents", "status=firing").map_err(|error| error.to_string())?;
        // What flaps and has gone away for now is told when it stays away, and is not stuck.
        stuck.retain(|it| checks.iter().any(|check| it["check"] == *check) && it["flapping"]["calm_since"].is_null());
        if stuck.is_empty() { Ok(()) } else { Err(titles(&stuck)) }
    })
}
