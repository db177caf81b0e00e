//! What the agent says of itself: where it cannot see, and where it is late.

use tickbird_tests::agent::{app, postgres};
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
