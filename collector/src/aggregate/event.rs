//! Everything that the state of the aggregate is a function of.

use tickbird_shared::batch::Open;
use tickbird_shared::{Epoch, Lane, Timestamp};

use super::strain::{Disk, Strain};
use crate::pki::life::Kept;
use crate::store::{AgentRow, Condition, FindingRow, LossRow, OutboxRow};

/// Something that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A finding of an agent; the id of its incident is written into it.
    Finding(&'a mut FindingRow),
    /// What fires at an agent, for each check that ran.
    Open {
        /// Tenant of the agent.
        tenant: &'a str,
        /// The agent.
        agent: &'a str,
        /// Its list.
        open: &'a Open,
    },
    /// An agent described itself; the row as it is after that.
    Inventory(&'a AgentRow),
    /// An agent was enrolled.
    Enrolled(&'a AgentRow),
    /// An authenticated batch, also an empty one; said before what is in it.
    Heard {
        /// Tenant of the agent.
        tenant: &'a str,
        /// The agent.
        agent: &'a str,
        /// Life of the buffer that the batch comes from.
        epoch: &'a Epoch,
        /// The agent's clock as it left.
        sent_at: Timestamp,
        /// The agent ends on purpose.
        goodbye: bool,
        /// What is in it was held in memory, because the agent's disk took nothing.
        is_volatile: bool,
    },
    /// Sequences that were settled came again with other content.
    ClonedIdentity {
        /// Tenant of the agent.
        tenant: &'a str,
        /// The agent.
        agent: &'a str,
        /// Lane it happened in.
        lane: Lane,
        /// First sequence of the batch.
        first: u64,
    },
    /// An agent was refused something.
    Excess {
        /// Tenant of the agent.
        tenant: &'a str,
        /// The agent.
        agent: &'a str,
        /// The code that it was refused with.
        limit: &'static str,
        /// How often.
        times: u64,
    },
    /// An agent's buffer gave something up.
    Loss(&'a LossRow),
    /// An operator denied an agent.
    Denied {
        /// Tenant of the agent.
        tenant: &'a str,
        /// The agent.
        agent: &'a str,
    },
    /// An agent is to be forgotten.
    Forgotten {
        /// Tenant of the agent.
        tenant: &'a str,
        /// The agent.
        agent: &'a str,
    },
    /// A message reached its end.
    Message(&'a OutboxRow),
    /// How the collector's own certificates stand.
    Certificates(&'a Kept),
    /// How the store stands.
    Store {
        /// Whether it can be written, and whether it is whole.
        condition: &'a Condition,
        /// Room on its disk; none before the first look.
        disk: Option<&'a Disk>,
    },
    /// What the collector's other parts bear.
    Strain(&'a Strain),
    /// A second passed.
    Tick,
}
