//! What is taken out of the configuration fires no more, at the agent and at the collector; what stays, stays.

use tickbird_tests::agent::{check, postgres};
use tickbird_tests::{Application, Postgres, Seconds, StageError, Watch, alone, until};

const STATUS: &str = "http.status";

fn page(web: &Application) -> String {
    format!("[[endpoint]]\nurl = \"{}\"\ninterval = \"1s\"\n", web.url())
}

/// A part of the endpoint's target.
fn of(web: &Application) -> String {
    web.url().trim_start_matches("http://").trim_end_matches('/').to_owned()
}

#[test]
fn an_endpoint_and_a_server_that_a_reload_removes_end_and_others_go_on() {
    alone(|stage| {
        let server = Postgres::start(stage, 30)?;
        let (mut old, mut kept) = (Application::web(stage, "old-shop", 0)?, Application::web(stage, "shop", 0)?);
        let (old_page, kept_page) = (page(&old), page(&kept));
        let full = check("db.headroom", "warning = \"1%\"\ncritical = \"2%\"\nhold = 1");
        let with_server = postgres(&server.dsn_file("tickbird")?) + &full;
        let watch = Watch::begin(stage, &[&old_page, &kept_page, &*with_server].concat())?;
        for web in [&mut old, &mut kept] {
            web.does("status 500")?;
        }
        watch.fires(STATUS, &of(&old), 30.s())?;
        watch.fires(STATUS, &of(&kept), 30.s())?;
        watch.fires("db.headroom", "/app", 30.s())?;
        watch.agent.configure(&(kept_page + &full))?;
        watch.agent.reload()?;
        watch.resolves(STATUS, &of(&old), 90.s())?;
        watch.resolves("db.headroom", "/app", 90.s())?;
        let status = watch.agent.status()?.to_string();
        assert!(!status.contains(&of(&old)), "nothing is left of it: {status}");
        watch.sees(STATUS, &of(&kept), "critical", 5.s())?;
        let incidents = watch.collector.items("incidents", "status=firing")?;
        assert!(incidents.iter().any(|it| it["target"].to_string().contains(&of(&kept))), "{incidents:?}");
        Ok::<(), StageError>(())
    });
}

#[test]
fn what_fired_of_a_check_that_is_off_after_a_restart_is_over() {
    alone(|stage| {
        let mut web = Application::web(stage, "shop", 0)?;
        let watched = page(&web);
        let mut watch = Watch::begin(stage, &watched)?;
        web.does("status 500")?;
        watch.fires(STATUS, &of(&web), 30.s())?;
        // It has no time to tell anybody.
        watch.agent.kill()?;
        watch.agent.configure(&(watched + &check(STATUS, "enabled = false")))?;
        watch.agent.run()?;
        // By the first list of all that fires, a minute and a half after the start.
        let within = 120.s();
        until("the collector has heard that nothing fires", within, || {
            let firing = watch.collector.items("incidents", "status=firing").map_err(|error| error.to_string())?;
            match firing.iter().find(|it| it["check"] == STATUS) {
                None => Ok(()),
                Some(it) => Err(it.to_string()),
            }
        })
    });
}
