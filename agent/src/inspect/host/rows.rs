//! Rows of pools as they leave the inspector: whose they are, what they may hold.

use std::collections::HashMap;
use std::time::Duration;

use super::config::Config;
use super::endpoints::port_of_path;
use super::pools::{self, Party};
use super::watched::Watched;
use super::{DsnRow, Limit, Owner, PoolRow, Vantage};
use crate::discover::processes::Processes;
use crate::discover::{End, Instance, TargetKey};
use crate::inspect::{Reason, Value};
use crate::kernel::KernelError;
use crate::kernel::proc::Proc;

/// The row of a pool; `None` when its process ended meanwhile.
pub(super) fn row_of(
    pool: pools::Seen,
    service: Option<&'static str>,
    processes: &Processes,
    config: &Config,
    ages: &HashMap<Instance, Duration>,
    proc: &mut Proc,
    watched: &mut Watched,
) -> Option<PoolRow> {
    let remote = pool.key.remote;
    let port = match &remote {
        End::Tcp(remote) | End::Apart(remote) => remote.port(),
        // Without a port in its name it is the default one's.
        End::Unix(path) => port_of_path(path).unwrap_or_default(),
    };
    let closes_incomplete = matches!(remote, End::Unix(_));
    let mut dsn = DsnRow::default();
    let (owner, target, limit, process_age) = match pool.key.party {
        Party::Process(instance) => {
            let process = processes.get(instance.pid).filter(|process| process.instance == instance)?;
            let application = process.application.clone();
            let target = TargetKey::pool(&application.name, application.role, &remote);
            let declared = config.apps.iter().find(|app| application.declared && app.name == application.name);
            let limit = match declared.and_then(|app| app.pool_limit) {
                Some(limit) => Limit { value: Value::Known(limit.into()), source: "configuration".into() },
                None => limit_of(proc, watched, instance, process.uid, service, port),
            };
            if let Some(app) = declared {
                (dsn.pooler, dsn.required) = (app.pooler, app.required_keys.clone());
            }
            if let Some(Ok(settings)) = watched.settings(proc, instance) {
                dsn.named = settings.named_for(port);
            }
            (Owner::Seen { application, instance }, target, limit, ages.get(&instance).copied())
        }
        Party::Hidden(uid, cgroup) => {
            let target = TargetKey::pool(&Owner::unseen(uid, cgroup), "unseen", &remote);
            let reason = Reason::NotYet("the settings of the process");
            (
                Owner::NotVisible { uid, cgroup },
                target,
                Limit { value: Value::Unknown(reason), source: "none".into() },
                None,
            )
        }
    };
    let pools::Seen { connections, births, closes, presumed, .. } = pool;
    Some(PoolRow {
        target,
        owner,
        remote,
        service,
        connections,
        births,
        closes,
        presumed,
        closes_incomplete,
        vantage: Vantage::Own,
        process_age,
        limit,
        dsn,
    })
}

fn limit_of(
    proc: &mut Proc,
    watched: &mut Watched,
    instance: Instance,
    uid: u32,
    service: Option<&str>,
    port: u16,
) -> Limit {
    let unknown = |reason| Limit { value: Value::Unknown(reason), source: "none".into() };
    match watched.settings(proc, instance) {
        Some(Ok(settings)) => match settings.limit_for(service, port) {
            Some(bound) if bound.low == bound.high => {
                Limit { value: Value::Known(bound.low.into()), source: bound.source.into() }
            }
            Some(bound) => {
                Limit { value: Value::Between(bound.low.into(), bound.high.into()), source: bound.source.into() }
            }
            None => unknown(Reason::NotYet("no pool limit is configured, nor set in the process's environment")),
        },
        Some(Err(KernelError::Denied)) => unknown(Reason::Denied(format!("the environment of processes of uid {uid}"))),
        Some(Err(_)) | None => unknown(Reason::NotYet("the settings of the process")),
    }
}

pub(super) fn pid_of(owner: &Owner) -> u32 {
    match owner {
        Owner::Seen { instance, .. } => instance.pid,
        Owner::NotVisible { .. } => 0,
    }
}
