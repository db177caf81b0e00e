//! What the agent says of itself: where it cannot see, and where it is late.

use tickbird_tests::agent::{app, check, postgres};
use tickbird_tests::wait::until;
use tickbird_tests::{Application, Postgres, Seconds, Watch, alone};

#[test]
fn a_pool_without_a_view_of_its_server_is_blind_until_there_is_one() {
    alone(|stage| {
        const CHECK: &str = "agent.blind";
        let server = Postgres::start(stage, 50)?;
        let mut shop = Application::pooled(stage, "shop-api", &server)?;
        shop.does("traffic 20")?;
        let settings = app("shop-api", &shop.command());
        let watch = Watch::begin(stage, &settings)?;
        let incident = watch.fires(CHECK, "agent:self", 90.s())?;
        let text = incident.to_string();
        assert!(text.contains("no credential for PostgreSQL") && text.contains("pool.idle_in_transaction"), "{text}");
        watch.agent.configure(&(settings + &postgres(&server.dsn_file("tickbird")?)))?;
        watch.agent.reload()?;
        watch.resolves(CHECK, "agent:self", 60.s())?;
        watch.sees("pool.idle_in_transaction", "shop-api", "ok", 30.s()).map(drop)
    });
}

/// Nothing else starves an agent so surely.
#[test]
fn an_agent_that_is_held_up_says_so_and_that_it_is_over() {
    alone(|stage| {
        const CHECK: &str = "agent.slow";
        let watch = Watch::begin(stage, "")?;
        watch.sees(CHECK, "agent:self", "ok", 20.s())?;
        watch.agent.held_up(8.s())?;
        watch.fires(CHECK, "agent:self", 30.s())?;
        watch.resolves(CHECK, "agent:self", 60.s()).map(drop)
    });
}

/// Two thousand connections, ten looks a second, and a thousandth of a core for it.
#[test]
fn an_agent_over_its_budget_looks_less_often_and_says_both_until_it_has_room() {
    alone(|stage| {
        let _pool = Application::sockets(stage, 27017, 2_000)?;
        let often = "[host]\ninterval = \"100ms\"\n".to_owned() + &check("agent.budget", "hold = \"15s\"");
        let watch = Watch::begin(stage, &(often.clone() + "[budget]\ncpu = \"0.1%\"\n"))?;
        let told = watch.fires("agent.budget", "agent:self", 120.s())?;
        assert_eq!(told["severity"], "warning");
        let told = watch.fires("agent.slow", "agent:self", 180.s())?;
        assert!(told.to_string().contains("times less often than configured"), "{told}");
        let slower = &watch.agent.status()?["agent"]["times_slower"];
        assert!(slower.as_u64() >= Some(4), "{slower}");
        watch.agent.configure(&(often + "[budget]\ncpu = \"200%\"\n"))?;
        watch.agent.reload()?;
        watch.resolves("agent.budget", "agent:self", 60.s())?;
        watch.resolves("agent.slow", "agent:self", 180.s())?;
        until("it looks as often as it is told", 120.s(), || match watch.agent.status() {
            Ok(status) if status["agent"]["times_slower"] == 1 => Ok(()),
            other => Err(format!("{:?}", other.map(|it| it["agent"].clone()))),
        })
    });
}
