//! What no agent can see alone: of two services behind one pooler, on two hosts, one lacks what the other has in its DSN.

use serde_json::Value;
use tickbird_tests::agent::{User, app};
use tickbird_tests::collector::receiver;
use tickbird_tests::postgres::Route;
use tickbird_tests::truth::{backends, descriptors};
use tickbird_tests::webhook::{firing, resolved};
use tickbird_tests::{
    Agent, Application, Collector, Far, Library, PgBouncer, Postgres, Seconds, Sizes, StageError, Webhook, alone,
};

const CHECK: &str = "fleet.pool_params";
/// What SQLAlchemy documents for asyncpg.
const KEY: &str = "prepared_statement_cache_size=0";

/// The first host's services have the key, as its operator demands of them; nobody told the second host's agent anything,
/// not even that there is a pooler.
#[test]
fn a_service_that_lacks_what_another_host_has_in_its_dsn_is_named_until_it_has_it() {
    alone(|stage| {
        let (one, other) = (Far::begin_apart(stage, 1)?, Far::begin_apart(stage, 2)?);
        let here = one.near();
        let server = Postgres::start(stage, 100)?;
        let pooler = || PgBouncer::start_at(stage, &server, &here);
        let (differing, equal) = (pooler()?, pooler()?);
        let with_key = format!("?{KEY}");
        let service = |host: &Far, name: &str, dsn: String| {
            let dsn = vec![("DATABASE_URL", dsn)];
            Application::through_on(host, stage, name, Library::AsyncEngine, dsn, Sizes::full(2))
        };
        let shop = service(&one, "shop-api", differing.dsn("asyncpg", &with_key))?;
        let calm = service(&one, "calm-api", equal.dsn("asyncpg", &with_key))?;
        let billing = service(&other, "billing-api", differing.dsn_aside("asyncpg", ""))?;
        let quiet = service(&other, "quiet-api", equal.dsn_aside("asyncpg", &with_key))?;
        // psycopg2 prepares nothing by itself.
        let plain = vec![("DATABASE_URL", differing.dsn("psycopg2", ""))];
        let plain = [differing.environment(&server, Route::V4), plain].concat();
        let right = Application::through_on(&other, stage, "right-api", Library::QueuePool, plain, Sizes::full(2))?;

        let webhook = Webhook::start(stage)?;
        let mut collector = Collector::init_with(stage, &["--name", &here])?;
        let everywhere = collector.agents().replace("127.0.0.1", "0.0.0.0");
        collector.rewrite(&format!("listen = \"{}\"", collector.agents()), &format!("listen = \"{everywhere}\""))?;
        collector.configure(&receiver(&webhook))?;
        collector.serve()?;
        let (_, port) = collector.agents().rsplit_once(':').expect("an address has a port");
        let to_collector = format!("[collector]\nurl = \"https://{here}:{port}\"\n");
        let agent = |host: &Far, settings: &str| -> Result<Agent, StageError> {
            let mut it = Agent::prepare(stage, &format!("{to_collector}{settings}"), User::Same)?.on(host);
            it.enrol(&collector)?;
            it.run()?;
            Ok(it)
        };
        let mut settings = String::new();
        for it in [&shop, &calm] {
            settings += &app(it.name(), &it.command());
            settings += &format!("pool.pooler = \"transaction\"\npool.required = [\"{KEY}\"]\n");
        }
        let first = agent(&one, &settings)?;
        let settings: String = [&billing, &quiet, &right].map(|it| app(it.name(), &it.command())).concat();
        let second = agent(&other, &settings)?;

        let incident = &webhook.hears("the difference", 120.s(), firing(CHECK))?.json["incident"];
        let server_of = |it: &PgBouncer| format!("server:{here}:{}", it.port());
        let about = (&incident["severity"], &incident["target"]);
        assert_eq!(about, (&"warning".into(), &server_of(&differing).into()));
        let summary = incident["summary"].as_str().unwrap_or_default();
        let said = "prepared_statement_cache_size is set by shop-api and not by billing-api";
        assert!(summary.contains("asyncpg") && summary.contains(said), "{summary}");
        let id = |agent: &Agent| -> Result<Value, StageError> { Ok(agent.status()?["agent"]["id"].clone()) };
        let mut services = incident["evidence"]["services"].as_array().cloned().unwrap_or_default();
        services.sort_by_key(|it| it["application"].to_string());
        let named: Vec<_> = services.iter().map(|it| (&it["application"], &it["agent"])).collect();
        assert_eq!(named, [(&"billing-api".into(), &id(&second)?), (&"shop-api".into(), &id(&first)?)]);
        assert!(!incident.to_string().contains("canary"), "nothing of a password is told: {incident}");
        // The collector has seen the others' pools, too, each by its own agent.
        for (name, agent) in [("quiet-api", &second), ("right-api", &second), ("calm-api", &first)] {
            let pools = collector.items("fleet/pools", &format!("application={name}"))?;
            assert_eq!(pools.len(), 1, "{name}: {pools:?}");
            assert!(agent.status()?.to_string().contains(name), "{name}");
        }

        drop(billing); // it ends with its input
        // What it prepared is left on the pooler's connections, where its successor would stumble over it.
        let (held, sessions) = (descriptors(differing.pid())?, backends(&server)?);
        server.terminate(sessions.iter().filter(|(port, _)| held.contains_key(port)).map(|(_, it)| it.pid))?;
        let _mended = service(&other, "billing-api", differing.dsn_aside("asyncpg", &with_key))?;
        webhook.hears("that both have it", 120.s(), resolved(CHECK))?;
        let incidents = collector.items("incidents", &format!("check={CHECK}"))?;
        assert_eq!(incidents.len(), 1, "neither the twin nor other drivers: {incidents:?}");
        Ok(())
    });
}
