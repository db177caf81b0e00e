//! What the names of databases lead to: the system's resolver, asked again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::network;
use crate::inspect::{About, HostLook, Inspector, Look, Reading, Reason, Rows, ServerLook};

/// Most names that are asked for: an application has one or two databases.
const MAX_NAMES: usize = 32;
/// An answer later than this counts as none in this look.
const TIMEOUT: Duration = Duration::from_secs(3);

/// What this inspector reads.
pub static ABOUT: About = About {
    name: "resolver",
    source: "getaddrinfo for the names in DSNs: those of this configuration, and of processes whose environment is readable",
    needs: "nothing",
    cost: "one question to the system's resolver for each name, every 15 s",
    measures: &[],
};

/// Names that are worth asking for, told by those who come across them. Cheap to clone; every clone is the same list.
#[derive(Debug, Clone, Default)]
pub struct Names {
    by_source: Arc<Mutex<BTreeMap<String, BTreeSet<Arc<str>>>>>,
}

impl Names {
    /// Takes the names in the DSNs of the processes that hold pools.
    pub fn learn_host(&self, look: &HostLook) {
        self.set("host", look.pools.iter().filter_map(|it| it.dsn.named.as_ref()).map(|it| it.host.clone()));
    }

    /// Takes the name by which a configured server is reached.
    pub fn learn_server(&self, source: &str, look: &ServerLook) {
        self.set(source, look.target.server_host().map(Arc::from));
    }

    /// Replaces what one source has told. Addresses are no names: they lead to themselves.
    fn set(&self, source: &str, hosts: impl IntoIterator<Item = Arc<str>>) {
        let names = hosts.into_iter().filter(|it| it.parse::<IpAddr>().is_err()).collect();
        let mut by_source = self.by_source.lock().unwrap_or_else(PoisonError::into_inner);
        by_source.insert(source.to_owned(), names);
    }

    fn all(&self) -> Vec<Arc<str>> {
        let by_source = self.by_source.lock().unwrap_or_else(PoisonError::into_inner);
        let all: BTreeSet<&Arc<str>> = by_source.values().flatten().collect();
        all.into_iter().take(MAX_NAMES).cloned().collect()
    }
}

/// One look at all names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamesLook {
    /// Each name with what it leads to.
    pub answers: Vec<Answer>,
}

/// What one name leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The name.
    pub host: Arc<str>,
    /// Its addresses as sockets show them; `Err` when it has none, or nobody answered.
    pub addresses: Result<Vec<IpAddr>, Reason>,
}

/// Asks the system's resolver.
#[derive(Debug)]
pub struct NamesInspector {
    names: Names,
    /// Questions that nobody has answered yet: a resolver that hangs is not asked twice.
    asked: BTreeMap<Arc<str>, JoinHandle<Result<Vec<IpAddr>, Reason>>>,
}

impl NamesInspector {
    /// An inspector of these names.
    pub const fn new(names: Names) -> Self {
        Self { names, asked: BTreeMap::new() }
    }
}

impl Inspector for NamesInspector {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn name(&self) -> String {
        "resolver".to_owned()
    }

    fn inspect<'a>(&'a mut self, _now: Duration) -> Look<'a> {
        Box::pin(async move {
            let wanted = self.names.all();
            self.asked.retain(|host, _| wanted.contains(host));
            for host in &wanted {
                self.asked.entry(host.clone()).or_insert_with(|| tokio::spawn(ask(host.clone())));
            }
            let deadline = tokio::time::Instant::now() + TIMEOUT;
            let mut look = NamesLook::default();
            for host in wanted {
                let Some(asked) = self.asked.get_mut(&host) else { continue };
                let addresses = match tokio::time::timeout_at(deadline, asked).await {
                    Ok(answer) => {
                        self.asked.remove(&host);
                        answer.unwrap_or(Err(Reason::NotYet("an answer of the resolver")))
                    }
                    Err(_) => Err(Reason::Unreachable(format!("the resolver for {host}: timed out"))),
                };
                look.answers.push(Answer { host, addresses });
            }
            Reading { rows: Rows::Names(look), observations: Vec::new() }
        })
    }
}

async fn ask(host: Arc<str>) -> Result<Vec<IpAddr>, Reason> {
    // The wait is bounded by the caller, who comes back for a late answer.
    let answer = network::resolve(&host, 0, Duration::MAX).await;
    let addresses = answer.map_err(|error| Reason::Unreachable(format!("{host}: {}", network::said(&error))))?;
    Ok(addresses.into_iter().map(|it| it.ip()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn look(inspector: &mut NamesInspector) -> NamesLook {
        match inspector.inspect(Duration::ZERO).await.rows {
            Rows::Names(look) => look,
            other => panic!("not names: {other:?}"),
        }
    }

    #[tokio::test]
    async fn names_lead_somewhere_addresses_are_not_asked_for_and_impossible_names_say_why() {
        let names = Names::default();
        let mut inspector = NamesInspector::new(names.clone());
        assert_eq!(look(&mut inspector).await, NamesLook::default());
        names.set("one", ["localhost".into(), "10.0.0.5".into(), "::1".into()]);
        names.set("two", ["no such name".into(), "localhost".into()]);
        let found = look(&mut inspector).await.answers;
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].addresses.as_ref().is_ok_and(|it| it.iter().all(IpAddr::is_loopback)), "{found:?}");
        assert!(found[1].addresses.as_ref().is_err_and(Reason::is_blind), "{found:?}");
        names.set("two", []);
        assert_eq!(look(&mut inspector).await.answers.len(), 1);
    }
}
