//! A power cut at any moment: what was acknowledged is in the store, whole and once.
//!
//! A process lets an agent send batches, and says aloud what was acknowledged; its writes are replayed into copies that hold
//! what was synced by then and nothing else, and copies that hold every prefix of what was written. Each is opened.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use tickbird_shared::{Change, Lane, Severity, Timestamp};
use tickbird_tests::power_cut::{Files, INSIDE, What, traced};

use crate::alert::Receiver;
use crate::store::{Aside, FindingFilter, LaneKey, Rows, check, open_sound};
use crate::testbed::{AGENT, TENANT, Testbed, clock};

const BATCHES: usize = 24;

/// What the traced process does.
async fn works(directory: &Path) {
    let mut bed = Testbed::within(directory, vec![Receiver::new("ops")]);
    // As `init` does it.
    File::open(directory.join("collector")).and_then(|it| it.sync_all()).expect("synced");
    let mut said = File::create(directory.join("said")).expect("created");
    said.write_all(b"0\n").expect("said");
    for number in 1..=BATCHES {
        let change = if number % 6 == 0 { Change::Cleared } else { Change::Began };
        let target = format!("pool:shop-{}/main", number - usize::from(number % 6 == 0));
        // Its answer is an acknowledgement.
        bed.finds("pool.leak", &target, Severity::Critical, change).await;
        said.write_all(format!("{number}\n").as_bytes()).expect("said");
        bed.ledger.tick().await.expect("is there");
    }
    // The log of changes goes into the store: other files are written then.
    bed.ends().await;
    said.write_all(b"end\n").expect("said");
}

fn findings(rows: Rows<'_>) -> Vec<String> {
    let filter = FindingFilter { tenant: TENANT.into(), limit: 1_000, ..FindingFilter::default() };
    let mut targets: Vec<String> = rows.findings(&filter).expect("reads").into_iter().map(|it| it.target).collect();
    targets.reverse();
    targets
}

/// Everything acknowledged is there once and nothing is damaged; whoever fires was decided about and has its message.
fn holds(copy: &Path, acknowledged: usize) {
    let path = copy.join("store.db");
    let writer = open_sound(&path, clock()).expect("it opens");
    assert_eq!(Aside::of(&path).newest(), None, "nothing is damaged");
    let rows = writer.rows();
    let found = findings(rows);
    assert!((acknowledged..=acknowledged + 1).contains(&found.len()), "{} of {acknowledged}", found.len());
    let (tenant, agent, epoch) = (TENANT.into(), AGENT.into(), Testbed::epoch('A'));
    let mark = rows.lane(&LaneKey { tenant, agent, epoch, lane: Lane::Urgent }).expect("reads");
    assert_eq!(
        mark.map_or(0, |it| it.through),
        found.len() as u64,
        "the mark and what it stands for are of one transaction"
    );
    let firing = rows.live_incidents(Timestamp::MIN).expect("reads");
    for number in (1..=found.len()).filter(|it| it % 6 != 0) {
        let target = format!("pool:shop-{number}/main");
        let incident =
            firing.iter().find(|it| it.target == target).unwrap_or_else(|| panic!("{target} has an incident"));
        let decided = rows.decisions(TENANT, &incident.id).expect("reads");
        let message = decided.iter().find_map(|it| it.message.clone()).expect("somebody is told");
        assert!(rows.message(TENANT, &message).expect("reads").is_some(), "{target} has its message");
    }
    drop(writer);
    assert!(check(&path).expect("reads").is_empty());
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_moment() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    if let Some(directory) = std::env::var_os(INSIDE) {
        return runtime.block_on(works(Path::new(&directory)));
    }
    // In memory: thousands of syncs of copies say nothing about a disk.
    let room = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
    let root = room.path().canonicalize().expect("there");
    let work = root.join("work");
    std::fs::create_dir(&work).expect("created");
    let name = "ledger::power_cut::what_was_acknowledged_survives_a_power_cut_at_any_moment";
    let calls = traced(name, &work, &root.join("trace"));

    let (store, said) = (work.join("collector"), work.join("said"));
    let (mut files, mut acknowledged, mut cuts, mut failed, mut ended) = (Files::default(), None, 0, Vec::new(), false);
    for (at, call) in calls.iter().enumerate() {
        files.apply(call);
        let is_lasting = match &call.what {
            What::Written { path, bytes, .. } if *path == said => {
                match String::from_utf8_lossy(bytes).trim().parse::<usize>() {
                    Ok(number) => acknowledged = Some(number),
                    Err(_) => ended = true,
                }
                true
            }
            What::Synced(_) | What::Pushed(_) => continue,
            what if what.is_within(&store) => false,
            _ => continue,
        };
        // Before its first word there was no collector yet.
        let Some(acknowledged) = acknowledged else { continue };
        cuts += 1;
        let copy = root.join("copy");
        if is_lasting {
            files.write_lasting(&store, &copy)
        } else {
            files.write_all(&store, &copy)
        }
        let outcome = std::panic::catch_unwind(|| holds(&copy, acknowledged));
        if let Err(panic) = outcome {
            let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
            let kind = call.what.in_short();
            failed.push(format!("cut after call {at} ({kind}), lasting: {is_lasting}: {}", text.unwrap_or("?")));
        }
        std::fs::remove_dir_all(&copy).expect("removed");
    }
    assert_eq!((acknowledged, ended), (Some(BATCHES), true), "the trace was read to its end");
    assert!(failed.is_empty(), "{} of {cuts} cuts:\n{}", failed.len(), failed.join("\n"));
}
