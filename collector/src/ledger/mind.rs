//! What the ledger knows between two transactions, and what one event changes of it.
//!
//! Everything here may run ahead of the store only while a transaction is open. When one fails, this is dropped and
//! loaded again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use tickbird_shared::batch::{Acknowledgement, Refused};
use tickbird_shared::protocol::CANARY_CHECK;
use tickbird_shared::{Status, Timestamp};

use crate::aggregate::{self, ChangeKind, IncidentChange, PoolSum, Presence, Strain};
use crate::alert::{self, Policy, Silence, Sought, Withheld};
use crate::pki::life::Kept;
use crate::store::{
    AgentRow, BodyRow, Condition, DecisionRow, GroupRow, LaneKey, LaneRow, LaneStart, LossRow, MessageState, Rows,
    SilenceRow, StoreError, Tally, Transaction,
};

use super::lane::{Admission, admit};
use super::{AgentKey, Content, Delivery, Directory, Incoming, Numbered, Outcome, Rules, Settled, Silencing, Standing};

mod acknowledgements;
mod agents;
mod canaries;
mod escalations;

use acknowledgements::Reasons;

/// How far back resolved incidents are remembered: the longest a receiver may still be owed their resolve.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often the use of pools is written: a minute of it may be lost with a power cut.
const USE_EVERY: Duration = Duration::from_secs(60);
/// Lanes whose marks are kept in memory; over it the memory is emptied and filled again as agents speak.
const LANES: usize = 200_000;

/// All that decides.
pub(super) struct Mind {
    aggregate: aggregate::State,
    alert: alert::State,
    agents: HashMap<AgentKey, AgentRow>,
    lanes: HashMap<LaneKey, LaneRow>,
    /// Agents whose time of last word is newer here than in the store.
    seen: HashSet<AgentKey>,
    /// Standings to publish once the transaction is committed.
    standings: Vec<(AgentKey, Option<Standing>)>,
    /// When the use of pools was last written.
    used_written_at: Timestamp,
    /// Messages queued by the open transaction.
    queued: bool,
    /// What waited of canaries before the start is out of the way.
    has_cleared_canaries: bool,
}

impl Mind {
    /// Reads everything back. `now` is the moment from which agents are expected to speak again.
    pub(super) fn load(rows: Rows<'_>, rules: &Rules, now: Timestamp) -> Result<Self, StoreError> {
        Self::read(rows, rules, true, now)
    }

    /// The same for a reload, through which agents speak on.
    pub(super) fn load_anew(rows: Rows<'_>, rules: &Rules, now: Timestamp) -> Result<Self, StoreError> {
        Self::read(rows, rules, false, now)
    }

    fn read(rows: Rows<'_>, rules: &Rules, is_start: bool, now: Timestamp) -> Result<Self, StoreError> {
        let policy = &rules.policy;
        let since = now.saturating_sub(REMEMBERED).unwrap_or(Timestamp::MIN);
        let agents = rows.all_agents()?;
        let key = |agent: &AgentRow| AgentKey::new(&agent.tenant, &agent.id);
        let incidents = rows.live_incidents(since)?;
        let by_key: HashMap<_, _> = agents.iter().map(|it| (key(it), it)).collect();
        let with_agent = incidents.iter().map(|it| (it, by_key.get(&AgentKey::new(&it.tenant, &it.agent)).copied()));
        // Of what is over a receiver believes nothing more, but what waits in a group: one that was away from the configuration when an
        // incident ended was not told, and is owed nothing.
        let firing: HashSet<_> =
            incidents.iter().filter(|it| it.status == Status::Firing).map(|it| (&it.tenant, &it.id)).collect();
        let mut told = rows.told(since)?;
        told.retain(|it| firing.contains(&(&it.tenant, &it.incident)));
        let mut alert = alert::State::load(told, rows.outbox_waiting()?)
            .after(rows.newest_message()?.as_deref())
            .with_withheld(rows.withheld()?)
            .with_acknowledgements(rows.live_acknowledgements()?)
            .with_groups(rows.groups()?, &rows.gathered(now)?, incidents.iter(), policy, now)
            .with_heard(rows.heard()?)
            .with_dependencies(rows.dependencies()?, &agents)
            .with_sources(with_agent.clone(), policy)
            .with_escalations(rows.escalations()?, with_agent.clone(), policy, now);
        alert.silence(silences(rows)?);
        alert.look_for_strays(with_agent, policy, is_start, now);
        Ok(Self {
            aggregate: aggregate::State::load(agents.clone(), incidents, now)
                .with_flapping(policy.flapping)
                .with_canary(policy.canary.as_ref())
                .with_fleet(rows.levels()?, rows.pool_use(since)?)
                .with_rules(&rules.fleet, &agents),
            used_written_at: now,
            alert,
            standings: agents.iter().map(|agent| (key(agent), Some(standing(agent)))).collect(),
            agents: agents.into_iter().map(|agent| (key(&agent), agent)).collect(),
            lanes: HashMap::new(),
            seen: HashSet::new(),
            queued: false,
            has_cleared_canaries: false,
        })
    }

    /// The same after a reload: what was heard and seen `before` counts on, and no hold or silence of an agent begins anew. Agents are as they
    /// were known, and what commands changed of them is noticed by the next tick.
    pub(super) fn after(mut self, before: Self, (was, rules): (&Policy, &Rules)) -> Self {
        let agents: Vec<AgentRow> = before.agents.values().cloned().collect();
        let (policy, canaries) = (&rules.policy, (was.canary.as_ref(), rules.policy.canary.as_ref()));
        self.aggregate = before.aggregate.reloaded(policy.flapping, canaries, &rules.fleet, &agents);
        self.agents = before.agents;
        self
    }

    /// Takes the silences that the store has now.
    pub(super) fn take_silences(&mut self, rows: Rows<'_>) -> Result<(), StoreError> {
        if self.alert.silence(silences(rows)?) {
            tracing::info!(count = self.alert.silences(), "silences are taken over");
        }
        Ok(())
    }

    /// Begins or ends a silence; false when there are as many as there may be, or none of that id to end.
    pub(super) fn silence(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        silencing: &Silencing,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let done = match silencing {
            Silencing::Begin(row) => transaction.add_silence(row)?,
            Silencing::End { tenant, silence } => transaction.end_silence(tenant, silence, now)?,
        };
        self.take_silences(transaction.rows())?;
        self.let_go(transaction, policy, now)?;
        Ok(done)
    }

    /// Decides anew what was held back by something that is gone.
    fn let_go(&mut self, transaction: &Transaction<'_>, policy: &Policy, now: Timestamp) -> Result<(), StoreError> {
        let mut reasons = Reasons::new();
        for lapse in self.alert.lapses(policy, now) {
            let held = lapse.incidents.len();
            if !lapse.holder.is_empty() {
                tracing::info!(tenant = lapse.tenant, holder = lapse.holder, held, "what held incidents back is gone");
            }
            if lapse.ends_silence {
                transaction.silence_over(&lapse.tenant, &lapse.holder, now)?;
            }
            for incident in lapse.incidents {
                reasons.insert((lapse.tenant.clone(), incident), (ChangeKind::Reconsidered, lapse.reason.clone()));
            }
        }
        self.end_acknowledgements(transaction, &mut reasons, now)?;
        self.decide_anew(transaction, policy, &reasons, now)
    }

    /// Queues the messages of groups whose time has come.
    fn flush(&mut self, transaction: &Transaction<'_>, policy: &Policy, now: Timestamp) -> Result<(), StoreError> {
        let Self { alert, aggregate, agents, .. } = self;
        let flushes = alert.flush(policy, now, |(tenant, id), fingerprint| {
            let known = fingerprint.and_then(|it| aggregate.incident(it)).filter(|it| it.id == *id);
            let row = match known {
                Some(row) => Some(Sought::Known(row)),
                None => transaction.rows().incident(tenant, id)?.map(|row| Sought::Read(Box::new(row))),
            };
            Ok::<_, StoreError>(row.map(|row| {
                let agent = agents.get(&AgentKey::new(tenant, &row.agent));
                (row, agent)
            }))
        })?;
        for flush in flushes {
            let GroupRow { tenant, id, receiver, .. } = &flush.group;
            for (incident, why) in &flush.ungathered {
                transaction.ungather(tenant, incident, receiver, None, why)?;
            }
            flush.withheld.iter().try_for_each(|row| transaction.put_withheld(row))?;
            for message in &flush.supersedes {
                transaction.supersede_message(tenant, message, now)?;
            }
            if let Some(message) = &flush.message {
                transaction.add_message(message)?;
                self.queued = true;
            }
            if flush.is_over {
                transaction.delete_group(tenant, id)?;
            } else {
                transaction.put_group(&flush.group)?;
            }
        }
        self.write_escalations(transaction)?;
        self.write_heard(transaction)
    }

    /// Writes by what receivers know incidents, where that changed.
    fn write_heard(&mut self, transaction: &Transaction<'_>) -> Result<(), StoreError> {
        for ((tenant, incident), receiver, row) in self.alert.take_unsaved_heard() {
            match row {
                Some(row) => transaction.put_heard(&row)?,
                None => transaction.delete_heard(&tenant, &incident, &receiver)?,
            }
        }
        Ok(())
    }

    /// Makes known what the committed transaction changed; true when messages were queued.
    pub(super) fn publish(&mut self, directory: &Directory) -> bool {
        for (agent, standing) in self.standings.drain(..) {
            directory.set(agent, standing);
        }
        std::mem::take(&mut self.queued)
    }

    /// What receivers are owed.
    pub(super) fn owed(&self) -> BTreeMap<String, usize> {
        self.alert.owed()
    }

    /// How many messages wait for each receiver.
    pub(super) fn waiting(&self) -> BTreeMap<String, usize> {
        self.alert.waiting()
    }

    pub(super) fn presence(&self, agents: &[AgentKey]) -> Vec<Presence> {
        agents.iter().map(|agent| self.aggregate.presence(&agent.tenant, &agent.id)).collect()
    }

    pub(super) fn fleet_pools(&self, tenant: &str) -> Vec<PoolSum> {
        self.aggregate.fleet_pools(tenant)
    }

    /// Settles one batch within the transaction.
    pub(super) fn settle(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        batch: &mut Incoming,
        now: Timestamp,
    ) -> Result<(Settled, Tally), StoreError> {
        let agent = AgentKey::new(&batch.tenant, &batch.agent);
        // The right to speak may have been taken away while the batch waited.
        if !self.agents.get(&agent).is_some_and(|row| row.denied_at.is_none() && row.forget_at.is_none()) {
            return Ok((Settled::NotAdmitted, Tally::default()));
        }
        let key = LaneKey {
            tenant: batch.tenant.clone(),
            agent: batch.agent.clone(),
            epoch: batch.epoch.clone(),
            lane: batch.lane,
        };
        if !self.lanes.contains_key(&key)
            && let Some(mark) = transaction.rows().lane(&key)?
        {
            self.lanes.insert(key.clone(), mark);
        }
        let mark = self.lanes.get(&key);
        let admission = admit(mark, batch);
        if let Admission::OtherStart(why) = admission {
            let (known, number) = (mark.and_then(|it| it.start), batch.start.as_ref().map(|it| it.number));
            tracing::warn!(
                tenant = batch.tenant, agent = batch.agent, epoch = %batch.epoch, lane = %batch.lane, why = why.as_str(),
                start = number, known = known.map(|it| it.number),
                "a batch of a buffer that was copied or put back is not taken; its agent begins a new epoch"
            );
            // No sign of life either: a goodbye of a start that is over says nothing of the one that runs.
            return Ok((Settled::OtherStart, Tally::default()));
        }
        self.heard(transaction, &agent, batch, now)?;
        let heard = aggregate::Event::Heard {
            tenant: &batch.tenant,
            agent: &batch.agent,
            epoch: &batch.epoch,
            sent_at: batch.sent_at,
            goodbye: batch.goodbye,
            is_volatile: is_volatile(batch),
        };
        let changes = self.aggregate.apply(heard, now);
        self.follow(transaction, policy, changes, now)?;

        let received = batch.records.len() as u64;
        match admission {
            Admission::OtherStart(_) => Ok((Settled::OtherStart, Tally::default())),
            // Not settled, so nothing of it counts as received: it comes again.
            Admission::Gap { through } => Ok((Settled::Gap { through }, Tally::default())),
            Admission::Repeat { through } => {
                // Refusals are said again, since the first answer may have been lost on its way.
                let settled = Settled::Acknowledged(Acknowledgement { through, refused: refusals(batch) });
                Ok((settled, Tally { received, duplicate: received, ..Tally::default() }))
            }
            Admission::Cloned { through } => {
                let event = aggregate::Event::ClonedIdentity {
                    tenant: &batch.tenant,
                    agent: &batch.agent,
                    lane: batch.lane,
                    first: batch.first,
                };
                let changes = self.aggregate.apply(event, now);
                self.follow(transaction, policy, changes, now)?;
                let cloned = |record: &Numbered| Refused { seq: record.seq, code: "cloned_identity".into() };
                let refused = batch.records.iter().map(cloned).collect();
                let settled = Settled::Acknowledged(Acknowledgement { through, refused });
                Ok((settled, Tally { received, refused: received, ..Tally::default() }))
            }
            Admission::Take { after, through } => {
                let refused = refusals(batch);
                let (tally, beyond) = self.take(transaction, policy, batch, after, now)?;
                self.mark(transaction, key, batch, through, now)?;
                let acknowledgement = Acknowledgement { through, refused };
                let settled = match beyond {
                    0 => Settled::Acknowledged(acknowledgement),
                    _ => Settled::Beyond(acknowledgement, beyond),
                };
                Ok((settled, tally))
            }
        }
    }

    /// Stores the records of a batch after the sequence `after`, and what they cause. Says, too, how many findings fire beyond
    /// what their agent may have.
    fn take(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        batch: &mut Incoming,
        after: u64,
        now: Timestamp,
    ) -> Result<(Tally, u64), StoreError> {
        let agent = AgentKey::new(&batch.tenant, &batch.agent);
        let mut tally = Tally { received: batch.records.len() as u64, ..Tally::default() };
        let (mut body_through, mut beyond) = (None, 0);
        for record in &mut batch.records {
            let end = record.seq + (record.width - 1);
            if end <= after {
                tally.duplicate += 1;
                continue;
            }
            match &mut record.content {
                Content::Refused(_) => {
                    tally.refused += 1;
                    continue;
                }
                Content::Finding(finding) => {
                    let changes = self.aggregate.apply(aggregate::Event::Finding(finding), now);
                    beyond += u64::from(aggregate::is_beyond(finding));
                    // The mark of the lane proves that it was here; a row a minute of each agent would push out what people read.
                    if finding.check != CANARY_CHECK {
                        transaction.add_finding(finding)?;
                    }
                    self.follow(transaction, policy, changes, now)?;
                }
                Content::Open(open) => {
                    let event = aggregate::Event::Open { tenant: &batch.tenant, agent: &batch.agent, open };
                    let changes = self.aggregate.apply(event, now);
                    self.follow(transaction, policy, changes, now)?;
                }
                Content::Loss(loss) => {
                    let loss = only_after(loss, after);
                    tally.lost += loss.count;
                    transaction.add_loss(&loss)?;
                    let changes = self.aggregate.apply(aggregate::Event::Loss(&loss), now);
                    self.follow(transaction, policy, changes, now)?;
                }
                // History of a buffer that was found again is taken and changes nothing.
                Content::Inventory(inventory) => {
                    let of = (batch.tenant.as_str(), batch.agent.as_str());
                    if !self.aggregate.is_history(of, &batch.epoch, inventory.observed_at, now) {
                        self.describe(transaction, policy, &agent, inventory, now)?;
                    }
                }
                Content::Levels(levels) => {
                    if self.aggregate.levels(levels, now) {
                        transaction.put_levels(levels)?;
                        if let Some(row) = self.alert.learn(levels, now) {
                            transaction.put_dependencies(&row)?;
                        }
                    }
                }
                Content::InBody => body_through = Some(end),
            }
            tally.committed += 1;
        }
        if let Some(through) = body_through {
            transaction.add_body(&BodyRow {
                tenant: batch.tenant.clone(),
                agent: batch.agent.clone(),
                epoch: batch.epoch.clone(),
                lane: batch.lane,
                first: after + 1,
                through,
                received_at: batch.received_at,
                body: std::mem::take(&mut batch.body),
            })?;
        }
        Ok((tally, beyond))
    }

    /// Moves the mark of a lane.
    fn mark(
        &mut self,
        transaction: &Transaction<'_>,
        key: LaneKey,
        batch: &Incoming,
        through: u64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mark = LaneRow {
            tenant: batch.tenant.clone(),
            agent: batch.agent.clone(),
            epoch: batch.epoch.clone(),
            lane: batch.lane,
            through,
            last_first: batch.first,
            last_digest: batch.digest,
            start: batch.start.as_ref().map(|it| LaneStart { number: it.number, word: it.word }),
            updated_at: now,
        };
        transaction.put_lane(&mark)?;
        if self.lanes.len() >= LANES {
            self.lanes.clear();
        }
        self.lanes.insert(key, mark);
        Ok(())
    }

    /// Writes what an attempt to deliver came to.
    pub(super) fn deliver(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        delivery: &Delivery,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let Some(mut message) = transaction.rows().message(&delivery.tenant, &delivery.message)? else {
            return Ok(()); // it has gone with its incident
        };
        if delivery.is_counted {
            message.uncertain = message.uncertain.saturating_sub(1);
        } else {
            message.attempts += 1;
        }
        match &delivery.outcome {
            Outcome::Begun => {
                message.uncertain += 1;
                message.next_attempt_at = delivery.at;
            }
            Outcome::Delivered { answer } => {
                message.state = MessageState::Delivered;
                message.settled_at = Some(delivery.at);
                message.hears(answer);
            }
            Outcome::Retry { at, uncertain, error } => {
                message.uncertain += u32::from(*uncertain);
                message.next_attempt_at = *at;
                message.hears(error);
            }
            Outcome::Dead { uncertain, error } => {
                message.uncertain += u32::from(*uncertain);
                message.state = MessageState::Dead;
                message.settled_at = Some(delivery.at);
                message.hears(error);
            }
        }
        transaction.update_message(&message)?;
        if message.state != MessageState::Waiting {
            self.alert.settled(&message);
            let changes = self.aggregate.apply(aggregate::Event::Message(&message), now);
            self.follow(transaction, policy, changes, now)?;
        }
        Ok(())
    }

    /// Lets time pass.
    pub(super) fn tick(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        certificates: &Kept,
        (store, strain): (&Condition, Option<&Strain>),
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut changes = self.aggregate.apply(aggregate::Event::Tick, now);
        changes.extend(self.aggregate.apply(aggregate::Event::Certificates(certificates), now));
        let disk = strain.map(|it| &it.disk);
        changes.extend(self.aggregate.apply(aggregate::Event::Store { condition: store, disk }, now));
        changes.extend(strain.map(|it| self.aggregate.apply(aggregate::Event::Strain(it), now)).into_iter().flatten());
        self.follow(transaction, policy, changes, now)?;
        self.let_canaries_fly(transaction, policy, strain, now)?;
        self.go_on(transaction, policy, now)?;
        // Also after a step of the clock, in either direction.
        if now.duration_since(self.used_written_at).unsigned_abs() >= USE_EVERY {
            self.used_written_at = now;
            self.write_use(transaction)?;
        }
        for (tenant, id) in self.aggregate.to_forget(now) {
            self.forget(transaction, policy, &AgentKey::new(&tenant, &id), now)?;
        }
        Ok(())
    }

    /// Decides what has fallen due, as much of it as fits into a turn.
    pub(super) fn go_on(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.let_go(transaction, policy, now)?;
        self.escalate(transaction, policy, now)?;
        self.flush(transaction, policy, now)
    }

    /// Whether more had fallen due than fitted into the turns since this was asked last.
    pub(super) fn take_behind(&mut self) -> bool {
        self.alert.take_behind()
    }

    /// Takes note of how the store stands, and of nothing else.
    pub(super) fn store_stands(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        store: &Condition,
        strain: Option<&Strain>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let disk = strain.map(|it| &it.disk);
        let changes = self.aggregate.apply(aggregate::Event::Store { condition: store, disk }, now);
        self.follow(transaction, policy, changes, now)?;
        // Nothing else is told while nothing can be stored.
        self.flush(transaction, policy, now)
    }

    /// Writes when agents were last heard, for those where the store is behind.
    pub(super) fn write_seen(&mut self, transaction: &Transaction<'_>) -> Result<(), StoreError> {
        for agent in self.seen.drain().filter_map(|key| self.agents.get(&key)) {
            transaction.mark_seen(agent)?;
        }
        Ok(())
    }

    /// Writes what applications used of their pools since it was last written.
    pub(super) fn write_use(&mut self, transaction: &Transaction<'_>) -> Result<(), StoreError> {
        self.aggregate.take_unsaved_use().iter().try_for_each(|row| transaction.put_pool_use(row))
    }

    fn heard(
        &mut self,
        transaction: &Transaction<'_>,
        agent: &AgentKey,
        batch: &Incoming,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let Some(row) = self.agents.get_mut(agent) else { return Ok(()) };
        let was_silent = row.stopped_at.is_some() || row.last_seen_at.is_none();
        row.last_seen_at = Some(now);
        row.stopped_at = batch.goodbye.then_some(now);
        // A goodbye and a first word must survive our own restart; a heartbeat need not, and costs no write of its own.
        if batch.goodbye || was_silent {
            transaction.mark_seen(row)?;
        } else {
            self.seen.insert(agent.clone());
        }
        Ok(())
    }

    /// Writes changed incidents, and what alert decides of each.
    fn follow(
        &mut self,
        transaction: &Transaction<'_>,
        policy: &Policy,
        changes: Vec<IncidentChange>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        for mut change in changes {
            if change.kind == ChangeKind::Opened {
                transaction.add_incident(&change.incident)?;
            } else {
                transaction.put_incident(&change.incident)?;
            }
            let is_over = change.kind == ChangeKind::Resolved;
            // Who is told of the end is told, too, who had it.
            let outgrown = if is_over { None } else { self.alert.ends_acknowledgement(&change, now) };
            if let Some(row) = &outgrown {
                transaction.mark_acknowledgement(row)?;
                change.reason += &format!("; {}", row.ended());
                self.alert.escalate_anew(&row.tenant, &row.incident, now);
            }
            if change.kind == ChangeKind::Resolved {
                // Also of receivers that are not configured any more.
                transaction.delete_all_withheld(&change.incident.tenant, &change.incident.id)?;
            }
            let agent = self.agents.get(&AgentKey::new(&change.incident.tenant, &change.incident.agent));
            for decision in self.alert.decide(&change, agent, policy, now) {
                if !transaction.add_decision(&decision.row)? {
                    // Decided before: promise (a) says that the first decision stands.
                    debug_assert!(false, "decided twice: {:?}", decision.row);
                    continue;
                }
                match &decision.withheld {
                    Withheld::Nothing => (),
                    Withheld::Put(row) => transaction.put_withheld(row)?,
                    Withheld::Gone => {
                        let DecisionRow { tenant, incident, receiver, .. } = &decision.row;
                        transaction.delete_withheld(tenant, incident, receiver)?;
                    }
                }
                if let Some(why) = &decision.ungathers {
                    let DecisionRow { tenant, incident, receiver, state_epoch, .. } = &decision.row;
                    transaction.ungather(tenant, incident, receiver, Some(*state_epoch), why)?;
                }
                decision.group.iter().try_for_each(|row| transaction.put_group(row))?;
                for message in &decision.supersedes {
                    transaction.supersede_message(&decision.row.tenant, message, now)?;
                }
                if let Some(message) = &decision.message {
                    transaction.add_message(message)?;
                    self.queued = true;
                }
            }
            if is_over && let Some(row) = self.alert.ends_acknowledgement(&change, now) {
                transaction.mark_acknowledgement(&row)?;
            }
        }
        self.write_escalations(transaction)?;
        self.write_heard(transaction)
    }
}

/// A silence that cannot be read silences nothing.
fn silences(rows: Rows<'_>) -> Result<Vec<Silence>, StoreError> {
    let read = |row: SilenceRow| {
        let id = row.id.clone();
        Silence::new(row).inspect_err(|error| tracing::error!(silence = id, %error, "a silence cannot be read")).ok()
    };
    Ok(rows.live_silences()?.into_iter().filter_map(read).collect())
}

fn standing(agent: &AgentRow) -> Standing {
    if agent.denied_at.is_some() { Standing::Denied } else { Standing::Admitted }
}

/// Whether a batch was held in memory at the agent: its findings say so. Quotes within a text are escaped, so no text can
/// say it in their stead.
fn is_volatile(batch: &Incoming) -> bool {
    batch
        .records
        .iter()
        .any(|it| matches!(&it.content, Content::Finding(it) if it.evidence.contains("\"volatile\":true")))
}

/// What of a batch can never be stored.
fn refusals(batch: &Incoming) -> Vec<Refused> {
    let refused = |record: &Numbered| match record.content {
        Content::Refused(code) => Some(Refused { seq: record.seq, code: code.into() }),
        _ => None,
    };
    batch.records.iter().filter_map(refused).collect()
}

/// The part of a loss that was not settled before.
fn only_after(loss: &LossRow, after: u64) -> LossRow {
    let from = loss.from.max(after + 1);
    LossRow { from, count: loss.count.min(loss.to - from + 1), ..loss.clone() }
}
