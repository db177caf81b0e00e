//! Streaming replication between private servers: a replica is made, promoted, or a former primary follows.

use std::process::Command;

use crate::postgres::{Owner, Postgres};
use crate::process::{installed, run};
use crate::stage::{Stage, StageError};
use crate::wait::{Seconds, until};

/// A streaming replica of `primary`, by `pg_basebackup`, that has replayed everything.
pub fn of(stage: &Stage, primary: &Postgres) -> Result<Postgres, StageError> {
    let program = installed("/usr/lib/postgresql/15/bin/pg_basebackup", "postgresql-client-15")?;
    let (room, owner) = (stage.room("replica")?, Owner::of_servers()?);
    owner.give(&room)?;
    let mut backup = owner.command(&program);
    backup.args(["--no-password", "--no-sync", "--checkpoint=fast", "--write-recovery-conf", "-U", "postgres"]);
    backup.args(["-p", &primary.port().to_string(), "-h"]).arg(primary.room()).arg("-D").arg(room.join("data"));
    run(&mut backup)?;
    let replica = primary.copy(room)?;
    is_fed(primary)?;
    Ok(replica)
}

/// Makes a replica the primary of its cluster.
pub fn promote(replica: &Postgres) -> Result<(), StageError> {
    replica.sql("SELECT pg_promote()").map(drop)
}

/// Starts a former primary, which was stopped, as a replica of its successor.
pub fn follow(former: &mut Postgres, successor: &Postgres) -> Result<(), StageError> {
    let data = former.room().join("data");
    let signal = data.join("standby.signal");
    std::fs::write(&signal, "").map_err(StageError::system("write standby.signal"))?;
    Owner::of_servers()?.give(&signal)?;
    let place = format!("host={} port={} user=postgres", successor.room().display(), successor.port());
    let mut append = Command::new("/bin/sh");
    append.args(["-c", "echo \"primary_conninfo = '$1'\" >> \"$2\"", "sh", &place]);
    run(append.arg(data.join("postgresql.auto.conf")))?;
    former.serve()?;
    is_fed(successor)
}

fn is_fed(primary: &Postgres) -> Result<(), StageError> {
    until("the replica streams", 30.s(), || {
        let rows = primary.sql("SELECT state FROM pg_stat_replication").map_err(|error| error.to_string())?;
        if rows == [["streaming"]] { Ok(()) } else { Err(format!("{rows:?}")) }
    })
}
