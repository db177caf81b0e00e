//! Pools that still talk to an address to which their database's name does not lead any more.
//!
//! Only an address that the name was seen to lead to counts: another one may be another server, or a service address.
//! The resolver does not tell how long an answer holds: the bound stands for two such times, and a connection counts once
//! it is older than one.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::heard::Heard;
use super::row::{Offender, case, connections};
use super::{Instances, Subject, Tracks, place};
use crate::inspect::resolver::NamesLook;
use crate::inspect::{Reason, Value};
use crate::judge::Moment;
use crate::judge::defaults::CheckId;
use crate::judge::evidence::object;
use crate::judge::threshold::Seen;

/// The last so many answers count as one: a round robin shows a few addresses at a time.
const ANSWERS: usize = 10;
/// After so many questions without an answer it is not known where the name leads.
const FAILURES: u32 = 3;
/// Most addresses of one name that are remembered.
const MAX_ADDRESSES: usize = 64;

/// What names led to so far.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<Arc<str>, Name>);

#[derive(Debug, Default)]
struct Name {
    answers: VecDeque<Vec<IpAddr>>,
    /// When each address was last among them.
    last_seen: BTreeMap<IpAddr, Duration>,
    failures: u32,
    failed: Option<Reason>,
}

impl Names {
    /// Takes new answers in.
    pub(super) fn learn(&mut self, look: &NamesLook, now: Moment) {
        self.0.retain(|host, _| look.answers.iter().any(|it| it.host == *host));
        for answer in &look.answers {
            let name = self.0.entry(answer.host.clone()).or_default();
            match &answer.addresses {
                Ok(addresses) => name.learn(addresses, now.mono),
                Err(reason) => {
                    name.failures = name.failures.saturating_add(1);
                    name.failed = Some(reason.clone());
                }
            }
        }
    }

    pub(super) fn judge(&self, pools: &Instances<'_>, heard: Heard<'_>, now: Moment, tracks: &mut Tracks) {
        for (target, rows) in pools {
            let Some(address) = rows[0].remote.address().map(|it| it.ip().to_canonical()) else { continue };
            let named = self.0.iter().filter_map(|(host, name)| Some((host, name, *name.last_seen.get(&address)?)));
            let Some((host, name, last)) = named.max_by_key(|(_, _, last)| *last) else { continue };
            let gone = now.mono.saturating_sub(last);
            let mut old: Vec<Offender<'_>> = connections(rows)
                .filter(|(_, it)| it.seen_for >= gone / 2)
                .map(|(pool, it)| Offender { pool, connection: it, age_seconds: it.seen_for.as_secs_f64() })
                .collect();
            old.sort_by(|a, b| b.age_seconds.total_cmp(&a.age_seconds));
            let value = match &name.failed {
                Some(reason) if name.failures >= FAILURES => Value::Unknown(reason.clone()),
                _ if old.is_empty() || name.leads_to(address) => Value::Known(0.0),
                _ => Value::Known(gone.as_secs_f64()),
            };
            let place = place(rows[0]);
            let subject = Subject { place: Some(&place), ..Subject::of(CheckId::StaleDns, target) };
            tracks.observe(subject, Seen::value(value), now, || {
                let what =
                    format!("to which {host} has not led for {} s: it leads to {}", gone.as_secs(), name.in_words());
                let rule = "getaddrinfo: the union of the last 10 answers, every 15 s";
                let mut case = case(rows, &old, heard, rule, &what);
                case.evidence.extend(object(json!({
                    "name": host,
                    "name_leads_to": name.answers.back(),
                    "seconds_since_it_led_here": gone.as_secs(),
                })));
                case
            });
        }
    }
}

impl Name {
    fn learn(&mut self, addresses: &[IpAddr], now: Duration) {
        (self.failures, self.failed) = (0, None);
        self.last_seen.extend(addresses.iter().map(|it| (*it, now)));
        while self.last_seen.len() > MAX_ADDRESSES {
            let oldest = self.last_seen.iter().min_by_key(|(_, at)| **at).map(|(address, _)| *address);
            self.last_seen.retain(|address, _| Some(*address) != oldest);
        }
        self.answers.push_back(addresses.to_vec());
        if self.answers.len() > ANSWERS {
            self.answers.pop_front();
        }
    }

    fn leads_to(&self, address: IpAddr) -> bool {
        self.answers.iter().flatten().any(|it| *it == address)
    }

    fn in_words(&self) -> String {
        let last = self.answers.back().map(Vec::as_slice).unwrap_or_default();
        let shown: Vec<String> = last.iter().take(4).map(ToString::to_string).collect();
        shown.join(", ")
    }
}
