//! How far each lane was received, what came with it as a body, and what agents had to give up.

use rusqlite::{OptionalExtension, Row, named_params};
use tickbird_shared::{Epoch, Lane, StartWord};

use super::column::{At, Bytes, Seq, Word};
use super::{BodyRow, LaneRow, LaneStart, LossRow, Rows, StoreError, Transaction, sums};

/// Name of one lane of one life of one agent's buffer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LaneKey {
    /// Tenant of the agent.
    pub tenant: String,
    /// The agent.
    pub agent: String,
    /// Life of its buffer.
    pub epoch: Epoch,
    /// Lane of that buffer.
    pub lane: Lane,
}

impl Rows<'_> {
    /// How far one lane was received; nothing when it was never heard of.
    pub fn lane(&self, key: &LaneKey) -> Result<Option<LaneRow>, StoreError> {
        let mut query = self
            .0
            .prepare_cached("SELECT * FROM lanes WHERE tenant = ?1 AND agent = ?2 AND epoch = ?3 AND lane = ?4")?;
        Ok(query.query_row([&key.tenant, &key.agent, key.epoch.as_str(), key.lane.as_str()], read).optional()?)
    }

    /// How many bodies and losses are kept of one agent.
    pub fn bodies_and_losses(&self, tenant: &str, agent: &str) -> Result<(u64, u64), StoreError> {
        let mut query = self.0.prepare_cached(
            "SELECT (SELECT count(*) FROM bodies WHERE tenant = ?1 AND agent = ?2), \
             (SELECT count(*) FROM losses WHERE tenant = ?1 AND agent = ?2)",
        )?;
        Ok(query.query_row([tenant, agent], |row| Ok((row.get::<_, Seq>(0)?.0, row.get::<_, Seq>(1)?.0)))?)
    }
}

impl Transaction<'_> {
    /// Writes how far a lane was received.
    pub fn put_lane(&self, lane: &LaneRow) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached(
                "INSERT INTO lanes (tenant, agent, epoch, lane, through, last_first, last_digest, updated_at, \
                 start_number, start_word) \
                 VALUES (:tenant, :agent, :epoch, :lane, :through, :last_first, :last_digest, :updated_at, \
                 :start_number, :start_word) \
                 ON CONFLICT (tenant, agent, epoch, lane) DO UPDATE SET through = excluded.through, \
                 last_first = excluded.last_first, last_digest = excluded.last_digest, \
                 updated_at = excluded.updated_at, start_number = excluded.start_number, \
                 start_word = excluded.start_word",
            )?
            .execute(named_params! {
                ":tenant": lane.tenant,
                ":agent": lane.agent,
                ":epoch": lane.epoch.as_str(),
                ":lane": lane.lane.as_str(),
                ":through": Seq(lane.through),
                ":last_first": Seq(lane.last_first),
                ":last_digest": Bytes(lane.last_digest),
                ":updated_at": At(lane.updated_at),
                ":start_number": lane.start.map(|it| Seq(it.number)),
                ":start_word": lane.start.map(|it| Word(it.word)),
            })?;
        Ok(())
    }

    /// Keeps a body as it was received.
    pub fn add_body(&self, body: &BodyRow) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached(
                "INSERT INTO bodies (tenant, agent, epoch, lane, first, through, received_at, body) \
                 VALUES (:tenant, :agent, :epoch, :lane, :first, :through, :received_at, :body)",
            )?
            .execute(named_params! {
                ":tenant": body.tenant,
                ":agent": body.agent,
                ":epoch": body.epoch.as_str(),
                ":lane": body.lane.as_str(),
                ":first": Seq(body.first),
                ":through": Seq(body.through),
                ":received_at": At(body.received_at),
                ":body": body.body,
            })?;
        Ok(())
    }

    /// Keeps what an agent says it lost.
    pub fn add_loss(&self, loss: &LossRow) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached(
                "INSERT OR REPLACE INTO losses (tenant, agent, epoch, lane, first, last, count, outcome, received_at) \
                 VALUES (:tenant, :agent, :epoch, :lane, :first, :last, :count, :outcome, :received_at)",
            )?
            .execute(named_params! {
                ":tenant": loss.tenant,
                ":agent": loss.agent,
                ":epoch": loss.epoch.as_str(),
                ":lane": loss.lane.as_str(),
                ":first": Seq(loss.from),
                ":last": Seq(loss.to),
                ":count": Seq(loss.count),
                ":outcome": loss.outcome,
                ":received_at": At(loss.received_at),
            })?;
        Ok(())
    }
}

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<LaneRow> {
    sums::check("lanes", row)?;
    Ok(LaneRow {
        tenant: row.get("tenant")?,
        agent: row.get("agent")?,
        epoch: row.get::<_, Word<_>>("epoch")?.0,
        lane: row.get::<_, Word<_>>("lane")?.0,
        through: row.get::<_, Seq>("through")?.0,
        last_first: row.get::<_, Seq>("last_first")?.0,
        last_digest: row.get::<_, Bytes<32>>("last_digest")?.0,
        updated_at: row.get::<_, At>("updated_at")?.0,
        start: start(row)?,
    })
}

/// Schema 5 has these columns; what repairs a store reads older ones too.
fn start(row: &Row<'_>) -> rusqlite::Result<Option<LaneStart>> {
    let number = match row.get::<_, Option<Seq>>("start_number") {
        Err(rusqlite::Error::InvalidColumnName(_)) => return Ok(None),
        number => number?,
    };
    let word = row.get::<_, Option<Word<StartWord>>>("start_word")?;
    Ok(number.zip(word).map(|(number, word)| LaneStart { number: number.0, word: word.0 }))
}
