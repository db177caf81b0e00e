//! Which server a level is about: by the server's own identifier, else by an address that means the same to everybody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use tickbird_shared::levels::ServerName;

use super::sum::Told;
use crate::aggregate::Key;

/// Tenant and identity of a server.
pub(super) type Server = (String, String);

/// Which servers are known to be at an address of a tenant.
#[derive(Debug, Default)]
pub(super) struct Addresses(BTreeMap<(String, String), BTreeSet<String>>);

impl Addresses {
    /// As everybody who asks a server says.
    pub(super) fn of<'a>(told: impl Iterator<Item = (&'a Key, Told<'a>)>) -> Self {
        let mut all = Self::default();
        for ((tenant, agent), it) in told {
            for level in &it.levels.servers {
                let server = identity(agent, &level.server);
                for address in level.addresses.iter().chain([&level.server.address]) {
                    all.0.entry((tenant.clone(), place(agent, address))).or_default().insert(server.clone());
                }
            }
        }
        all
    }

    /// The one server that an address alone leads to, when there is exactly one that says so.
    pub(super) fn resolve(&self, tenant: &str, agent: &str, name: &ServerName) -> Option<String> {
        if name.system.is_some() {
            return None;
        }
        let known = self.0.get(&(tenant.to_owned(), place(agent, &name.address)))?;
        (known.len() == 1).then(|| known.first().cloned()).flatten()
    }
}

/// What a server is told apart by: its own identifier, of a replica with its place, else its place alone.
pub(crate) fn identity(agent: &str, name: &ServerName) -> String {
    match &name.system {
        Some(system) if name.replica => format!("system/{system}/{}", place(agent, &name.address)),
        Some(system) => format!("system/{system}"),
        None => place(agent, &name.address),
    }
}

/// An address as everybody may know it: one that only means something on its host is named with its agent.
pub(crate) fn place(agent: &str, address: &str) -> String {
    let is_shared = |it: SocketAddr| !it.ip().to_canonical().is_loopback() && !it.ip().is_unspecified();
    // A name with a port is resolved by each host for itself; `localhost` is what it mostly is when it is not resolved.
    let is_name = |it: &str| !["unix", "localhost", "netns:"].iter().any(|local| it.starts_with(local));
    let shared = address.parse().map_or_else(|_| is_name(address), is_shared);
    if shared { address.to_owned() } else { format!("{agent}/{address}") }
}
