//! When a server will have no slot left, told in time and true.

use serde_json::Value;

use tickbird_tests::agent::{app, postgres};
use tickbird_tests::wait::{Paced, paced};
use tickbird_tests::{Application, Library, Postgres, Seconds, Sizes, Watch, alone};

const CHECK: &str = "db.headroom";
/// A connection is kept in each of these.
const PACE: u64 = 2;

/// Where the server's slots end by the agent's word: least and most seconds; `None` while that is not yet known.
fn empty_in(status: &Value) -> Option<(f64, f64)> {
    let targets = status["targets"].as_array()?;
    let range = &targets.iter().find(|it| it["kind"] == "server")?["facts"]["empty_in_seconds"];
    Some((range[0].as_f64()?, range[1].as_f64()?))
}

/// Thirty connections are allowed, 27 of them to others than a superuser. One after another is kept.
#[test]
fn a_server_that_is_leaked_full_is_forecast_before_it_is() {
    alone(|stage| {
        let server = Postgres::start(stage, 30)?;
        let mut leaky = Application::of_library(stage, "leaky-api", Library::QueuePool, &server, Sizes::growing(24))?;
        let configuration = app(leaky.name(), &leaky.command()) + &postgres(&server.dsn_file("tickbird")?);
        let watch = Watch::begin(stage, &configuration)?;
        watch.sees(CHECK, "server:", "ok", 30.s())?;
        assert_eq!(empty_in(&watch.agent.status()?), None, "nothing rises yet");
        let mut forecast = None;
        let mut kept = 0;
        paced(PACE.s(), 120.s(), || {
            leaky.does("leak 1")?;
            kept += 1;
            if let Some(range) = empty_in(&watch.agent.status()?) {
                forecast = Some((range, kept));
            }
            // 22 of 27 slots are 80 %.
            Ok(if kept == 22 { Paced::Enough } else { Paced::More })
        })?;
        let ((low, high), at) = forecast.expect("it was forecast while it filled");
        // Ours and the agent's own session are in use, so 26 are the application's.
        let truth = f64::from(26 - at) * PACE as f64;
        assert!(low <= truth * 1.5 && truth * 0.67 <= high, "{truth} s by the application, {low} to {high} s told");
        let finding = watch.tells(CHECK, "server:", 30.s())?;
        let range = &finding["evidence"]["empty_in_seconds"];
        assert!(range[0].as_f64() <= range[1].as_f64() && range[1].is_number(), "{finding}");
        assert!(finding["summary"].to_string().contains("; at this rate it has none left in "), "{finding}");
        leaky.does("repair").map(drop)
    });
}
