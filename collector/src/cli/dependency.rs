//! `dependency …`: which servers are used from where.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use serde_json::json;

use super::table::{plain, table, time};
use super::{CliError, Where};
use crate::store::{AgentRow, DependencyRow, Edge};
use crate::token::DEFAULT_TENANT;

/// Shows who depends on which server, as agents' sockets said.
#[derive(Debug, Subcommand)]
pub(super) enum Dependency {
    List(List),
}

/// Lists the servers that are used from each agent's host, with the applications that use them.
///
/// While an incident says that such a server is away or full, nobody who knows of it is told what these applications suffer from that. What was not
/// seen for a day is forgotten; [[depends_on]] of the configuration declares what sockets do not show.
#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    at: Where,
}

impl Dependency {
    pub(super) fn run(self) -> Result<(), CliError> {
        let Self::List(List { at }) = self;
        let writer = at.writer()?;
        let rows = writer.rows();
        let agents = rows.all_agents()?;
        let found: Vec<_> = rows.dependencies()?.into_iter().filter(|it| it.tenant == DEFAULT_TENANT).collect();
        let host = |row: &DependencyRow| {
            let is_it = |it: &&AgentRow| it.tenant == row.tenant && it.id == row.agent;
            agents.iter().find(is_it).map_or_else(|| row.agent.clone(), |it| it.host.clone())
        };
        let edges: Vec<_> = found.iter().flat_map(|row| row.edges.iter().map(move |edge| (row, edge))).collect();
        let document = |(row, (server, edge)): &(&DependencyRow, (&String, &Edge))| {
            json!({
                "agent": row.agent, "host": host(row), "server": server, "names": edge.names,
                "applications": edge.applications, "pools": edge.pools, "seen_at": edge.seen_at,
            })
        };
        let json = json!({ "dependencies": edges.iter().map(document).collect::<Vec<_>>() });
        at.print(&json, || {
            let joined = |all: &BTreeSet<String>| plain(&all.iter().cloned().collect::<Vec<_>>().join(", "));
            let of = |(row, (server, edge)): &(&DependencyRow, (&String, &Edge))| {
                [plain(&host(row)), plain(server), joined(&edge.applications), joined(&edge.names), time(edge.seen_at)]
            };
            let header = ["HOST", "SERVER", "USED BY", "CALLED", "SEEN"];
            table(header, &edges.iter().map(of).collect::<Vec<_>>())
        })
    }
}
