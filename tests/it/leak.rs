//! The main job: an application leaks sessions, and the page says which process, which descriptors, which backends.

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::Value;
use tickbird_tests::agent::{app, postgres};
use tickbird_tests::truth::{backends, socket};
use tickbird_tests::webhook::{firing, resolved};
use tickbird_tests::{Application, Held, Postgres, Seconds, StageError, Watch, alone};

const CHECK: &str = "pool.idle_in_transaction";

/// With the shipped thresholds.
#[test]
fn fourteen_leaked_sessions_are_named_within_45_seconds_and_nobody_else_is() {
    alone(|stage| {
        let server = Postgres::start(stage, 100)?;
        let mut leaky = Application::pooled(stage, "grants-api", &server)?;
        let mut innocent =
            [Application::pooled(stage, "billing-api", &server)?, Application::pooled(stage, "search-api", &server)?];
        for it in [&mut leaky].into_iter().chain(&mut innocent) {
            it.does("traffic 10")?;
        }
        let mut configuration = postgres(&server.dsn_file("tickbird")?);
        for it in [&leaky].into_iter().chain(&innocent) {
            configuration.push_str(&app(it.name(), &it.command()));
        }
        let watch = Watch::begin(stage, &configuration)?;
        watch.sees(CHECK, "grants-api", "ok", 30.s())?;

        let began = Instant::now();
        let leaked: Vec<Held> = (0..14).map(|_| leaky.leaks(1)).collect::<Result<Vec<_>, _>>()?.concat();

        let message = watch.webhook.hears("14 leaked sessions", 45.s().saturating_sub(began.elapsed()), |it| {
            firing(CHECK)(it) && it.json["incident"]["evidence"]["sessions_total"] == 14
        })?;
        let evidence = &message.json["incident"]["evidence"];
        let decided_at = seconds(&message.json["decided_at"])?;
        let sessions = backends(&server)?;
        let mut named = BTreeSet::new();
        for row in evidence["sessions"].as_array().expect("sessions are a list") {
            let it = told(row).expect("a session has pid, fd, backend and local end");
            assert_eq!(socket(it.pid, it.fd)?.port, it.port, "the descriptor is that socket: {row}");
            let session = sessions.get(&it.port).expect("the server knows a client on that port");
            assert_eq!(session.pid, it.backend, "{row}");
            assert_eq!(session.state, "idle in transaction", "{row}");
            let age = row["state_age_seconds"].as_f64().expect("an age");
            let true_age = decided_at - session.state_changed_at;
            assert!((age - true_age).abs() < 6.0, "it was {true_age:.1} s old at {decided_at}: {row}");
            assert!(!row["statement"].as_str().unwrap_or_default().contains("literal"), "a literal left: {row}");
            named.insert(it);
        }
        assert_eq!(named, leaked.iter().copied().collect(), "exactly the leaked ones are named");
        assert_eq!(evidence["open"], 20);
        assert!(message.json["incident"]["target"].as_str().is_some_and(|it| it.contains("grants-api")));

        leaky.repairs()?;
        watch.webhook.hears("the repair", 30.s(), resolved(CHECK))?;
        for it in &mut innocent {
            watch.silent_about(it.name())?;
            assert_eq!(it.served()?.1, 0, "{} served all the time", it.name());
        }
        let pages = watch.webhook.attempts().len();
        assert!(pages <= 4, "{pages} messages for one fault");
        Ok(())
    });
}

/// A session as the evidence names it.
fn told(row: &Value) -> Option<Held> {
    let number = |key: &str| row[key].as_u64();
    Some(Held {
        pid: number("pid")?.try_into().ok()?,
        fd: number("fd")?.try_into().ok()?,
        backend: number("backend")?.try_into().ok()?,
        port: row["local"].as_str()?.rsplit(':').next()?.parse().ok()?,
    })
}

/// An RFC 3339 time as seconds since 1970.
fn seconds(time: &Value) -> Result<f64, StageError> {
    let wrong = || StageError::Malformed { what: "a time".into(), found: time.to_string() };
    let time: jiff::Timestamp = time.as_str().and_then(|it| it.parse().ok()).ok_or_else(wrong)?;
    Ok(time.as_microsecond() as f64 / 1e6)
}
