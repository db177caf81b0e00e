//! Every fault of a pool is found, its end is found, and the twin beside it stays silent.

use tickbird_tests::agent::{app, check, postgres};
use tickbird_tests::watch::rows_of;
use tickbird_tests::xray::pools_in;
use tickbird_tests::{Application, Postgres, Seconds, Stage, StageError, Watch, alone, until};

/// An application, its healthy twin on the same server, and a watch over both.
struct Pools {
    server: Postgres,
    faulty: Application,
    twin: Application,
    watch: Watch,
}

impl Pools {
    /// `settings` are check sections with shorter times than the shipped ones.
    fn begin(stage: &Stage, settings: &str) -> Result<Self, StageError> {
        let server = Postgres::start(stage, 100)?;
        let mut faulty = Application::pooled(stage, "faulty-api", &server)?;
        let mut twin = Application::pooled(stage, "twin-api", &server)?;
        for it in [&mut faulty, &mut twin] {
            it.does("traffic 20")?;
        }
        let configuration = [
            postgres(&server.dsn_file("tickbird")?),
            app(faulty.name(), &faulty.command()),
            app(twin.name(), &twin.command()),
            settings.to_owned(),
        ]
        .concat();
        let watch = Watch::begin(stage, &configuration)?;
        Ok(Self { server, faulty, twin, watch })
    }

    /// The twin has been seen by this check, and nothing was ever found about it.
    fn twin_is_silent(&mut self, check: &str) -> Result<(), StageError> {
        self.watch.sees(check, self.twin.name(), "ok", 5.s())?;
        self.watch.silent_about(self.twin.name())?;
        let (served, failed) = self.twin.served()?;
        assert!(served > 20 && failed == 0, "the twin was at work: {served} served, {failed} failed");
        Ok(())
    }
}

/// With the shipped thresholds.
#[test]
fn a_transaction_that_failed_and_was_kept_is_named() {
    alone(|stage| {
        const CHECK: &str = "pool.aborted_transaction";
        let mut it = Pools::begin(stage, "")?;
        it.watch.sees(CHECK, "faulty-api", "ok", 30.s())?;
        let kept = it.faulty.aborts(2)?;
        let incident = it.watch.fires(CHECK, "faulty-api", 40.s())?;
        let named = incident["evidence"]["sessions"].as_array().cloned().unwrap_or_default();
        let mut backends: Vec<i64> = named.iter().filter_map(|row| row["backend"].as_i64()).collect();
        let mut truth: Vec<i64> = kept.iter().map(|it| i64::from(it.backend)).collect();
        backends.sort_unstable();
        truth.sort_unstable();
        assert_eq!(backends, truth);
        it.faulty.repairs()?;
        it.watch.resolves(CHECK, "faulty-api", 30.s())?;
        it.twin_is_silent(CHECK)
    });
}

#[test]
fn connections_that_the_server_closed_are_found_in_a_pool_at_work() {
    alone(|stage| {
        const CHECK: &str = "pool.close_wait";
        let mut it = Pools::begin(stage, &check(CHECK, "warning = \"5s\""))?;
        it.watch.sees(CHECK, "faulty-api", "ok", 30.s())?;
        for held in it.faulty.holds(6)? {
            it.server.terminate([held.backend])?;
        }
        it.watch.fires(CHECK, "faulty-api", 30.s())?;
        it.faulty.repairs()?;
        it.watch.resolves(CHECK, "faulty-api", 30.s())?;
        it.twin_is_silent(CHECK)
    });
}

/// Most of these connections live and die between two looks: only the kernel's destroy events tell of them, and those
/// name no process. So each application has a server of its own here.
#[test]
fn connections_opened_for_each_request_are_churn() {
    alone(|stage| {
        const CHECK: &str = "pool.churn";
        let (one, other) = (Postgres::start(stage, 50)?, Postgres::start(stage, 50)?);
        let mut faulty = Application::pooled(stage, "faulty-api", &one)?;
        let mut twin = Application::pooled(stage, "twin-api", &other)?;
        let mut configuration = check(CHECK, "hold = \"5s\"");
        for (application, server) in [(&mut faulty, &one), (&mut twin, &other)] {
            application.does("traffic 20")?;
            configuration += &postgres(&server.dsn_file("tickbird")?);
            configuration += &app(application.name(), &application.command());
        }
        let watch = Watch::begin(stage, &configuration)?;
        watch.sees(CHECK, "faulty-api", "ok", 30.s())?;
        faulty.does("churn 10")?;
        watch.fires(CHECK, "faulty-api", 30.s())?;
        faulty.does("churn 0")?;
        watch.resolves(CHECK, "faulty-api", 90.s())?;
        watch.sees(CHECK, "twin-api", "ok", 5.s())?;
        watch.silent_about("twin-api")
    });
}

#[test]
fn a_pool_that_is_nearly_used_up_is_found_against_the_limit_in_its_own_dsn() {
    alone(|stage| {
        const CHECK: &str = "pool.utilization";
        let mut it = Pools::begin(stage, &check(CHECK, "hold = \"5s\""))?;
        it.watch.sees(CHECK, "faulty-api", "ok", 30.s())?;
        it.faulty.leaks(27)?; // of 20 and 10 more
        let incident = it.watch.fires(CHECK, "faulty-api", 40.s())?;
        assert_eq!(incident["severity"], "warning", "a range fires by its certain end and stays a warning");
        it.faulty.repairs()?;
        it.watch.resolves(CHECK, "faulty-api", 30.s())?;
        it.twin_is_silent(CHECK)
    });
}

/// With the shipped thresholds. Every connection up to the limit is certainly used, so the number is exact.
#[test]
fn a_pool_that_is_used_up_to_its_configured_limit_is_critical() {
    alone(|stage| {
        const CHECK: &str = "pool.utilization";
        let server = Postgres::start(stage, 100)?;
        let mut faulty = Application::pooled(stage, "faulty-api", &server)?;
        let mut twin = Application::pooled(stage, "twin-api", &server)?;
        let mut settings = postgres(&server.dsn_file("tickbird")?);
        for it in [&mut faulty, &mut twin] {
            it.does("traffic 20")?;
            settings += &(app(it.name(), &it.command()) + "pool.limit = 30\n");
        }
        let watch = Watch::begin(stage, &settings)?;
        watch.sees(CHECK, "faulty-api", "ok", 30.s())?;
        faulty.leaks(30)?;
        until("it is critical", 90.s(), || {
            let status = watch.agent.status().map_err(|error| error.to_string())?;
            let rows = rows_of(&status, CHECK, "faulty-api");
            let is_critical = rows.iter().any(|it| it["state"] == "critical");
            if is_critical { Ok(()) } else { Err(format!("{rows:?}")) }
        })?;
        let incident = watch.fires(CHECK, "faulty-api", 10.s())?;
        assert_eq!(incident["severity"], "critical", "{incident}");
        faulty.repairs()?;
        watch.resolves(CHECK, "faulty-api", 40.s())?;
        watch.sees(CHECK, "twin-api", "ok", 5.s())?;
        watch.silent_about("twin-api")
    });
}

#[test]
fn a_server_almost_out_of_slots_is_found_and_one_with_room_is_not() {
    alone(|stage| {
        const CHECK: &str = "db.headroom";
        // 44 less 3 for superusers: one application and the agent use half, two applications use all of them.
        let tight = Postgres::start(stage, 44)?;
        let roomy = Postgres::start(stage, 100)?;
        let _resident = Application::pooled(stage, "resident-api", &tight)?;
        let _neighbour = Application::pooled(stage, "neighbour-api", &roomy)?;
        let configuration = [&tight, &roomy].map(|it| it.dsn_file("tickbird").map(|file| postgres(&file)));
        let configuration = configuration.into_iter().collect::<Result<String, _>>()?;
        let watch = Watch::begin(stage, &configuration)?;
        let [tight_key, roomy_key] = [&tight, &roomy].map(|it| format!("server:127.0.0.1:{}", it.port()));
        watch.sees(CHECK, &tight_key, "ok", 40.s())?;
        let mut guest = Application::pooled(stage, "guest-api", &tight)?;
        let incident = watch.fires(CHECK, &tight_key, 40.s())?;
        assert!(incident["summary"].as_str().is_some_and(|it| it.contains("41")), "{}", incident["summary"]);
        guest.stop()?;
        watch.resolves(CHECK, &tight_key, 40.s())?;
        watch.sees(CHECK, &roomy_key, "ok", 5.s())?;
        watch.silent_about(&roomy_key)
    });
}

#[test]
fn a_server_that_refuses_is_critical_until_it_serves_again() {
    alone(|stage| {
        const CHECK: &str = "db.connect";
        let mut failing = Postgres::start(stage, 50)?;
        let steady = Postgres::start(stage, 50)?;
        let configuration = [&failing, &steady].map(|it| it.dsn_file("tickbird").map(|file| postgres(&file)));
        let configuration = configuration.into_iter().collect::<Result<String, _>>()?;
        let watch = Watch::begin(stage, &configuration)?;
        let [failing_key, steady_key] = [&failing, &steady].map(|it| format!("server:127.0.0.1:{}", it.port()));
        watch.sees(CHECK, &failing_key, "ok", 40.s())?;
        failing.stop()?;
        let incident = watch.fires(CHECK, &failing_key, 40.s())?;
        assert_eq!(incident["severity"], "critical");
        assert!(incident.to_string().contains("refused"), "{incident}");
        failing.serve()?;
        watch.resolves(CHECK, &failing_key, 60.s())?;
        watch.silent_about(&steady_key)
    });
}

/// Nobody has told the agent of this server: its program says what listens there, whatever the port.
#[test]
fn a_pool_to_a_server_on_any_port_is_found_without_configuration_and_another_look_beside_it_is_no_application() {
    alone(|stage| {
        let server = Postgres::start(stage, 50)?;
        let shop = Application::pooled(stage, "shop-api", &server)?;
        let watch = Watch::begin(stage, "")?;
        let remote = format!(">127.0.0.1:{}", server.port());
        until("the pool is found", 30.s(), || {
            let text = |error: StageError| error.to_string();
            let pools = pools_in(&watch.agent.status().map_err(text)?).map_err(text)?;
            let is_there = pools.iter().any(|it| it.pid == Some(shop.pid()) && it.target.contains(&remote));
            if is_there { Ok(()) } else { Err(format!("{pools:?}")) }
        })?;
        // A look of its own opens a session of its own, for as long as it lasts.
        let dsn = server.dsn_file("tickbird")?;
        watch.agent.configure(&postgres(&dsn))?;
        for _ in 0..3 {
            let seen = watch.agent.report("inspect", &[])?;
            assert!(!seen["targets"].to_string().contains("tickbird-agent"), "{}", seen["targets"]);
            let running = watch.agent.status()?;
            assert!(!running["targets"].to_string().contains("tickbird-agent"), "{}", running["targets"]);
        }
        Ok(())
    });
}
