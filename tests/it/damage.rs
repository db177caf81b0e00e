//! Damage to the files of an agent's buffer: the shipped agent starts, says what is lost, and what is left arrives.
//!
//! Hundreds of places are tried beside the buffer's own tests; here, a few with everything around it.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tickbird_tests::agent::check;
use tickbird_tests::process::run;
use tickbird_tests::{Moody, Seconds, StageError, Watch, alone, until};

const PLACES: usize = 10;

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for path in std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            found.extend(files(&path));
        } else if !path.ends_with("ballast") && path.metadata().is_ok_and(|it| it.len() > 0) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Turns the bits of some bytes in the middle of what the file holds, or cuts it there.
fn damage(file: &Path, place: usize) -> Result<(), StageError> {
    let failed = || StageError::system(format!("damage {}", file.display()));
    let bytes = std::fs::read(file).map_err(failed())?;
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |at| at + 1);
    let at = used * (place % 7 + 1) / 9;
    let open = std::fs::File::options().write(true).open(file).map_err(failed())?;
    if place % 3 == 0 {
        return open.set_len(at as u64).map_err(failed());
    }
    let turned: Vec<u8> = bytes[at..(at + 3).min(bytes.len())].iter().map(|byte| !byte).collect();
    open.write_all_at(&turned, at as u64).map_err(failed())
}

fn copy(from: &Path, to: &Path) -> Result<(), StageError> {
    run(Command::new("/bin/rm").arg("-rf").arg(to))?;
    run(Command::new("/bin/cp").arg("-a").arg(from).arg(to)).map(drop)
}

#[test]
fn an_agent_starts_on_a_damaged_buffer_and_says_what_it_lost() {
    alone(|stage| {
        let load = Moody::start()?;
        let settings = check("http.status", "hold = \"0s\"") + &load.endpoints(8);
        let mut watch = Watch::begin(stage, &settings)?;
        watch.collector.kill()?;
        until("findings wait", 30.s(), || {
            let stat = watch.agent.report("buffer stat", &[]).map_err(|error| error.to_string())?;
            if stat["lanes"][0]["backlog"].as_u64() > Some(20) { Ok(()) } else { Err(stat.to_string()) }
        })?;
        watch.agent.kill()?;
        let (buffer, whole) = (watch.agent.state_directory().join("buffer"), stage.room("whole")?.join("buffer"));
        copy(&buffer, &whole)?;
        for place in 0..PLACES {
            copy(&whole, &buffer)?;
            let all = files(&buffer);
            let file = &all[place * all.len() / PLACES];
            damage(file, place)?;
            let what = format!("{} was damaged", file.display());
            watch.agent.run().map_err(|error| StageError::Failed { what: what.clone(), said: error.to_string() })?;
            watch.agent.kill()?;
            let stat = watch.agent.report("buffer stat", &[])?;
            for lane in stat["lanes"].as_array().into_iter().flatten() {
                assert_eq!(lane["whole"], true, "{what}: {lane}");
            }
        }
        // From the last one's remains everything still goes its way.
        load.recovers();
        watch.collector.serve()?;
        watch.agent.run()?;
        until("the backlog has gone", 60.s(), || {
            let stat = watch.agent.report("buffer stat", &[]).map_err(|error| error.to_string())?;
            let lanes = stat["lanes"].as_array().cloned().unwrap_or_default();
            if lanes.iter().all(|lane| lane["backlog"] == 0 && lane["whole"] == true) {
                Ok(())
            } else {
                Err(stat.to_string())
            }
        })
    });
}
