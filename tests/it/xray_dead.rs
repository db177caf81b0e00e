//! After a server's restart: dead connections that a pool works off, and those that a leak keeps.

use tickbird_tests::agent::check;
use tickbird_tests::truth::{descriptors, socket};
use tickbird_tests::wait::throughout;
use tickbird_tests::{Library, Role, Scene, Seconds, Sizes, StageError, alone, until};

const CHECK: &str = "pool.close_wait";
const CLOSE_WAIT: u8 = 8;

const fn role(name: &'static str, library: Library) -> Role {
    Role { name, library, sizes: Sizes::full(8) }
}

/// Sockets of a process in CLOSE_WAIT.
fn dead(pid: u32) -> Result<usize, StageError> {
    let all = descriptors(pid)?;
    Ok(all.values().filter(|fd| socket(pid, **fd).is_ok_and(|it| it.state == CLOSE_WAIT)).count())
}

/// An idle pool keeps its dead connections until its next checkout: that is normal, and nobody is told. The bound is ten
/// seconds here; that the shipped one is 300 s is shown in simulated time, by
/// `judge::tests::pools::dead_connections_in_a_pool_at_work_are_found`.
#[test]
fn a_restarted_server_leaves_a_finding_for_the_pool_in_traffic_that_leaks_and_for_no_other() {
    alone(|stage| {
        let roles = [
            role("leaky-api", Library::QueuePool),
            role("steady-api", Library::QueuePool),
            role("resting-api", Library::PsycopgPool),
            role("resting-go", Library::GoSql),
        ];
        let mut scene = Scene::begin(stage, &roles, &check(CHECK, "warning = \"10s\""))?;
        for name in ["leaky-api", "steady-api"] {
            scene.app(name).does("traffic 20")?;
        }
        scene.watch.sees(CHECK, "leaky-api", "ok", 30.s())?;
        scene.app("leaky-api").does("keep 4")?;
        scene.server.stop()?;
        scene.server.serve()?;
        for (name, kept) in [("leaky-api", 4), ("steady-api", 0), ("resting-api", 8), ("resting-go", 8)] {
            let pid = scene.app(name).pid();
            until(format!("{name} keeps {kept} dead connections"), 20.s(), || {
                let found = dead(pid).map_err(|error| error.to_string())?;
                if found == kept { Ok(()) } else { Err(found.to_string()) }
            })?;
        }
        scene.watch.fires(CHECK, "leaky-api", 60.s())?;
        throughout("the others hold on to theirs", 20.s(), || Ok(()))?;
        for name in ["steady-api", "resting-api", "resting-go"] {
            scene.is_quiet_about(name)?;
        }
        scene.app("leaky-api").does("repair")?;
        scene.watch.resolves(CHECK, "leaky-api", 40.s())?;
        scene.app("resting-go").does("traffic 10")?;
        let before = scene.app("steady-api").served()?.0;
        until("the server serves again", 20.s(), || {
            let now = scene.app("steady-api").served().map_err(|error| error.to_string())?.0;
            if now > before + 20 { Ok(()) } else { Err(format!("{before}, then {now}")) }
        })?;
        scene.is_quiet_about("resting-go")
    });
}
