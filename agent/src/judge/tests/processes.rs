//! Processes: limits, children, restarts, ends.

use super::rows::{end_of, process};
use super::*;
use crate::inspect::Value;
use crate::inspect::host::{Ended, ProcessRow};

fn host(processes: &[ProcessRow]) -> HostLook {
    HostLook { processes: processes.to_vec(), ..HostLook::default() }
}

fn declared(mut row: ProcessRow) -> ProcessRow {
    row.application.declared = true;
    row
}

fn aged(mut row: ProcessRow, seconds: u64) -> ProcessRow {
    row.age = Duration::from_secs(seconds);
    row
}

/// Looks once a second while `row` grows older.
fn run(night: &mut Night, rows: &[ProcessRow], seconds: u64) {
    for second in 0..seconds {
        let rows: Vec<_> =
            rows.iter().map(|it| ProcessRow { age: it.age + Duration::from_secs(second), ..it.clone() }).collect();
        night.wait(1.0).host(&host(&rows));
    }
}

/// Ticks when the judge wants it, until `seconds` have passed.
fn tick_for(night: &mut Night, seconds: f64) {
    let end = night.now() + Duration::from_secs_f64(seconds);
    while let Some(at) = night.judge.wake_at().filter(|it| *it <= end) {
        let wait = at.saturating_sub(night.now()).as_secs_f64();
        night.wait(wait).tick();
    }
    let wait = end.saturating_sub(night.now()).as_secs_f64();
    night.wait(wait);
}

#[test]
fn a_declared_process_that_nothing_replaced_is_critical_after_five_seconds() {
    let mut night = Night::begin();
    let shop = declared(process("shop", 77, 8000));
    run(&mut night, std::slice::from_ref(&shop), 10);
    assert_eq!(night.is("proc.gone", "shop"), "ok");
    night.wait(0.5).ended(&end_of(&shop, Duration::from_millis(10_500)));
    run(&mut night, &[], 6);
    assert_eq!(night.told(), "15.5s proc.gone began critical");
    assert!(
        night.last().summary.starts_with("shop, pid 77 (/usr/bin/python3 shop.py), ended after"),
        "{}",
        night.last().summary
    );
    assert_eq!(night.last().reason, "it ended and nothing took its place within 5 s, for 1 look");
    run(&mut night, &[], 600);
    assert_eq!(night.told(), "", "it stays, and is told once");
    run(&mut night, &[aged(declared(process("shop", 78, 8000)), 0)], 3);
    assert!(night.told().ends_with("proc.gone cleared critical"));
}

#[test]
fn a_hold_of_zero_tells_with_the_event() {
    let mut night = Night::with([Override { hold: text("0s"), ..change("proc.gone") }]);
    let shop = declared(process("shop", 77, 8000));
    run(&mut night, std::slice::from_ref(&shop), 3);
    night.wait(0.25).ended(&end_of(&shop, Duration::from_millis(3_250)));
    assert!(night.told().is_empty() && night.judge.waits_for_look(), "whether another runs is asked at once");
    night.wait(0.01).host(&host(&[]));
    assert_eq!(night.told(), "3.26s proc.gone began critical");
    assert!(!night.judge.waits_for_look());
    // The next look tells the same end again.
    let mut look = host(&[]);
    look.ended.push(end_of(&shop, Duration::from_secs(4)));
    night.wait(0.74).host(&look);
    tick_for(&mut night, 10.0);
    assert_eq!(night.told(), "");
}

#[test]
fn without_a_hold_a_successor_that_no_look_has_seen_yet_counts() {
    let mut night = Night::with([Override { hold: text("0s"), ..change("proc.gone") }]);
    let shop = declared(process("shop", 77, 8000));
    run(&mut night, std::slice::from_ref(&shop), 3);
    night.wait(0.25).ended(&end_of(&shop, Duration::from_millis(3_250)));
    night.wait(0.01).host(&host(&[aged(declared(process("shop", 78, 8000)), 0)]));
    tick_for(&mut night, 10.0);
    assert_eq!(night.told(), "");
    // A host that cannot be looked at: what was seen before counts.
    night.ended(&end_of(&declared(process("shop", 78, 8000)), night.now()));
    tick_for(&mut night, 3.0);
    assert_eq!(night.told(), "15.26s proc.gone began critical");
}

#[test]
fn a_replaced_process_and_a_scale_in_are_silent() {
    let mut night = Night::begin();
    let shop = declared(process("shop", 77, 8000));
    run(&mut night, std::slice::from_ref(&shop), 3);
    night.ended(&end_of(&shop, night.now()));
    run(&mut night, &[aged(declared(process("shop", 78, 8000)), 0)], 1);
    tick_for(&mut night, 10.0);
    assert_eq!(night.told(), "", "replaced within a second");

    let mut night = Night::begin();
    let three = [77, 78, 79].map(|pid| declared(process("shop", pid, 8000)));
    run(&mut night, &three, 3);
    night.ended(&end_of(&three[0], night.now()));
    night.ended(&end_of(&three[1], night.now()));
    tick_for(&mut night, 10.0);
    assert_eq!(night.told(), "", "one of three is left");
    night.ended(&end_of(&three[2], night.now()));
    run(&mut night, &[], 6);
    assert!(night.told().contains("proc.gone began critical"), "the last one is missed");
}

#[test]
fn a_successor_that_starts_slowly_or_on_another_port_is_a_successor() {
    let mut night = Night::begin();
    let shop = declared(process("shop", 77, 8000));
    run(&mut night, std::slice::from_ref(&shop), 100);
    night.ended(&end_of(&shop, night.now()));
    // It imports for twenty seconds before it listens.
    run(&mut night, &[aged(declared(process("shop", 78, 0)), 0)], 20);
    run(&mut night, &[aged(declared(process("shop", 78, 8000)), 20)], 60);
    assert_eq!(night.told(), "");

    let mut night = Night::begin();
    run(&mut night, std::slice::from_ref(&shop), 100);
    let green = aged(declared(process("shop", 78, 8001)), 0);
    run(&mut night, &[shop.clone(), green.clone()], 10);
    night.ended(&end_of(&shop, night.now()));
    run(&mut night, &[aged(green, 10)], 30);
    assert_eq!(night.told(), "", "blue and green");

    let mut night = Night::begin();
    run(&mut night, std::slice::from_ref(&shop), 100);
    night.ended(&end_of(&shop, night.now()));
    run(&mut night, &[aged(declared(process("shop", 78, 0)), 0)], 70);
    assert_eq!(night.told(), "160s proc.gone began critical", "it runs, but a minute later it still does not listen");
}

#[test]
fn another_instance_of_the_service_on_its_own_port_is_no_successor() {
    let mut night = Night::begin();
    let pair = [declared(process("shop", 77, 8001)), declared(process("shop", 78, 8002))];
    run(&mut night, &pair, 100);
    night.ended(&end_of(&pair[0], night.now()));
    run(&mut night, &pair[1..], 10);
    assert_eq!(night.told(), "105s proc.gone began critical");
    assert_eq!(night.last().target, "process:shop/main:8001");
}

#[test]
fn nobody_declared_it_but_it_served() {
    let gone = |row: ProcessRow| {
        let mut night = Night::begin();
        run(&mut night, std::slice::from_ref(&row), 3);
        night.ended(&end_of(&row, night.now()));
        tick_for(&mut night, 10.0);
        night.told()
    };
    let mut psql = process("psql", 77, 0);
    psql.command = "psql -h db app".into();
    psql.age = Duration::from_secs(7200);
    let mut worker = process("shop", 77, 8000);
    (worker.application.role, worker.age) = ("worker", Duration::from_secs(90));
    let well = |row: ProcessRow| {
        let mut night = Night::begin();
        run(&mut night, std::slice::from_ref(&row), 3);
        night.ended(&Ended { how: Some("exit status 0".into()), ..end_of(&row, night.now()) });
        tick_for(&mut night, 10.0);
        night.told()
    };
    assert_eq!(well(aged(process("preview", 77, 8000), 8)), "", "its work was done");
    assert_eq!(well(aged(process("shop", 77, 8000), 3600)), "8s proc.gone began warning");
    for (row, wanted) in [
        (process("shop", 77, 8000), "8s proc.gone began warning"),
        (aged(process("shop", 77, 8000), 1), ""),
        (aged(process("etl", 77, 0), 1800), ""),
        (aged(process("consumer", 77, 0), 7200), "8s proc.gone began warning"),
        (psql, ""),
        (worker, ""),
    ] {
        let name = format!("{} {:?}", row.command, row.age);
        assert_eq!(gone(row), wanted, "{name}");
    }
}

#[test]
fn a_parent_speaks_for_its_workers() {
    let mut night = Night::begin();
    let parent = declared(process("shop", 77, 8000));
    let mut child = declared(process("shop", 78, 8000));
    child.application.role = "worker";
    child.target = crate::discover::TargetKey::process("shop", "worker", Some(8000));
    run(&mut night, &[parent.clone(), child.clone()], 3);
    night.ended(&end_of(&child, night.now()));
    night.ended(&end_of(&parent, night.now()));
    tick_for(&mut night, 10.0);
    assert_eq!(night.told(), "8s proc.gone began critical");
    assert_eq!(night.last().target, "process:shop/main:8000");
}

#[test]
fn an_expected_application_that_is_absent_is_critical_until_it_comes() {
    let mut night = Night::begin();
    let mut look = host(&[]);
    look.absent.push(crate::discover::TargetKey::process("ghost", "main", None));
    night.hosts(&look, 5);
    assert_eq!(night.told(), "");
    night.hosts(&look, 5);
    assert_eq!(night.told(), "6s proc.gone began critical");
    assert_eq!(night.last().summary, "ghost is expected to run here and does not");
    run(&mut night, &[aged(process("ghost", 80, 8000), 0)], 4);
    assert_eq!(night.told(), "13s proc.gone cleared critical");
}

#[test]
fn an_expected_application_that_died_is_one_finding() {
    let mut night = Night::begin();
    let shop = declared(process("shop", 77, 8000));
    run(&mut night, std::slice::from_ref(&shop), 10);
    night.ended(&end_of(&shop, night.now()));
    let mut look = host(&[]);
    look.absent.push(crate::discover::TargetKey::process("shop", "main", None));
    night.hosts(&look, 60);
    assert_eq!(night.told(), "15s proc.gone began critical");
}

#[test]
fn a_crash_loop_is_found_and_so_is_one_instance_of_many_that_keeps_dying() {
    let mut night = Night::begin();
    let mut row = declared(process("shop", 77, 8000));
    for pid in 78..82 {
        run(&mut night, std::slice::from_ref(&row), 20);
        night.ended(&end_of(&ProcessRow { age: row.age + Duration::from_secs(20), ..row.clone() }, night.now()));
        row = aged(declared(process("shop", pid, 8000)), 0);
    }
    run(&mut night, &[row], 2);
    assert_eq!(night.told(), "41s proc.restart began warning");
    assert!(
        night.last().summary.starts_with("shop keeps ending: 2 restarts in the last hour"),
        "{}",
        night.last().summary
    );

    let mut night = Night::begin();
    let steady = [1, 2, 3, 4, 5, 6, 7].map(|pid| process("shop", pid, 8000));
    let mut eighth = process("shop", 8, 8000);
    for pid in 9..12 {
        let all: Vec<_> = steady.iter().cloned().chain([eighth.clone()]).collect();
        run(&mut night, &all, 20);
        night.ended(&end_of(&eighth, night.now()));
        eighth = aged(process("shop", pid, 8000), 0);
    }
    let all: Vec<_> = steady.iter().cloned().chain([eighth]).collect();
    run(&mut night, &all, 5);
    assert_eq!(night.told(), "61s proc.restart began warning", "three ends among eight instances, two of them young");
}

/// Replaces each instance once; `overlap` says whether the successor is there before the predecessor ends.
fn roll(night: &mut Night, rows: &mut [ProcessRow], next_pid: &mut u32, overlap: bool) {
    for index in 0..rows.len() {
        let old = rows[index].clone();
        *next_pid += 1;
        let new = aged(process("shop", *next_pid, 8000), 0);
        if overlap {
            let all: Vec<_> = rows.iter().cloned().chain([new.clone()]).collect();
            run(night, &all, 2);
        }
        night.ended(&end_of(&old, night.now()));
        if !overlap {
            let all: Vec<_> = rows.iter().filter(|it| it.instance != old.instance).cloned().collect();
            run(night, &all, 2);
        }
        rows[index] = new;
        run(night, rows, 2);
    }
}

#[test]
fn a_rolling_restart_is_a_deploy() {
    for overlap in [true, false] {
        let mut night = Night::begin();
        let mut rows: Vec<_> = [1, 2, 3].map(|pid| process("shop", pid, 8000)).to_vec();
        let mut next_pid = 100;
        run(&mut night, &rows, 5);
        roll(&mut night, &mut rows, &mut next_pid, overlap);
        roll(&mut night, &mut rows[..1], &mut next_pid, !overlap);
        run(&mut night, &rows, 60);
        assert_eq!(night.told(), "", "overlap {overlap}");
        assert!(matches!(night.state("proc.restart", "shop").value, Value::Known(count) if count < 2.0));
    }
}

/// Five deploys within the hour are five deploys where each successor is there first and each predecessor is asked to end;
/// what dies by itself, or is started again once it is gone, keeps ending.
#[test]
fn replacing_an_instance_in_order_is_no_restart_however_often() {
    // How long each successor runs before its predecessor ends; less than a second is within one look.
    let told = |how: &str, ahead: f64| {
        let mut night = Night::begin();
        let mut old = declared(process("shop", 1, 8000));
        for pid in 2..7 {
            let new =
                |age: f64| ProcessRow { age: Duration::from_secs_f64(age), ..declared(process("shop", pid, 8000)) };
            run(&mut night, std::slice::from_ref(&old), 620);
            if ahead > 1.0 {
                run(&mut night, &[old.clone(), new(0.5)], 2);
            }
            let at = night.wait(0.5).now();
            night.ended(&Ended { how: Some(how.into()), ..end_of(&aged(old, 622), at) });
            night.wait(0.5);
            old = new(ahead + 1.5);
            run(&mut night, std::slice::from_ref(&old), 1);
        }
        run(&mut night, &[old], 30);
        night.told()
    };
    for how in ["killed by signal 15", "killed by signal 2", "exit status 0", "exit status 143"] {
        for ahead in [2.5, 0.3] {
            assert_eq!(told(how, ahead), "", "{how}, {ahead} s ahead");
        }
    }
    let keeps_ending = |how: &str, ahead: f64| {
        assert!(told(how, ahead).contains("proc.restart began warning"), "{how}, {ahead} s ahead");
    };
    for how in ["killed by signal 11", "killed by signal 9", "killed by signal 1115", "exit status 1", "exit status 10"]
    {
        keeps_ending(how, 2.5);
        keeps_ending(how, 0.3);
    }
    // A supervisor ends what is not well, and begins anew at once.
    keeps_ending("killed by signal 15", -0.1);
    keeps_ending("killed by signal 15", 0.05);
}

#[test]
fn workers_that_their_parent_recycles_and_jobs_that_cron_runs_are_silent() {
    let mut night = Night::begin();
    let mut pid = 100;
    for _ in 0..20 {
        pid += 1;
        let mut worker = aged(process("shop", pid, 8000), 0);
        worker.application.role = "worker";
        run(&mut night, std::slice::from_ref(&worker), 90);
        night.ended(&end_of(&aged(worker, 90), night.now()));
    }
    for _ in 0..20 {
        pid += 1;
        let job = aged(process("job", pid, 0), 0);
        run(&mut night, std::slice::from_ref(&job), 20);
        night.ended(&end_of(&aged(job, 20), night.now()));
        run(&mut night, &[], 40);
    }
    assert_eq!(night.told(), "");
}

#[test]
fn an_oom_kill_is_critical_at_once() {
    let mut night = Night::begin();
    let killed = |count: f64| {
        let mut row = process("shop", 77, 8000);
        row.cgroup_oom_kills = Value::Known(count);
        row
    };
    run(&mut night, &[killed(3.0)], 5);
    assert_eq!(night.told(), "", "kills before the agent began are history");
    run(&mut night, &[killed(4.0)], 310);
    assert_eq!(night.told(), "6s proc.restart began critical\n308s proc.restart cleared critical");
    assert!(
        night.found[0].summary.starts_with("the kernel killed a process of shop's control group"),
        "{}",
        night.found[0].summary
    );
}

#[test]
fn descriptors_near_their_limit() {
    let with = |used: f64| {
        let mut row = process("shop", 77, 8000);
        (row.descriptors, row.descriptor_limit) = (Value::Known(used), Value::Known(100.0));
        row
    };
    let mut night = Night::begin();
    run(&mut night, &[with(60.0)], 10);
    run(&mut night, &[with(79.0)], 10);
    assert_eq!(night.told(), "");
    run(&mut night, &[with(85.0), process("shop", 78, 8000)], 3);
    run(&mut night, &[with(96.0)], 3);
    run(&mut night, &[with(20.0)], 3);
    assert_eq!(
        night.told(),
        "23s fd.limit began warning\n26s fd.limit worsened critical\n29s fd.limit cleared critical"
    );
    assert_eq!(night.found[0].summary, "shop, pid 77, has 85 of 100 descriptors open (85 %)");
}

#[test]
fn descriptors_that_may_not_be_counted_are_blind_not_few() {
    let mut row = process("shop", 77, 8000);
    row.descriptors = Value::Unknown(crate::inspect::Reason::Denied("the descriptors of processes of uid 1001".into()));
    let mut night = Night::begin();
    run(&mut night, &[row, process("shop", 78, 8000)], 5);
    assert_eq!(night.is("fd.limit", "shop"), "blind");
    assert_eq!(night.told(), "3s agent.blind began warning");
    assert!(night.last().advice.as_deref().is_some_and(|it| it.contains("CAP_DAC_READ_SEARCH")));
}

#[test]
fn children_that_nobody_waits_for() {
    let with = |count: u32, age: u64| {
        let mut row = process("shop", 77, 8000);
        row.zombies = (0..count).map(|it| (900 + it, Duration::from_secs(age))).collect();
        row
    };
    let mut night = Night::begin();
    run(&mut night, &[with(5, 30)], 20);
    run(&mut night, &[with(2, 300)], 20);
    assert_eq!(night.told(), "", "young ones, and few");
    run(&mut night, &[with(5, 61)], 3);
    assert_eq!(night.told(), "43s proc.zombie began warning");
    assert!(night.last().summary.contains("pid 77, has not waited for 5 children"), "{}", night.last().summary);
}

fn limited(used: f64, hits: f64) -> ProcessRow {
    let mut row = process("shop", 77, 8000);
    (row.cgroup_memory, row.cgroup_limit) = (Value::Known(used), Value::Known(100.0));
    row.cgroup_max_events = Value::Known(hits);
    row
}

#[test]
fn memory_against_its_limit_is_critical_only_with_a_second_sign() {
    let mut night = Night::begin();
    run(&mut night, &[limited(50.0, 7.0)], 10);
    assert_eq!((night.told().as_str(), night.is("proc.memory", "shop")), ("", "ok"));
    run(&mut night, &[limited(97.0, 7.0)], 60);
    assert_eq!(night.told(), "13s proc.memory began warning", "full, but the kernel finds what it needs");
    run(&mut night, &[limited(97.0, 8.0)], 3);
    assert_eq!(night.told(), "73s proc.memory worsened critical");
    assert!(night.last().summary.contains("and the kernel reclaims in vain"), "{}", night.last().summary);
}

#[test]
fn memory_without_a_limit_needs_a_day_of_history() {
    let with = |mebibytes: f64| {
        let mut row = process("shop", 77, 8000);
        row.memory = Value::Known(mebibytes * 1_048_576.0);
        host(&[row])
    };
    let mut night = Night::begin();
    // A day of looks a minute apart is as good as one of looks a second apart.
    for _ in 0..24 * 60 {
        night.wait(60.0).host(&with(100.0));
    }
    assert_eq!((night.told().as_str(), night.is("proc.memory", "shop")), ("", "not yet"));
    for _ in 0..30 {
        night.wait(60.0).host(&with(150.0));
    }
    assert_eq!((night.told().as_str(), night.is("proc.memory", "shop")), ("", "ok"));
    for _ in 0..9 {
        night.wait(60.0).host(&with(250.0));
    }
    assert_eq!(night.told(), "", "held for ten minutes");
    for _ in 0..3 {
        night.wait(60.0).host(&with(250.0));
    }
    assert!(night.told().ends_with("proc.memory began warning"));
    assert!(night.last().summary.contains("has 250 MiB of memory (PSS); usually at most"), "{}", night.last().summary);
}

#[test]
fn memory_may_be_bounded_in_bytes_by_the_operator() {
    let with = |mebibytes: f64| {
        let mut row = process("shop", 77, 8000);
        row.memory = Value::Known(mebibytes * 1_048_576.0);
        row
    };
    let mut night = Night::with([Override { warning: text("200MiB"), ..change("proc.memory") }]);
    run(&mut night, &[with(150.0)], 10);
    assert_eq!((night.told().as_str(), night.is("proc.memory", "shop")), ("", "ok"));
    run(&mut night, &[with(210.0)], 3);
    assert_eq!(night.told(), "13s proc.memory began warning");
    assert_eq!(night.last().reason, "210 MiB is over 200 MiB for 3 looks");
}
