//! The two sums that tell whether anything was lost or counted twice: at the agent by lane, at the collector over all.

use serde_json::Value;

use crate::agent::Agent;
use crate::collector::{Collector, titles};
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
    Ok(())
}

/// Waits until no incident of these checks fires.
///
/// # Errors
/// With those that still do.
pub fn nothing_is_stuck(collector: &Collector, checks: &[&str]) -> Result<(), StageError> {
    // The first open list of a life makes up for what the last ones did not see.
    until("no incident is stuck open", 240.s(), || {
        let mut stuck = collector.items("incidents", "status=firing").map_err(|error| error.to_string())?;
        stuck.retain(|it| checks.iter().any(|check| it["check"] == *check));
        if stuck.is_empty() { Ok(()) } else { Err(titles(&stuck)) }
    })
}
