//! Processes: gone, restarting, out of descriptors or memory, with children nobody waits for.

use std::time::Instant;

use tickbird_tests::agent::{app, check};
use tickbird_tests::wait::throughout;
use tickbird_tests::{Application, Seconds, Watch, alone};

#[test]
fn a_process_that_was_killed_and_not_replaced_is_told_within_a_second() {
    alone(|stage| {
        let mut web = Application::web(stage, "shop", 0)?;
        let _twin = Application::web(stage, "twin", 0)?;
        let configuration = [app("shop", &web.command()), check("proc.gone", "hold = \"0s\"")].concat();
        let watch = Watch::begin(stage, &configuration)?;
        watch.sees("fd.limit", "process:shop", "ok", 20.s())?;

        let killed = Instant::now();
        web.dies();
        let incident = watch.fires("proc.gone", "process:shop", 5.s())?;
        let took = killed.elapsed();
        assert!(took < 1.s(), "it took {took:?}");
        assert_eq!(incident["severity"], "critical", "it was declared");
        assert_eq!(incident["evidence"]["how"], "killed by signal 9", "the kernel says so until its parent has waited");
        web.kill()?;

        let _successor = web.successor()?;
        watch.resolves("proc.gone", "process:shop", 20.s())?;
        watch.silent_about("twin")
    });
}

/// With the shipped hold of five seconds; a process that nobody declared, but that listened.
#[test]
fn a_listener_that_nobody_declared_and_that_vanished_is_a_warning_after_the_shipped_hold() {
    alone(|stage| {
        let mut web = Application::web(stage, "shop", 0)?;
        let port = web.port();
        let watch = Watch::begin(stage, "")?;
        let target = format!(":{port}");
        watch.sees("fd.limit", &target, "ok", 20.s())?;
        let killed = Instant::now();
        web.kill()?;
        let incident = watch.fires("proc.gone", &target, 15.s())?;
        let took = killed.elapsed();
        // An end that is noticed within a look counts from when the look began.
        assert!((4.s()..8.s()).contains(&took), "it took {took:?}");
        assert_eq!(incident["severity"], "warning");
        Ok(())
    });
}

/// With the shipped thresholds. Each successor listens before its predecessor ends; the last one is replaced the other
/// way round, with a moment in which nobody listens.
#[test]
fn a_rolling_restart_is_no_incident() {
    alone(|stage| {
        let first = Application::web(stage, "shop", 0)?;
        let mut instances = vec![first];
        for _ in 0..2 {
            instances.push(instances[0].successor()?);
        }
        let watch = Watch::begin(stage, &app("shop", &instances[0].command()))?;
        watch.sees("fd.limit", "process:shop", "ok", 20.s())?;
        for slot in &mut instances {
            let successor = slot.successor()?;
            slot.stop()?;
            *slot = successor;
        }
        instances[0].stop()?;
        instances[0] = instances[0].successor()?;
        throughout("no incident", 15.s(), || {
            let incidents = watch.collector.items("incidents", "").map_err(|error| error.to_string())?;
            if incidents.is_empty() { Ok(()) } else { Err(tickbird_tests::collector::titles(&incidents)) }
        })
    });
}

/// Under one configuration, without any hold: successors that listen before their predecessors end are no incident,
/// and the last one, killed and not replaced, is one within a second.
#[test]
fn without_a_hold_a_rolling_restart_is_no_incident_and_a_death_is_told_within_a_second() {
    alone(|stage| {
        let mut instances = vec![Application::web(stage, "shop", 0)?];
        instances.push(instances[0].successor()?);
        let settings = [app("shop", &instances[0].command()), check("proc.gone", "hold = \"0s\"")].concat();
        let watch = Watch::begin(stage, &settings)?;
        watch.sees("fd.limit", "process:shop", "ok", 20.s())?;
        for slot in &mut instances {
            let successor = slot.successor()?;
            slot.stop()?;
            *slot = successor;
        }
        throughout("no incident", 10.s(), || {
            let incidents = watch.collector.items("incidents", "").map_err(|error| error.to_string())?;
            if incidents.is_empty() { Ok(()) } else { Err(tickbird_tests::collector::titles(&incidents)) }
        })?;
        instances.remove(1).stop()?;
        let killed = Instant::now();
        instances[0].kill()?;
        watch.fires("proc.gone", "process:shop", 5.s())?;
        let took = killed.elapsed();
        assert!(took < 1.s(), "it took {took:?}");
        Ok(())
    });
}

/// A successor is one from its first moment, not only when it listens: these need seconds for their imports, longer
/// than the shipped hold of a process that is gone.
#[test]
fn a_restart_of_an_application_that_starts_slowly_is_no_incident() {
    alone(|stage| {
        let mut web = Application::slow_web(stage, "shop", 7)?;
        let watch = Watch::begin(stage, &app("shop", &web.command()))?;
        watch.sees("fd.limit", "process:shop", "ok", 20.s())?;
        web.stop()?;
        let _web = web.successor()?;
        throughout("no incident", 10.s(), || {
            let incidents = watch.collector.items("incidents", "").map_err(|error| error.to_string())?;
            if incidents.is_empty() { Ok(()) } else { Err(tickbird_tests::collector::titles(&incidents)) }
        })
    });
}

#[test]
fn a_process_that_keeps_crashing_is_found() {
    alone(|stage| {
        let mut web = Application::slow_web(stage, "shop", 2)?;
        let twin = Application::web(stage, "twin", 0)?;
        let watch = Watch::begin(stage, &[app("shop", &web.command()), app("twin", &twin.command())].concat())?;
        watch.sees("proc.restart", "process:shop", "ok", 20.s())?;
        for _ in 0..3 {
            web.kill()?;
            // It listens two seconds later; the agent has seen it by then.
            web = web.successor()?;
        }
        watch.fires("proc.restart", "process:shop", 30.s())?;
        watch.silent_about("twin")
    });
}

#[test]
fn a_process_that_runs_out_of_descriptors_is_found() {
    alone(|stage| {
        const CHECK: &str = "fd.limit";
        let (mut web, mut twin) = (Application::web(stage, "shop", 0)?, Application::web(stage, "twin", 0)?);
        for it in [&mut web, &mut twin] {
            it.does("limit 100")?;
        }
        let watch = Watch::begin(stage, &[app("shop", &web.command()), app("twin", &twin.command())].concat())?;
        watch.sees(CHECK, "process:shop", "ok", 20.s())?;
        twin.does("descriptors 60")?;
        web.does("descriptors 80")?;
        let incident = watch.fires(CHECK, "process:shop", 20.s())?;
        assert!(incident["summary"].as_str().is_some_and(|it| it.contains("100")), "{}", incident["summary"]);
        web.does("release")?;
        watch.resolves(CHECK, "process:shop", 20.s())?;
        watch.silent_about("twin")
    });
}

#[test]
fn children_that_nobody_waits_for_are_found() {
    alone(|stage| {
        const CHECK: &str = "proc.zombie";
        let (mut web, mut twin) = (Application::web(stage, "shop", 0)?, Application::web(stage, "twin", 0)?);
        let settings = check(CHECK, "hold = 3");
        let watch =
            Watch::begin(stage, &[app("shop", &web.command()), app("twin", &twin.command()), settings].concat())?;
        watch.sees(CHECK, "process:shop", "ok", 20.s())?;
        web.does("zombies 5")?;
        twin.does("zombies 5")?;
        twin.does("reap")?;
        watch.fires(CHECK, "process:shop", 90.s())?;
        web.does("reap")?;
        watch.resolves(CHECK, "process:shop", 20.s())?;
        watch.silent_about("twin")
    });
}

#[test]
fn a_process_over_the_memory_that_its_operator_allows_is_found() {
    alone(|stage| {
        const CHECK: &str = "proc.memory";
        let (mut web, twin) = (Application::web(stage, "shop", 0)?, Application::web(stage, "twin", 0)?);
        let settings = check(CHECK, "warning = \"100MiB\"\nhold = 3");
        let watch =
            Watch::begin(stage, &[app("shop", &web.command()), app("twin", &twin.command()), settings].concat())?;
        watch.sees(CHECK, "process:shop", "ok", 20.s())?;
        web.does("memory 150")?;
        watch.fires(CHECK, "process:shop", 20.s())?;
        web.does("release")?;
        watch.resolves(CHECK, "process:shop", 30.s())?;
        watch.silent_about("twin")
    });
}

#[test]
fn a_declared_process_that_never_was_there_is_found_at_the_start() {
    alone(|stage| {
        let web = Application::web(stage, "shop", 0)?;
        let absent = format!("{}expected = true\n", app("ghost", "--name ghost"));
        let watch = Watch::begin(stage, &[app("shop", &web.command()), absent].concat())?;
        watch.fires("proc.gone", "ghost", 20.s())?;
        let _late = Application::web(stage, "ghost", 0)?;
        watch.resolves("proc.gone", "ghost", 20.s())?;
        watch.silent_about("process:shop")
    });
}
