//! A power cut at the collector cannot be tried; its system calls show that no answer leaves before the store is synced.

use std::collections::BTreeMap;

use tickbird_tests::agent::{User, check};
use tickbird_tests::collector::receiver;
use tickbird_tests::{Agent, Collector, Moody, Seconds, StageError, Webhook, alone, until};

/// Larger than what an idle agent says: a batch.
const BATCH: i64 = 600;
/// So many answers are looked at.
const ANSWERS: usize = 10;

/// Since the last batch came on a connection.
#[derive(Default)]
struct Since {
    has_written: bool,
    has_synced: bool,
}

/// Counts answers that followed a synced write of the store's log, and names those that followed one that was not.
fn answers(trace: &str, agents: &str) -> (usize, Vec<String>) {
    let mut begun: BTreeMap<&str, &str> = BTreeMap::new();
    let mut open: BTreeMap<String, Since> = BTreeMap::new();
    let (mut good, mut bad) = (0, Vec::new());
    for line in trace.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let (is_begin, is_end) = (!rest.starts_with("<... "), !rest.ends_with("<unfinished ...>"));
        if is_begin && !is_end {
            begun.insert(thread, rest);
        }
        let call = if is_begin { rest } else { begun.remove(thread).unwrap_or_default() };
        let result =
            rest.rsplit_once(" = ").and_then(|(_, it)| it.split(' ').next()?.parse::<i64>().ok()).unwrap_or(-1);
        let name = call.split('(').next().unwrap_or_default();
        // The name of a connection has an arrow in it.
        let file = call.split_once('<').map_or("", |(_, rest)| {
            let ends = [">,", ">)", "> "].iter().filter_map(|end| rest.find(end));
            ends.min().map_or("", |end| &rest[..end])
        });
        let is_agent = file.contains(&format!("[{agents}->"));
        match name {
            "read" | "recvfrom" if is_agent && is_end && result >= BATCH => {
                open.insert(file.to_owned(), Since::default());
            }
            "pwrite64" if file.ends_with("-wal") && is_end => open.values_mut().for_each(|it| it.has_written = true),
            // One that began before the write promises nothing for it; one thread writes and syncs, so none does.
            "fsync" | "fdatasync" if file.ends_with("-wal") && is_end && result == 0 => {
                open.values_mut().for_each(|it| it.has_synced |= it.has_written);
            }
            "write" | "writev" | "sendto" | "sendmsg" if is_agent && is_begin => match open.remove(file) {
                Some(Since { has_written: true, has_synced: true }) => good += 1,
                Some(Since { has_written: true, has_synced: false }) => bad.push(line.to_owned()),
                _ => (),
            },
            _ => (),
        }
    }
    (good, bad)
}

#[test]
fn the_collector_answers_no_batch_before_its_store_is_synced() {
    alone(|stage| {
        let webhook = Webhook::start(stage)?;
        let mut collector = Collector::init(stage)?;
        collector.configure(&receiver(&webhook))?;
        let trace = stage.directory().join("trace");
        collector.traced(trace.clone())?;
        collector.serve()?;
        let load = Moody::start()?;
        let settings = check("http.status", "hold = \"0s\"") + &load.endpoints(4);
        let mut agent = Agent::prepare(stage, &settings, User::Same)?;
        agent.enrol(&collector)?;
        agent.run()?;
        let read = || std::fs::read_to_string(&trace).map_err(StageError::system("read the trace"));
        until("batches were answered", 90.s(), || {
            let (good, bad) = answers(&read().map_err(|error| error.to_string())?, collector.agents());
            if good + bad.len() >= ANSWERS { Ok(()) } else { Err(format!("{good} answers")) }
        })?;
        let (_, bad) = answers(&read()?, collector.agents());
        assert!(bad.is_empty(), "answered before the sync: {bad:?}");
        Ok(())
    });
}

#[test]
fn the_trace_is_read_for_what_it_says() {
    let agents = "127.0.0.1:7443";
    let line = |call: &str| {
        format!(
            "9 {}\n",
            call.replace("WAL", "7</c/store.db-wal>").replace("TCP", "5<TCP:[127.0.0.1:7443->127.0.0.1:5]>")
        )
    };
    let (batch, write, answer) = (
        line("read(TCP, \"\"..., 9) = 900"),
        line("pwrite64(WAL, \"\"..., 9, 0) = 9"),
        line("sendto(TCP, \"\"..., 99, 0) = 99"),
    );
    let sync = line("fdatasync(WAL) = 0");
    let begun = line("fdatasync(WAL <unfinished ...>");
    let ended = line("<... fdatasync resumed>) = 0");
    let said = |lines: &[&String]| {
        let text: String = lines.iter().map(|it| it.as_str()).collect();
        let (good, bad) = answers(&text, agents);
        (good, bad.len())
    };
    assert_eq!(said(&[&batch, &write, &sync, &answer]), (1, 0));
    assert_eq!(said(&[&batch, &write, &begun, &ended, &answer]), (1, 0));
    assert_eq!(said(&[&batch, &write, &begun, &answer, &ended]), (0, 1));
    assert_eq!(said(&[&batch, &write, &answer, &sync]), (0, 1));
    assert_eq!(said(&[&batch, &answer]), (0, 0), "nothing was stored");
}
