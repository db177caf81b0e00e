//! One agent, as far as incidents go.

use std::collections::BTreeSet;

use tickbird_shared::{Epoch, Fingerprint, Timestamp};

use super::canary::Bird;
use super::excess::Excess;
use super::lives::Lives;
use super::presence::Voice;
use crate::store::AgentRow;

/// What is known of one agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) host: String,
    pub(super) targets: usize,
    pub(super) ephemeral: bool,
    pub(super) denied: bool,
    pub(super) enrolled_at: Timestamp,
    pub(super) last_seen_at: Option<Timestamp>,
    pub(super) voice: Voice,
    /// Life of the buffer and clock of the newest batch, to place what is in it.
    pub(super) batch: Option<(Epoch, Timestamp)>,
    pub(super) lives: Lives,
    pub(super) bird: Bird,
    pub(super) firing: BTreeSet<Fingerprint>,
    /// Incidents of it that are remembered: those that fire, and those that may still return.
    pub(super) remembered: usize,
    pub(super) excess: Excess,
}

impl Agent {
    /// An agent as stored.
    pub(super) fn stored(row: &AgentRow) -> Self {
        let mut voice = Voice::stored(row.last_seen_at.is_some(), row.stopped_at.is_some());
        if row.denied_at.is_some() {
            voice.ignore();
        }
        Self {
            host: row.host.clone(),
            targets: row.targets.len(),
            ephemeral: row.ephemeral,
            denied: row.denied_at.is_some(),
            enrolled_at: row.enrolled_at,
            last_seen_at: row.last_seen_at,
            voice,
            batch: None,
            lives: Lives::default(),
            bird: Bird::default(),
            firing: BTreeSet::new(),
            remembered: 0,
            excess: Excess::default(),
        }
    }
}
