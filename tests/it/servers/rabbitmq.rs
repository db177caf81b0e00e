//! RabbitMQ: every connection is named by its port; a full node has no headroom; a wrong password is blind.

use std::collections::BTreeSet;

use tickbird_tests::agent::{app, check};
use tickbird_tests::certificate::Certificate;
use tickbird_tests::postgres::{Route, password};
use tickbird_tests::watch::rows_of;
use tickbird_tests::xray::{Truth, pools_in};
use tickbird_tests::{Application, Library, RabbitMq, Seconds, Sizes, Stage, StageError, Watch, alone, until};

const EACH: u16 = 20;

fn start(stage: &Stage, sockets: u16) -> Result<RabbitMq, StageError> {
    RabbitMq::start(stage, &Certificate::ending_in(stage, 30)?, sockets)
}

fn pool(stage: &Stage, name: &str, server: &RabbitMq, route: Route, size: u16) -> Result<Application, StageError> {
    Application::through(stage, name, Library::Pika, server.environment(route), Sizes::full(size))
}

/// Descriptor and port of everything that the application holds.
fn truth(application: &Application) -> Result<BTreeSet<(u32, u64)>, String> {
    let truth = Truth::read(application.truth()).map_err(|error| error.to_string())?;
    let all = truth.last().map(|last| last.all.clone()).unwrap_or_default();
    let rows: BTreeSet<_> = all.iter().filter_map(|it| Some((it.fd?, u64::try_from(it.backend).ok()?))).collect();
    if rows.len() == usize::from(EACH) { Ok(rows) } else { Err(format!("{rows:?}")) }
}

#[test]
fn twenty_of_twenty_connections_of_rabbitmq_are_named_over_v4_v6_and_tls() {
    alone(|stage| {
        let server = start(stage, 200)?;
        let mut configuration = server.tls_section("tickbird", &password("tickbird"))?;
        let mut applications = Vec::new();
        for (name, route) in [("over-v4", Route::V4), ("over-v6", Route::V6), ("over-tls", Route::Tls)] {
            let it = pool(stage, name, &server, route, EACH)?;
            configuration += &app(name, &it.command());
            applications.push(it);
        }
        applications[0].does("traffic 10")?;
        let watch = Watch::begin(stage, &configuration)?;
        for it in &applications {
            until(format!("all connections of {} are named", it.name()), 60.s(), || {
                let truth = truth(it)?;
                let status = watch.agent.status().map_err(|error| error.to_string())?;
                let pools = pools_in(&status).map_err(|error| error.to_string())?;
                let of_app: Vec<_> = pools.iter().filter(|pool| pool.pid == Some(it.pid())).collect();
                let all = of_app.iter().flat_map(|pool| &pool.connections);
                let told: BTreeSet<_> = all.clone().filter_map(|it| Some((it.fd?, it.session?))).collect();
                // Channels do not answer in turn: nothing is concluded from a connection that is quiet or busy.
                let is_claimed = all.clone().any(|it| it.verdict != "unknown");
                if told == truth && !is_claimed { Ok(()) } else { Err(format!("{of_app:?}; in truth {truth:?}")) }
            })?;
            watch.silent_about(it.name())?;
        }
        watch.sees("db.headroom", &server.tls_address(), "ok", 40.s())?;
        watch.sees("db.connect", &server.tls_address(), "ok", 40.s())?;
        watch.silent_about(&server.tls_address())
    });
}

#[test]
fn a_full_rabbitmq_has_no_headroom() {
    alone(|stage| {
        let server = start(stage, 23)?;
        let it = pool(stage, "greedy", &server, Route::V4, EACH)?;
        let configuration = check("db.headroom", "hold = \"5s\"")
            + &server.section("tickbird", &password("tickbird"))?
            + &app("greedy", &it.command());
        let watch = Watch::begin(stage, &configuration)?;
        watch.fires("db.headroom", &server.address(), 60.s()).map(drop)
    });
}

#[test]
fn whoever_may_not_see_rabbitmq_is_blind_and_says_why() {
    alone(|stage| {
        let server = start(stage, 100)?;
        let it = pool(stage, "shop", &server, Route::V4, 5)?;
        let cases = [("tickbird", "hunter2", "Login failed"), ("manager", &password("manager"), "Not monitor user")];
        for (user, password, reason) in cases {
            let configuration = server.section(user, password)? + &app("shop", &it.command());
            let watch = Watch::begin(stage, &configuration)?;
            until(format!("{user} is blind"), 40.s(), || {
                let status = watch.agent.status().map_err(|error| error.to_string())?;
                let rows = rows_of(&status, "db.headroom", &server.address());
                let is_blind = !rows.is_empty() && rows.iter().all(|it| it["state"] == "blind");
                let blind = status["blind"].to_string();
                if is_blind && blind.contains(reason) { Ok(()) } else { Err(format!("{rows:?}; {blind}")) }
            })?;
            let said = format!("{}{}", watch.agent.log(), watch.agent.status()?);
            assert!(!said.contains("hunter2"), "the password is nowhere");
        }
        Ok(())
    });
}
