//! How full things are now, told at the pace of the checks: what the rules over many agents add up.
//!
//! One record is everything that its agent knows: what an earlier one named and this one does not is gone. Keys that a
//! reader does not know are skipped, so that later agents may add to it; a change of meaning counts `form` up, and a
//! reader that does not know the form refuses the record.

use std::cmp::Ordering;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::protocol::{MAX_KEY_BYTES, MAX_LABEL_BYTES};

/// The form that is written and read here.
pub const FORM: u32 = 1;
/// Most pools of one record: the largest record of an agent's buffer holds as many with the longest names.
pub const MAX_POOLS: usize = 200;
/// Most servers of one record.
pub const MAX_SERVERS: usize = 50;
/// Most addresses of one server.
pub const MAX_ADDRESSES: usize = 8;
/// Most keys of a pool's DSN, required and right ones each.
pub const MAX_KEYS: usize = 16;
/// The longest of their names, alternatives among them.
const MAX_KEY_NAME: usize = 100;

/// What an agent knows of the pools of its host and of the servers behind them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Levels {
    /// [`FORM`].
    pub form: u32,
    /// When this was true, by the agent's wall clock.
    pub observed_at: Timestamp,
    /// Pools, the instances of one application's pool to one server taken together.
    pub pools: Vec<PoolLevel>,
    /// Pools that had no room in this record. While it is not 0, sums of this agent have no upper end.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u32,
    /// Servers that this agent asks.
    pub servers: Vec<ServerLevel>,
}

/// Which server something is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServerName {
    /// The server's own identifier, the same whatever address it is reached by; not there when it was never asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// It replays the changes of another with the same identifier; then only the address tells it apart.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replica: bool,
    /// Where it is, as this host reaches it: `10.0.0.5:5432`, `unix:/run/postgresql/.s.PGSQL.5432`.
    pub address: String,
}

/// What is known of a count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Amount {
    /// Exactly this.
    Known(u32),
    /// Somewhere from the first to the second, both included.
    Between(u32, u32),
    /// Not known, and why.
    Unknown(String),
}

impl Amount {
    /// The least it can be; 0 when nothing is known.
    pub const fn low(&self) -> u32 {
        match self {
            Self::Known(value) | Self::Between(value, _) => *value,
            Self::Unknown(_) => 0,
        }
    }

    /// The most it can be, when that is known.
    pub const fn high(&self) -> Option<u32> {
        match self {
            Self::Known(value) | Self::Between(_, value) => Some(*value),
            Self::Unknown(_) => None,
        }
    }

    /// A range, or the one value that it is.
    pub fn between(low: u32, high: u32) -> Self {
        match low.cmp(&high) {
            Ordering::Less => Self::Between(low, high),
            Ordering::Equal | Ordering::Greater => Self::Known(low),
        }
    }
}

/// One application's pool to one server: all of its instances on the agent's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolLevel {
    /// Stable key of the target.
    pub target: String,
    /// The server at its other end.
    pub server: ServerName,
    /// Database, when the sessions behind it are known and all of one database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Role at the server, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Name of the application.
    pub application: String,
    /// Processes that hold it.
    pub instances: u32,
    /// Most connections that all of them may open. An instance that has just started counts only in the upper end: it
    /// may be about to replace another.
    pub limit: Amount,
    /// Connections that are open.
    pub open: u32,
    /// Connections that are leased: certainly, and at most.
    pub leased: Amount,
    /// What the DSNs of all its instances say; not there when one of them cannot be read, or names no driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dsn: Option<DsnLevel>,
    /// Whether each transaction gets another connection of the server, without the statements that were prepared on the
    /// last; not there when nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_transaction: Option<bool>,
}

/// What DSNs say of how statements are prepared: names of keys and nothing else, least of all values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DsnLevel {
    /// The driver: `asyncpg`, `jdbc`.
    pub driver: String,
    /// Keys that it needs behind a pooler that hands out connections by transaction, as its documentation or the operator
    /// says; `|` between those of which one is enough.
    pub required: Vec<String>,
    /// Keys that stand in the DSN of every instance with the value that is right there.
    pub right: Vec<String>,
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerLevel {
    /// The server.
    pub server: ServerName,
    /// Every address by which the agent's host may reach it.
    pub addresses: Vec<String>,
    /// What its DSN calls it, with the port: `db.internal:5432`. Its incidents are named so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_as: Option<String>,
    /// Sessions that ordinary roles may have at once.
    pub slots: Amount,
    /// How many of them are used, by whomever.
    pub used: Amount,
    /// It is a pooler, and says whether each transaction gets another connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_transaction: Option<bool>,
}

impl Levels {
    /// What is wrong with it, if anything, as the code that refuses it; `None` when it may be stored.
    pub fn fault(&self) -> Option<&'static str> {
        if self.form != FORM {
            return Some("unknown_form");
        }
        let too_many = self.pools.len() > MAX_POOLS || self.servers.len() > MAX_SERVERS;
        if too_many || self.servers.iter().any(|it| it.addresses.len() > MAX_ADDRESSES) {
            return Some("too_many");
        }
        let dsns = self.pools.iter().filter_map(|it| it.dsn.as_ref());
        if dsns.clone().any(|it| it.required.len() > MAX_KEYS || it.right.len() > MAX_KEYS) {
            return Some("too_many");
        }
        if dsns.flat_map(|it| it.required.iter().chain(&it.right).chain([&it.driver])).any(|it| !is_key_name(it)) {
            return Some("not_a_key");
        }
        let names = self.pools.iter().map(|it| &it.server).chain(self.servers.iter().map(|it| &it.server));
        let keys = self.pools.iter().flat_map(|it| [&it.target, &it.application]);
        let keys = keys.chain(self.pools.iter().flat_map(|it| it.database.iter().chain(&it.user)));
        let keys = keys.chain(names.flat_map(|it| it.system.iter().chain([&it.address])));
        let keys = keys.chain(self.servers.iter().flat_map(|it| it.addresses.iter().chain(&it.asked_as)));
        let reasons = self.pools.iter().flat_map(|it| [&it.limit, &it.leased]);
        let reasons = reasons.chain(self.servers.iter().flat_map(|it| [&it.slots, &it.used]));
        let is_long = |it: &Amount| matches!(it, Amount::Unknown(reason) if reason.len() > MAX_LABEL_BYTES);
        if keys.map(String::len).any(|it| it > MAX_KEY_BYTES) || reasons.clone().any(is_long) {
            return Some("key_too_long");
        }
        let is_upside_down = |it: &Amount| matches!(it, Amount::Between(low, high) if low > high);
        reasons.clone().any(is_upside_down).then_some("range_upside_down")
    }
}

/// Whether a text can be the name of a DSN's key, or several names with `|` between them.
fn is_key_name(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '|');
    (1..=MAX_KEY_NAME).contains(&text.len()) && text.chars().all(is_part)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
const fn is_zero(it: &u32) -> bool {
    *it == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Batch, Record};
    use proptest::prelude::*;

    const BODY: &str = include_str!("../testdata/wire/protocol-1-levels.json");
    const WITH_KEYS: &str = include_str!("../testdata/wire/protocol-1-levels-dsn.json");

    fn recorded() -> Levels {
        read(BODY)
    }

    fn read(body: &str) -> Levels {
        let batch: Batch<'_> = serde_json::from_str(body).expect("the envelope reads");
        match serde_json::from_str(batch.records[0].get()).expect("the record reads") {
            Record::Levels(levels) => levels,
            other => panic!("another record: {other:?}"),
        }
    }

    /// Every released form stays readable: that file is never edited, later ones join it.
    #[test]
    fn reads_the_recorded_levels() {
        let levels = recorded();
        assert_eq!(levels.fault(), None);
        assert_eq!((levels.pools.len(), levels.servers.len(), levels.left_out), (3, 2, 1));
        let pool = &levels.pools[0];
        assert_eq!(
            (pool.limit.clone(), pool.open, pool.leased.clone()),
            (Amount::Known(120), 41, Amount::Between(3, 41))
        );
        assert_eq!(pool.server.system.as_deref(), Some("7312345678901234567"));
        assert!(matches!(&levels.pools[2].limit, Amount::Unknown(reason) if !reason.is_empty()));
        assert!(levels.servers[1].server.replica);
        let text = serde_json::to_string(&levels).expect("serialises");
        assert_eq!(serde_json::from_str::<Levels>(&text).expect("reads back"), levels);
    }

    #[test]
    fn reads_the_recorded_keys_of_dsns() {
        let levels = read(WITH_KEYS);
        assert_eq!(levels.fault(), None);
        let told: Vec<_> = levels.pools.iter().map(|it| (it.dsn.as_ref(), it.by_transaction)).collect();
        let dsn = DsnLevel {
            driver: "asyncpg".into(),
            required: vec!["statement_cache_size".into(), "no_prepare|raw_sql".into()],
            right: vec!["statement_cache_size".into()],
        };
        assert_eq!(told, [(Some(&dsn), Some(true)), (None, None)]);
        assert_eq!(levels.servers[0].by_transaction, Some(true));
        let text = serde_json::to_string(&levels).expect("serialises");
        assert_eq!(serde_json::from_str::<Levels>(&text).expect("reads back"), levels);
        let with = |change: &dyn Fn(&mut DsnLevel)| {
            let mut it = levels.clone();
            it.pools[0].dsn.iter_mut().for_each(change);
            it.fault()
        };
        assert_eq!(with(&|it| it.right = vec!["a".into(); MAX_KEYS + 1]), Some("too_many"));
        for text in ["", "statement_cache_size=0", "postgres://u:p@h/d", &"x".repeat(MAX_KEY_NAME + 1)] {
            assert_eq!(with(&|it| it.required[0] = text.into()), Some("not_a_key"), "{text}");
            assert_eq!(with(&|it| it.driver = text.into()), Some("not_a_key"), "{text}");
        }
    }

    #[test]
    fn what_a_later_agent_adds_is_skipped_and_a_later_form_is_refused() {
        let text = serde_json::to_string(&recorded()).expect("serialises");
        let more = text.replacen("\"open\":", "\"waiters\":7,\"open\":", 1);
        assert_eq!(serde_json::from_str::<Levels>(&more).expect("reads"), recorded());
        assert_eq!(Levels { form: FORM + 1, ..recorded() }.fault(), Some("unknown_form"));
    }

    #[test]
    fn it_is_bounded() {
        let with = |change: &dyn Fn(&mut Levels)| {
            let mut it = recorded();
            change(&mut it);
            it.fault()
        };
        assert_eq!(with(&|it| it.pools = vec![it.pools[0].clone(); MAX_POOLS + 1]), Some("too_many"));
        assert_eq!(with(&|it| it.servers[0].addresses = vec![String::new(); MAX_ADDRESSES + 1]), Some("too_many"));
        assert_eq!(with(&|it| it.pools[0].user = Some("x".repeat(MAX_KEY_BYTES + 1))), Some("key_too_long"));
        assert_eq!(with(&|it| it.pools[0].limit = Amount::Unknown("x".repeat(999))), Some("key_too_long"));
        assert_eq!(with(&|it| it.servers[0].used = Amount::Between(9, 3)), Some("range_upside_down"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let _ = serde_json::from_str::<Levels>(&text).map(|it| it.fault());
        }
    }
}
