//! Whom else is told of what was told and is nobody's, once its time has come.

use tickbird_shared::Timestamp;

use super::Mind;
use super::acknowledgements::Reasons;
use crate::aggregate::ChangeKind;
use crate::alert::{Policy, Sought};
use crate::ledger::AgentKey;
use crate::store::{StoreError, Transaction};

impl Mind {
    /// Decides the steps whose time has come.
    pub(super) fn escalate(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let Self { alert, agents, .. } = self;
        let due = alert.escalations_due(policy, now, |(tenant, id)| {
            let row = transaction.rows().incident(tenant, id)?;
            Ok::<_, StoreError>(row.map(|row| {
                let agent = agents.get(&AgentKey::new(tenant, &row.agent));
                (Sought::Read(Box::new(row)), agent)
            }))
        })?;
        // Each step has a reason of its own.
        let reasons: Reasons = due.into_iter().map(|it| (it, (ChangeKind::Escalated, String::new()))).collect();
        self.decide_anew(transaction, policy, &reasons, now)?;
        self.write_escalations(transaction)
    }

    /// Writes how far escalations have come, where that changed.
    pub(super) fn write_escalations(&mut self, transaction: &Transaction<'_>) -> Result<(), StoreError> {
        for ((tenant, incident), receiver, row) in self.alert.take_unsaved_escalations() {
            match row {
                Some(row) => transaction.put_escalation(&row)?,
                None => transaction.delete_escalation(&tenant, &incident, &receiver)?,
            }
        }
        Ok(())
    }
}
