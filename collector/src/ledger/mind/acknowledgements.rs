//! Who takes an incident, and what follows when nobody has it any more.

use std::collections::HashMap;

use tickbird_shared::{Status, Timestamp};

use super::Mind;
use crate::aggregate::ChangeKind;
use crate::alert::{AcknowledgementError, Policy};
use crate::ledger::Acknowledging;
use crate::store::{AcknowledgementRow, StoreError, Transaction};

/// What is decided anew: of each tenant and incident what happened, and why.
pub(super) type Reasons = HashMap<(String, String), (ChangeKind, String)>;

impl Mind {
    /// Begins or ends an acknowledgement; the row as it is then.
    pub(in crate::ledger) fn acknowledge(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        asked: &Acknowledging,
        now: Timestamp,
    ) -> Result<Result<AcknowledgementRow, AcknowledgementError>, StoreError> {
        let rows = transaction.rows();
        let row = match asked {
            Acknowledging::Begin(ask) => {
                let incident = rows.incident(&ask.tenant, &ask.incident)?;
                match ask.as_ref().clone().of(incident.as_ref(), now) {
                    Err(error) => return Ok(Err(error)),
                    Ok(row) => {
                        transaction.acknowledge(&row)?;
                        row
                    }
                }
            }
            Acknowledging::End { tenant, incident, by } => {
                let Some(row) = rows.acknowledgement(tenant, incident, now)? else {
                    let is_known = rows.incident(tenant, incident)?.is_some();
                    let why = if is_known { AcknowledgementError::NoneHolds } else { AcknowledgementError::Unknown };
                    return Ok(Err(why));
                };
                transaction.end_acknowledgement(tenant, incident, &format!("{by} ended it"), now)?;
                AcknowledgementRow { ends_at: now, ..row }
            }
        };
        self.take_acknowledgements(transaction, policy, now)?;
        self.let_go(transaction, policy, now)?;
        Ok(Ok(row))
    }

    /// Takes over what the store has now, and writes down what is new of it.
    pub(super) fn take_acknowledgements(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let (mut kept, mut reasons) = (Vec::new(), Reasons::new());
        for row in transaction.rows().live_acknowledgements()? {
            let incident = transaction.rows().incident(&row.tenant, &row.incident)?;
            // It was written while the ledger heard of something that its owner had not seen.
            let why = match &incident {
                None => Some("the incident is not known any more"),
                Some(it) if it.status != Status::Firing => Some("the incident is over"),
                Some(it) if row.is_outgrown(it) => Some("it got worse"),
                Some(_) => None,
            };
            if let Some(why) = why {
                let row = row.over(Some(why), now);
                transaction.mark_acknowledgement(&row)?;
                // What one before it held, which is known here still, nobody else lets go of.
                if self.alert.has_owner(&row.tenant, &row.incident) {
                    self.alert.escalate_anew(&row.tenant, &row.incident, now);
                    let why = (ChangeKind::Unacknowledged, row.ended());
                    reasons.insert((row.tenant, row.incident), why);
                }
                continue;
            }
            let is_new = row.taken_at.is_none();
            let row = AcknowledgementRow { taken_at: row.taken_at.or(Some(now)), ..row };
            if is_new && row.ends_at > now {
                transaction.mark_acknowledgement(&row)?;
                reasons.insert((row.tenant.clone(), row.incident.clone()), (ChangeKind::Acknowledged, row.why()));
            }
            kept.push(row);
        }
        self.alert.take_acknowledgements(kept);
        self.decide_anew(transaction, policy, &reasons, now)
    }

    /// Writes the ends that have come, and what is told of it.
    pub(super) fn end_acknowledgements(
        &mut self,
        transaction: &Transaction<'_>,
        reasons: &mut Reasons,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        for row in self.alert.acknowledgements_over(now) {
            transaction.mark_acknowledgement(&row)?;
            tracing::info!(tenant = row.tenant, incident = row.incident, "nobody has the incident any more");
            // It says more than that something else does not hold it back any more.
            self.alert.escalate_anew(&row.tenant, &row.incident, now);
            let why = (ChangeKind::Unacknowledged, row.ended());
            reasons.insert((row.tenant, row.incident), why);
        }
        Ok(())
    }

    /// Gives incidents a new state epoch each, and decides it.
    pub(super) fn decide_anew(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        reasons: &Reasons,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if reasons.is_empty() {
            return Ok(());
        }
        let changes = self.aggregate.reconsider(|tenant, id| {
            let (kind, reason) = reasons.get(&(tenant.to_owned(), id.to_owned()))?;
            Some((*kind, reason.as_str()))
        });
        self.follow(transaction, policy, changes, now)
    }
}
