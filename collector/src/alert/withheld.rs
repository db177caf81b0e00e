//! What is held back and by what, and what is to be decided anew because that is gone. By index, so that a thousand causes that
//! end in one second cost what they held, and a part of it at a time.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tickbird_shared::Timestamp;

use super::by_receiver::ByReceiver;
use super::{IncidentKey, Kind};

/// What holds back begins with it where it is a route that is mute.
pub(super) const MUTE: &str = "mute:";
/// How long what another incident explained may take to clear with it. Else each cause that ends would tell of all that it caused.
pub(super) const GRACE: Duration = Duration::from_secs(30);
/// Incidents that are decided anew at once: some 20 ms of the ledger.
pub(super) const AT_ONCE: usize = 500;

/// What is held back from one receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) kind: Kind,
    pub(super) by: String,
}

/// Something that held back is gone, and these are decided anew now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lapse {
    /// Its tenant.
    pub tenant: String,
    /// Its id; empty where it is still there, and what it held is about something else now.
    pub holder: String,
    /// It is a silence, and nothing of what it held is left.
    pub ends_silence: bool,
    /// Ids of incidents.
    pub incidents: BTreeSet<String>,
    /// Why, for the record.
    pub reason: String,
}

#[derive(Debug)]
struct Release {
    tenant: String,
    holder: String,
    is_silence: bool,
    reason: String,
    due: Timestamp,
    left: BTreeSet<String>,
}

/// Everything that is held back.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    of: HashMap<IncidentKey, ByReceiver<Held>>,
    /// Incidents by tenant and what holds them.
    by: HashMap<IncidentKey, BTreeSet<String>>,
    releases: Vec<Release>,
}

impl Holdings {
    /// What is held back of an incident from a receiver.
    pub(super) fn get(&self, key: &IncidentKey, receiver: &str) -> Option<&Held> {
        self.of.get(key)?.get(receiver)
    }

    /// Puts something in the place of what was held back, or nothing; true when something was.
    pub(super) fn set(&mut self, key: &IncidentKey, receiver: &str, held: Option<Held>) -> bool {
        if held.is_none() && !self.of.contains_key(key) {
            return false;
        }
        let them = self.of.entry(key.clone()).or_default();
        if let Some(held) = &held {
            self.by.entry((key.0.clone(), held.by.clone())).or_default().insert(key.1.clone());
        }
        let was = match held {
            Some(held) => them.insert(receiver, held),
            None => them.remove(receiver),
        };
        let still: BTreeSet<String> = them.values().map(|it| it.by.clone()).collect();
        if them.is_empty() {
            self.of.remove(key);
        }
        if let Some(was) = &was
            && !still.contains(&was.by)
        {
            self.drop_from(&key.0, &was.by, &key.1);
        }
        was.is_some()
    }

    /// Forgets an incident: it is over.
    pub(super) fn remove(&mut self, key: &IncidentKey) {
        for (_, held) in self.of.remove(key).unwrap_or_default() {
            self.drop_from(&key.0, &held.by, &key.1);
        }
    }

    fn drop_from(&mut self, tenant: &str, holder: &str, incident: &str) {
        let place = (tenant.to_owned(), holder.to_owned());
        if let Some(them) = self.by.get_mut(&place) {
            them.remove(incident);
            if them.is_empty() {
                self.by.remove(&place);
            }
        }
    }

    /// All that hold something, by tenant and id.
    pub(super) fn holders(&self) -> impl Iterator<Item = &IncidentKey> {
        self.by.keys()
    }

    /// What holds an incident back, and from which receiver.
    pub(super) fn of(&self, key: &IncidentKey) -> impl Iterator<Item = (&str, &str)> {
        self.of.get(key).into_iter().flat_map(ByReceiver::iter).map(|(receiver, it)| (receiver, it.by.as_str()))
    }

    /// Whether something of an incident is held back.
    pub(super) fn has(&self, key: &IncidentKey) -> bool {
        self.of.contains_key(key)
    }

    /// A holder is gone: what it held is decided anew from `due` on.
    pub(super) fn release(&mut self, (tenant, holder): IncidentKey, is_silence: bool, reason: String, due: Timestamp) {
        let left = self.by.get(&(tenant.clone(), holder.clone())).cloned().unwrap_or_default();
        let is_same = |it: &&mut Release| it.tenant == tenant && it.holder == holder;
        if let Some(there) = self.releases.iter_mut().find(is_same) {
            there.left.extend(left);
            // It held again meanwhile.
            there.due = there.due.max(due);
        } else if !left.is_empty() || is_silence {
            self.releases.push(Release { tenant, holder, is_silence, reason, due, left });
        }
    }

    /// One incident is decided anew, whatever holds it.
    pub(super) fn release_one(&mut self, key: &IncidentKey, reason: String, due: Timestamp) {
        let left = BTreeSet::from([key.1.clone()]);
        let (tenant, holder) = (key.0.clone(), String::new());
        self.releases.push(Release { tenant, holder, is_silence: false, reason, due, left });
    }

    /// What is due now, or was put off by a clock that was ahead; not all of it at once.
    pub(super) fn due(&mut self, now: Timestamp) -> Vec<Lapse> {
        let latest = now.saturating_add(GRACE).unwrap_or(Timestamp::MAX);
        let (mut lapses, mut room, of) = (Vec::new(), AT_ONCE, &self.of);
        self.releases.retain_mut(|it| {
            if it.due > now && it.due <= latest || room == 0 {
                return true;
            }
            // What was told meanwhile, or is over, has nothing to be decided anew.
            it.left.retain(|id| of.contains_key(&(it.tenant.clone(), id.clone())));
            let rest = match it.left.iter().nth(room).cloned() {
                Some(first) => it.left.split_off(&first),
                None => BTreeSet::new(),
            };
            let incidents = std::mem::replace(&mut it.left, rest);
            room -= incidents.len();
            let is_done = it.left.is_empty();
            lapses.push(Lapse {
                tenant: it.tenant.clone(),
                holder: it.holder.clone(),
                ends_silence: it.is_silence && is_done,
                incidents,
                reason: it.reason.clone(),
            });
            !is_done
        });
        lapses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).expect("in range")
    }

    fn key(id: &str) -> IncidentKey {
        ("default".into(), id.into())
    }

    fn held(by: &str) -> Option<Held> {
        Some(Held { kind: Kind::Firing, by: by.into() })
    }

    #[test]
    fn a_holder_holds_an_incident_while_it_holds_it_from_anybody() {
        let mut holdings = Holdings::default();
        assert!(!holdings.set(&key("i"), "ops", held("sil_1")));
        assert!(!holdings.set(&key("i"), "pager", held("sil_1")));
        assert!(holdings.set(&key("i"), "ops", None));
        assert_eq!(holdings.holders().collect::<Vec<_>>(), [&key("sil_1")]);
        assert!(holdings.set(&key("i"), "pager", held("sil_2")));
        assert_eq!(holdings.holders().collect::<Vec<_>>(), [&key("sil_2")]);
        holdings.remove(&key("i"));
        assert!(
            holdings.holders().next().is_none() && !holdings.has(&key("i")) && !holdings.set(&key("i"), "ops", None)
        );
    }

    #[test]
    fn a_large_release_is_taken_in_parts_and_a_silence_ends_with_the_last() {
        let mut holdings = Holdings::default();
        let count = 2 * AT_ONCE + 1;
        for number in 0..count {
            holdings.set(&key(&format!("i{number:06}")), "ops", held("sil_1"));
        }
        holdings.release(key("sil_1"), true, "it has ended".into(), at(0));
        holdings.release(key("nothing"), false, "it is gone".into(), at(0));
        let mut parts = Vec::new();
        while let [lapse] = &holdings.due(at(0))[..] {
            parts.push((lapse.incidents.len(), lapse.ends_silence));
        }
        assert_eq!(parts, [(AT_ONCE, false), (AT_ONCE, false), (1, true)]);
    }

    #[test]
    fn what_is_put_off_waits_for_its_time_and_no_longer_when_the_clock_is_set_back() {
        let mut holdings = Holdings::default();
        holdings.set(&key("i"), "ops", held("x"));
        let release = |holdings: &mut Holdings| holdings.release(key("x"), false, "over".into(), at(30));
        release(&mut holdings);
        assert!(holdings.due(at(29)).is_empty());
        assert_eq!(holdings.due(at(30)).len(), 1);
        release(&mut holdings);
        holdings.release(key("x"), false, "over".into(), at(58));
        assert!(holdings.due(at(57)).is_empty(), "it held again, and the grace begins anew");
        assert_eq!(holdings.due(at(-3_600)).len(), 1, "the clock went back by an hour");
    }
}
