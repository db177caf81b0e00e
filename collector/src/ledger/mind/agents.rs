//! Whom the ledger knows: who comes by a token or by another PKI, renews, describes itself, is denied or forgotten.

use subtle::ConstantTimeEq;
use tickbird_shared::Timestamp;
use tickbird_shared::batch::Inventory;

use super::Mind;
use crate::aggregate;
use crate::alert::Policy;
use crate::ledger::{AgentKey, Enrolment, Excess, Guest, Renewal, Standing, TokenRefusal};
use crate::store::{AgentRow, ExcessRow, StoreError, TokenRow, Transaction};

impl Mind {
    /// Uses a token for a new agent.
    pub(in crate::ledger) fn enrol(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        enrolment: &Enrolment,
        now: Timestamp,
    ) -> Result<Result<AgentRow, TokenRefusal>, StoreError> {
        let tokens = transaction.rows().tokens()?;
        // Every hash is compared, each in constant time.
        let mut found: Option<TokenRow> = None;
        for token in tokens {
            if bool::from(token.hash.ct_eq(&enrolment.token_hash)) {
                found = Some(token);
            }
        }
        let Some(token) = found else { return Ok(Err(TokenRefusal::Unknown)) };
        if token.revoked_at.is_some() {
            return Ok(Err(TokenRefusal::Revoked));
        }
        if token.expires_at <= now {
            return Ok(Err(TokenRefusal::Expired));
        }
        if !transaction.use_token(&token.tenant, &token.id, now)? {
            return Ok(Err(TokenRefusal::UsedUp));
        }
        let agent = AgentRow {
            token_labels: token.labels,
            ephemeral: token.ephemeral,
            ..AgentRow::enrolled(
                (token.tenant, enrolment.agent.clone()),
                enrolment.host.clone(),
                now,
                enrolment.certificate_expires_at,
            )
        };
        self.welcome(transaction, policy, agent.clone(), now)?;
        Ok(Ok(agent))
    }

    /// Writes until when an agent's new certificate lasts; false when the agent may not speak any more.
    pub(in crate::ledger) fn renew(
        &mut self,
        transaction: &Transaction<'_>,
        renewal: &Renewal,
    ) -> Result<bool, StoreError> {
        let speaks = |row: &&mut AgentRow| row.denied_at.is_none() && row.forget_at.is_none();
        let Some(row) = self.agents.get_mut(&renewal.agent).filter(speaks) else { return Ok(false) };
        row.certificate_expires_at = renewal.certificate_expires_at;
        transaction.put_agent(row)?;
        Ok(true)
    }

    /// Keeps an agent of another PKI. One that is denied stays so.
    pub(in crate::ledger) fn admit(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        guest: &Guest,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if let Some(row) = self.agents.get_mut(&guest.agent) {
            if row.certificate_expires_at != guest.certificate_expires_at {
                row.certificate_expires_at = guest.certificate_expires_at;
                transaction.put_agent(row)?;
            }
            return Ok(());
        }
        let agent = AgentRow::enrolled(
            (guest.agent.tenant.as_ref().to_owned(), guest.agent.id.as_ref().to_owned()),
            guest.agent.id.as_ref().to_owned(),
            now,
            guest.certificate_expires_at,
        );
        tracing::info!(agent = %agent.id, "an agent of another PKI is admitted");
        self.welcome(transaction, policy, agent, now)
    }

    /// A new agent is written, known, and may speak once that is committed.
    fn welcome(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        agent: AgentRow,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        transaction.put_agent(&agent)?;
        let changes = self.aggregate.apply(aggregate::Event::Enrolled(&agent), now);
        self.follow(transaction, policy, changes, now)?;
        let key = AgentKey::new(&agent.tenant, &agent.id);
        self.standings.push((key.clone(), Some(Standing::Admitted)));
        self.agents.insert(key, agent);
        Ok(())
    }

    /// Takes over what a command line wrote into the store: who is denied, who is to be forgotten, what is
    /// silenced or acknowledged, and what is sent again.
    pub(in crate::ledger) fn take_commands(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.take_silences(transaction.rows())?;
        self.take_acknowledgements(transaction, policy, now)?;
        // A message that was given up may wait again.
        self.queued = true;
        for stored in transaction.rows().all_agents()? {
            let key = AgentKey::new(&stored.tenant, &stored.id);
            let Some(known) = self.agents.get_mut(&key) else { continue };
            let newly_denied = stored.denied_at.is_some() && known.denied_at.is_none();
            known.denied_at = stored.denied_at;
            known.forget_at = stored.forget_at;
            if stored.forget_at.is_some() {
                self.forget(transaction, policy, &key, now)?;
            } else if newly_denied {
                self.standings.push((key.clone(), Some(Standing::Denied)));
                transaction.delete_levels(&key.tenant, &key.id)?;
                transaction.delete_dependencies(&key.tenant, &key.id)?;
                self.alert.forget(&key.tenant, &key.id);
                let event = aggregate::Event::Denied { tenant: &key.tenant, agent: &key.id };
                let changes = self.aggregate.apply(event, now);
                self.follow(transaction, policy, changes, now)?;
                tracing::info!(agent = %key.id, "agent denied");
            }
        }
        Ok(())
    }

    /// Counts what agents did beyond their limits, and tells of those that go on with it.
    pub(in crate::ledger) fn exceed(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        excesses: &[Excess],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        for Excess { agent, limit, times } in excesses {
            // One that is not known here is named in the metrics only.
            if !self.agents.contains_key(agent) {
                continue;
            }
            transaction.add_excess(&ExcessRow {
                tenant: agent.tenant.as_ref().to_owned(),
                agent: agent.id.as_ref().to_owned(),
                limit: (*limit).to_owned(),
                times: *times,
                last_at: now,
            })?;
            let event = aggregate::Event::Excess { tenant: &agent.tenant, agent: &agent.id, limit, times: *times };
            let changes = self.aggregate.apply(event, now);
            self.follow(transaction, policy, changes, now)?;
        }
        Ok(())
    }

    pub(super) fn describe(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        agent: &AgentKey,
        inventory: &Inventory,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let Some(row) = self.agents.get_mut(agent) else { return Ok(()) };
        let is_relabelled = row.host != inventory.host || row.own_labels != inventory.labels;
        row.host.clone_from(&inventory.host);
        row.version = Some(inventory.version.clone());
        row.system = Some(inventory.system.clone());
        row.own_labels = inventory.labels.clone();
        row.targets.clone_from(&inventory.targets);
        transaction.put_agent(row)?;
        self.alert.know(row);
        if is_relabelled {
            self.alert.relabelled(self.aggregate.firing_of(&agent.tenant, &agent.id), row, policy, now);
        }
        let changes = self.aggregate.apply(aggregate::Event::Inventory(row), now);
        self.follow(transaction, policy, changes, now)
    }

    pub(super) fn forget(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        agent: &AgentKey,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let event = aggregate::Event::Forgotten { tenant: &agent.tenant, agent: &agent.id };
        let changes = self.aggregate.apply(event, now);
        // While its row is still here: what is told of it needs its host and labels.
        self.follow(transaction, policy, changes, now)?;
        transaction.delete_agent(&agent.tenant, &agent.id)?;
        transaction.delete_dependencies(&agent.tenant, &agent.id)?;
        self.alert.forget(&agent.tenant, &agent.id);
        self.agents.remove(agent);
        self.seen.remove(agent);
        self.lanes.retain(|key, _| key.agent != *agent.id || key.tenant != *agent.tenant);
        self.standings.push((agent.clone(), None));
        tracing::info!(agent = %agent.id, "agent forgotten");
        Ok(())
    }
}
