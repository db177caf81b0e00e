//! Everything that looks like a leak or an exhausted pool and is none: at work for minutes, with the shipped thresholds.

use tickbird_tests::agent::check;
use tickbird_tests::{Library, Role, Scene, Seconds, Sizes, StageError, alone, until};

const IDLE: &str = "pool.idle_in_transaction";
/// Who may think in a transaction.
const NIGHTLY: &str = "allow_application_names = [\"nightly-batch\"]";

const fn role(name: &'static str, library: Library) -> Role {
    Role { name, library, sizes: Sizes::full(10) }
}

const ROLES: [Role; 6] = [
    // Twenty seconds of traffic, and none for the rest of the night.
    role("resting-api", Library::GoSql),
    // Listens and holds advisory locks, on connections of its own and of its pool, has WebSockets on its port and an HTTP client without keepalive.
    role("events-api", Library::QueuePool),
    // A long transaction of a batch that thinks between its statements.
    role("batch-api", Library::PsycopgPool),
    // The same, which nobody allowed: the one that has to be found.
    role("report-api", Library::PsycopgPool),
    // Its second pool goes quiet.
    role("second-api", Library::QueuePool),
    // Replaced by a successor while it serves.
    role("rolling-api", Library::NodePg),
];

/// At 100 % for two seconds; the answer comes when the last one is done. Three connections are taken for good.
fn bursts(scene: &mut Scene) -> Result<(), StageError> {
    for (name, burst) in [("events-api", "burst 7 2"), ("batch-api", "burst 10 2")] {
        scene.app(name).does(burst)?;
    }
    Ok(())
}

/// So many looks at it, and none says anything against the truth.
fn right_about(scene: &mut Scene, name: &str, looks: usize) -> Result<(), StageError> {
    let found = scene.comparison(name)?;
    assert!(found.looks >= looks && found.wrong.is_empty(), "{name}: {found}: {:#?}", found.wrong);
    Ok(())
}

#[test]
fn nothing_is_found_in_a_night_of_decoys() {
    alone(|stage| {
        let settings = check(IDLE, NIGHTLY);
        let mut scene = Scene::begin(stage, &ROLES, &settings)?;
        for role in ROLES {
            scene.app(role.name).does("traffic 20")?;
        }
        for decoy in ["listen", "lock", "dedicate 2 lock", "dedicate 1 listen", "websockets 12"] {
            scene.app("events-api").does(decoy)?;
        }
        scene.app("batch-api").does("batch")?;
        scene.app("report-api").does("batch monthly-report")?;
        scene.app("second-api").does("second 20")?;
        scene.passes(20.s())?;
        scene.app("resting-api").does("traffic 0")?;
        scene.passes(20.s())?;
        scene.app("second-api").does("second 0")?;

        right_about(&mut scene, "rolling-api", 30)?;
        let successor = scene.app("rolling-api").successor()?;
        scene.replace("rolling-api", successor)?;
        scene.app("rolling-api").does("traffic 20")?;
        for _ in 0..3 {
            bursts(&mut scene)?;
            scene.app("events-api").does("http 1500")?;
            scene.passes(40.s())?;
        }
        scene.all_served()?;
        for role in ROLES {
            right_about(&mut scene, role.name, 60)?;
        }
        // Not one finding above info about anybody or anything, but the one.
        let is_report = |check: &str, target: &str| check == IDLE && target.contains("report-api");
        scene.is_quiet_but("", is_report)?;
        let told = scene.samples().last().and_then(|it| it.finding(IDLE, "report-api")).cloned().unwrap_or_default();
        let sessions = told["evidence"]["sessions"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert!(sessions.len() == 1 && sessions[0]["application_name"] == "monthly-report", "{told}");
        assert_eq!(told["severity"], "warning", "{told}");

        // Now the server restarts under all of them.
        scene.server.stop()?;
        scene.server.serve()?;
        scene.passes(30.s())?;
        for role in ROLES {
            scene.is_quiet_but(role.name, is_report)?;
        }
        let before = scene.app("second-api").served()?.0;
        until("the server serves again", 20.s(), || {
            let now = scene.app("second-api").served().map_err(|error| error.to_string())?.0;
            if now > before + 20 { Ok(()) } else { Err(format!("{before}, then {now}")) }
        })
    });
}
