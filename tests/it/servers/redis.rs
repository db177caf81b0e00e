//! Redis: every client is named by every route; a full one has no headroom; who waits by design leaks nothing.

use tickbird_tests::agent::{app, check};
use tickbird_tests::certificate::Certificate;
use tickbird_tests::postgres::{Route, password};
use tickbird_tests::watch::rows_of;
use tickbird_tests::xray::{ConnectionSeen, pools_in};
use tickbird_tests::{Application, Library, Redis, Seconds, Sizes, Stage, StageError, Watch, alone, until};

use super::all_are_named;

fn start(stage: &Stage, max_clients: u16) -> Result<Redis, StageError> {
    Redis::start(stage, &Certificate::ending_in(stage, 30)?, max_clients)
}

fn pool(stage: &Stage, name: &str, server: &Redis, route: Route, size: u16) -> Result<Application, StageError> {
    let environment = vec![("REDIS_URL", server.url("app", route))];
    Application::through(stage, name, Library::RedisPy, environment, Sizes::full(size))
}

#[test]
fn twenty_of_twenty_clients_of_redis_are_named_over_v4_v6_tls_and_unix() {
    alone(|stage| {
        let server = start(stage, 200)?;
        let routes =
            [("over-v4", Route::V4), ("over-v6", Route::V6), ("over-tls", Route::Tls), ("over-unix", Route::Unix)];
        let section = server.section("tickbird", Route::V4)?;
        all_are_named(stage, &section, &server.address(), &routes, |name, route| pool(stage, name, &server, route, 20))
    });
}

#[test]
fn redis_is_asked_over_its_unix_socket_too() {
    alone(|stage| {
        let server = start(stage, 200)?;
        let section = server.section("tickbird", Route::Unix)?;
        let routes = [("over-v4", Route::V4), ("over-unix", Route::Unix)];
        all_are_named(stage, &section, "/sock/0", &routes, |name, route| pool(stage, name, &server, route, 20))
    });
}

#[test]
fn redis_is_asked_over_tls_too() {
    alone(|stage| {
        let server = start(stage, 200)?;
        let section = server.section("tickbird", Route::Tls)?;
        let routes = [("over-v4", Route::V4), ("over-tls", Route::Tls)];
        all_are_named(stage, &section, "/0", &routes, |name, route| pool(stage, name, &server, route, 20))
    });
}

#[test]
fn a_full_redis_has_no_headroom_and_its_roomy_twin_is_silent() {
    alone(|stage| {
        let (full, roomy) = (start(stage, 24)?, start(stage, 200)?);
        let greedy = pool(stage, "greedy", &full, Route::V4, 20)?;
        let mut healthy = pool(stage, "healthy-twin", &roomy, Route::V4, 20)?;
        healthy.does("traffic 20")?;
        let configuration = check("db.headroom", "hold = \"5s\"")
            + &full.section("tickbird", Route::V4)?
            + &roomy.section("tickbird", Route::V4)?
            + &app("greedy", &greedy.command())
            + &app("healthy-twin", &healthy.command());
        let watch = Watch::begin(stage, &configuration)?;
        watch.fires("db.headroom", &full.address(), 60.s())?;
        for check in ["db.headroom", "db.connect", "db.role"] {
            watch.sees(check, &roomy.address(), "ok", 40.s())?;
        }
        watch.silent_about(&roomy.address())?;
        watch.silent_about("healthy-twin")
    });
}

#[test]
fn a_user_without_rights_makes_the_checks_of_redis_blind_and_says_which() {
    alone(|stage| {
        let (half, none) = (start(stage, 50)?, start(stage, 50)?);
        let it = pool(stage, "shop", &half, Route::V4, 5)?;
        let other = pool(stage, "other", &none, Route::V4, 5)?;
        let configuration = half.section("unlisted", Route::V4)?
            + &none.section("nobody", Route::V4)?
            + &app("shop", &it.command())
            + &app("other", &other.command());
        let watch = Watch::begin(stage, &configuration)?;
        // The limit needs INFO alone.
        watch.sees("db.headroom", &half.address(), "ok", 40.s())?;
        let cases = [
            ("pool.idle_in_transaction", "shop", "CLIENT LIST: the user has no right to it"),
            ("pool.idle_in_transaction", "other", "CLIENT LIST: the user has no right to it"),
            ("db.headroom", none.address().leak(), "INFO: the user has no right to it"),
        ];
        for (check, part, reason) in cases {
            until(format!("{check} of {part} is blind"), 40.s(), || {
                let status = watch.agent.status().map_err(|error| error.to_string())?;
                let rows = rows_of(&status, check, part);
                let is_blind = !rows.is_empty() && rows.iter().all(|it| it["state"] == "blind");
                let blind = status["blind"].to_string();
                if is_blind && blind.contains(reason) { Ok(()) } else { Err(format!("{rows:?}; {blind}")) }
            })?;
        }
        Ok(())
    });
}

#[test]
fn who_waits_for_others_at_redis_is_leased_and_leaks_nothing() {
    const QUEUE: usize = 12;
    const FED: [&str; 4] = ["subscribe", "psubscribe", "monitor", "xread"];
    alone(|stage| {
        let server = start(stage, 100)?;
        let mut worker = pool(stage, "worker", &server, Route::V4, 20)?;
        let mut events = pool(stage, "events", &server, Route::Unix, 5)?;
        let mut configuration = server.section("tickbird", Route::V4)?
            + &app("worker", &worker.command())
            + &app("events", &events.command());
        for it in ["pool.leak", "pool.idle_in_transaction"] {
            configuration += &check(it, "warning = \"5s\"");
        }
        worker.does(&format!("block {QUEUE}"))?;
        for it in &mut [&mut worker, &mut events] {
            FED.iter().try_for_each(|what| it.does(what).map(drop))?;
            it.does("traffic 10")?;
        }
        let watch = Watch::begin(stage, &configuration)?;
        // Who is fed by others may be fed at any moment: then it is a session of its own, which no rule names.
        let is_apart = |it: &ConnectionSeen| it.verdict == "unknown" && it.rule.starts_with("a session of its own");
        let is_certain = |it: &ConnectionSeen| ["leased", "busy"].contains(&it.verdict.as_str());
        for (it, waiting, certain) in [(&worker, QUEUE + FED.len(), QUEUE), (&events, FED.len(), 0)] {
            until(format!("{} waits for long", it.name()), 60.s(), || {
                let status = watch.agent.status().map_err(|error| error.to_string())?;
                let pools = pools_in(&status).map_err(|error| error.to_string())?;
                let of_app = pools.iter().filter(|pool| pool.pid == Some(it.pid())).flat_map(|pool| &pool.connections);
                let waits: Vec<_> = of_app.clone().filter(|it| it.state.as_deref() == Some("listening")).collect();
                let old = |it: &&&ConnectionSeen| is_certain(it) && it.age.is_some_and(|age| age > 20.0);
                let is_told = waits.len() == waiting && waits.iter().all(|it| is_certain(it) || is_apart(it));
                let is_held = of_app.clone().any(|it| it.verdict == "held");
                let is_good = is_told && !is_held && waits.iter().filter(old).count() >= certain;
                if is_good { Ok(()) } else { Err(format!("{pools:?}")) }
            })?;
            watch.sees("pool.leak", it.name(), "ok", 40.s())?;
            watch.sees("pool.idle_in_transaction", it.name(), "ok", 40.s())?;
        }
        for part in ["worker", "events", &server.address()] {
            watch.silent_about(part)?;
        }
        Ok(())
    });
}

#[test]
fn a_redis_that_steps_down_says_so_and_a_replica_without_its_primary_is_behind() {
    alone(|stage| {
        let (first, second) = (start(stage, 50)?, start(stage, 50)?);
        let configuration = check("db.replica", "warning = \"5s\"")
            + &first.section("tickbird", Route::V4)?
            + &second.section("tickbird", Route::V4)?;
        let watch = Watch::begin(stage, &configuration)?;
        watch.sees("db.role", &second.address(), "ok", 40.s())?;
        let (host, port) =
            first.address().split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap_or_default();
        for words in [["CONFIG", "SET", "masteruser", "app"], ["CONFIG", "SET", "masterauth", &password("app")]] {
            second.says(&words)?;
        }
        second.says(&["REPLICAOF", &host, &port])?;
        watch.sees("db.role", &second.address(), "info", 40.s())?;
        for server in [&first, &second] {
            watch.sees("db.replica", &server.address(), "ok", 40.s())?;
        }
        drop(first);
        watch.fires("db.replica", &second.address(), 60.s()).map(drop)
    });
}
