//! Canaries that came are told together, each time in place of what still waits.

use tickbird_shared::Timestamp;

use super::Mind;
use crate::aggregate::{CANARY, CanarySeen, Strain};
use crate::alert::Policy;
use crate::ledger::AgentKey;
use crate::store::{StoreError, Transaction};

impl Mind {
    /// Tells the receiver that waits for them, where it is time, and others who is missed.
    pub(super) fn let_canaries_fly(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        strain: Option<&Strain>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if !std::mem::replace(&mut self.has_cleared_canaries, true) {
            // Of a tenant or for a receiver that has none any more.
            transaction.supersede_all_of(None, CANARY, now)?;
        }
        let settings = policy.canary.as_ref();
        let all = strain.map(|it| it.receivers.as_slice()).unwrap_or_default();
        let reach = settings.and_then(|it| all.iter().map(|(reach, _)| reach).find(|reach| reach.name == it.receiver));
        let (changes, flown) = self.aggregate.canaries(settings, reach, now);
        self.follow(transaction, policy, changes, now)?;
        for it in flown {
            let Some(to) = policy.receivers.iter().find(|to| to.name == it.receiver) else { continue };
            transaction.supersede_all_of(Some(&it.tenant), CANARY, now)?;
            if let Some(id) = &it.forgets {
                transaction.delete_message(&it.tenant, id)?;
            }
            let message = self.alert.canary(&it, to, now);
            transaction.add_message(&message)?;
            self.queued = true;
            self.aggregate.flew(&it.tenant, &message.id);
        }
        Ok(())
    }

    /// What is known of the canaries of these agents.
    pub(in crate::ledger) fn canaries(&self, agents: &[AgentKey]) -> Vec<Option<CanarySeen>> {
        agents.iter().map(|agent| self.aggregate.canary_of(&agent.tenant, &agent.id)).collect()
    }

    /// What canaries needed that were taken since this was asked last, in milliseconds.
    pub(in crate::ledger) fn take_canary_latencies(&mut self) -> Vec<u32> {
        self.aggregate.take_canary_latencies()
    }
}
