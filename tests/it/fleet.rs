//! What no agent can see alone: pools of several hosts that together ask for more than their server has.

use std::fs::File;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tickbird_tests::agent::{app, postgres};
use tickbird_tests::process::{Running, run};
use tickbird_tests::webhook::firing;
use tickbird_tests::{
    Agent, Application, Collector, Library, Postgres, Seconds, Sizes, Stage, StageError, Watch, alone, until,
};

const CHECK: &str = "fleet.pool_budget";

/// A second host: a network of its own, from which some ports of this one are reached through a proxy, by its loopback.
pub(crate) struct Host {
    holder: Running,
}

impl Host {
    pub(crate) fn new(stage: &Stage) -> Result<Self, StageError> {
        let mut command = Command::new("/usr/bin/unshare");
        command.args(["--net", "/bin/sleep", "infinity"]).stdin(Stdio::null()).stdout(Stdio::null());
        let holder = Running::start("host", &mut command, &stage.room("host")?.join("log"))?;
        let it = Self { holder };
        let network = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).map_err(|error| error.to_string());
        until("the second host has its network", 10.s(), || {
            let (own, its) = (network("self")?, network(&it.holder.pid().to_string())?);
            if own == its { Err("it is ours".to_owned()) } else { Ok(()) }
        })?;
        it.runs(|| run(Command::new("/sbin/ip").args(["link", "set", "lo", "up"])).map(drop))?;
        Ok(it)
    }

    /// Does something there: what is started belongs to that host.
    pub(crate) fn runs<T: Send>(&self, act: impl FnOnce() -> Result<T, StageError> + Send) -> Result<T, StageError> {
        let network = File::open(format!("/proc/{}/ns/net", self.holder.pid()))
            .map_err(StageError::system("open the second host's network"))?;
        let enter = move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(io::Error::from)
                .map_err(StageError::system("enter the second host's network"))?;
            act()
        };
        thread::scope(|scope| scope.spawn(enter).join().expect("it does not panic"))
    }

    /// Lets it reach a port of this host at the same port of its own loopback.
    pub(crate) fn reaches(&self, port: u16) -> Result<(), StageError> {
        let bind = || TcpListener::bind(("127.0.0.1", port)).map_err(StageError::system("listen on the second host"));
        let listener = self.runs(bind)?;
        // This thread, and all it starts, is on the first host.
        thread::spawn(move || {
            for there in listener.incoming().flatten() {
                thread::spawn(move || TcpStream::connect(("127.0.0.1", port)).map(|here| carry(there, here)));
            }
        });
        Ok(())
    }
}

/// Carries bytes both ways until both ends are closed.
fn carry(there: TcpStream, here: TcpStream) {
    thread::scope(|scope| {
        for (from, to) in [(&there, &here), (&here, &there)] {
            scope.spawn(move || {
                let (mut reader, mut writer) = (from, to);
                // One that ends badly is closed like one that ends well.
                let _ = io::copy(&mut reader, &mut writer);
                let _ = to.shutdown(Shutdown::Write);
            });
        }
    });
}

fn application(stage: &Stage, name: &str, server: &Postgres, most: u16) -> Result<Application, StageError> {
    Application::of_library(stage, name, Library::PsycopgPool, server, Sizes { most, least: 2 })
}

pub(crate) fn watched(it: &Application, limit: u16) -> String {
    format!("{}pool.limit = {limit}\n", app(it.name(), &it.command()))
}

/// Ports that the collector listens on, as its configuration says.
pub(crate) fn ports(collector: &Collector) -> Result<Vec<u16>, StageError> {
    let path = collector.directory().join("collector.toml");
    let text = std::fs::read_to_string(path).map_err(StageError::system("read the collector's configuration"))?;
    let listens = text.lines().filter(|line| line.starts_with("listen"));
    Ok(listens.filter_map(|line| line.rsplit(':').next()?.trim_matches('"').parse().ok()).collect())
}

/// Two hosts reach one server by addresses that say nothing; its own identifier says that it is one.
#[test]
fn pools_of_two_hosts_that_together_can_exhaust_a_server_are_named_and_those_of_its_twin_are_not() {
    alone(|stage| {
        let tight = Postgres::start(stage, 60)?; // 57 without those for superusers
        let roomy = Postgres::start(stage, 60)?;
        let host = Host::new(stage)?;
        for server in [&tight, &roomy] {
            host.reaches(server.port())?;
        }
        // Two workers of ten are a pool of twenty.
        let _shop = [application(stage, "shop-api", &tight, 10)?, application(stage, "shop-api", &tight, 10)?];
        let billing = application(stage, "billing-api", &tight, 20)?;
        let calm = application(stage, "calm-api", &roomy, 14)?;
        let (search, quiet) = host.runs(|| {
            Ok((application(stage, "search-api", &tight, 20)?, application(stage, "quiet-api", &roomy, 14)?))
        })?;
        let servers = [postgres(&tight.dsn_file("tickbird")?), postgres(&roomy.dsn_file("tickbird")?)].concat();

        let workers = app("shop-api", "--name shop-api") + "pool.limit = 10\n";
        let here = [servers.clone(), workers, watched(&billing, 20), watched(&calm, 14)].concat();
        let watch = Watch::begin(stage, &here)?;
        for port in ports(&watch.collector)? {
            host.reaches(port)?;
        }
        let there = [servers, watched(&search, 20), watched(&quiet, 14)].concat();
        let _second = host.runs(|| Agent::running(stage, &watch.collector, &there))?;

        let message = watch.webhook.hears("the sum of both hosts", 180.s(), firing(CHECK))?;
        let incident = &message.json["incident"];
        let evidence = &incident["evidence"];
        assert_eq!(incident["severity"], "critical", "{incident}");
        assert_eq!(evidence["slots"], 57);
        let applications = evidence["applications"].as_array().cloned().unwrap_or_default();
        for name in ["shop-api", "billing-api", "search-api"] {
            let share = applications.iter().find(|it| it["application"] == name);
            assert_eq!(share.map(|it| &it["possible"]), Some(&20.into()), "{name}: {evidence}");
        }
        assert!(incident["summary"].to_string().contains("can exhaust it"), "{incident}");
        assert!(incident["advice"].to_string().contains("size"), "{incident}");
        let identifier = tight.sql("SELECT system_identifier FROM pg_control_system()")?;
        assert_eq!(incident["target"], format!("server:system/{}", identifier[0][0]));

        let pools = watch.collector.items("fleet/pools", "application=shop-api")?;
        assert_eq!((&pools[0]["processes"], &pools[0]["agents"]), (&2.into(), &1.into()), "{pools:?}");
        let report = watch.collector.items("reports/pools", "application=shop-api")?;
        let used = &report[0]["servers"][0];
        assert_eq!(used["server"], format!("system/{}", identifier[0][0]), "{report:?}");
        assert!(used["open_peak"].as_u64() >= Some(4), "two connections of each worker: {report:?}");
        let pools = watch.collector.items("fleet/pools", "application=search-api")?;
        assert_eq!(pools.len(), 1, "{pools:?}");
        assert_eq!(pools[0]["possible"], serde_json::json!({ "at_least": 20, "at_most": 20 }));
        assert_eq!(pools[0]["server"]["fires"], "critical");
        // Of the twin both hosts' pools are known, and half of its slots is no fault.
        let twin = roomy.sql("SELECT system_identifier FROM pg_control_system()")?;
        let pools = watch.collector.items("fleet/pools", &format!("server=system/{}", twin[0][0]))?;
        let possible: u64 = pools.iter().filter_map(|it| it["possible"]["at_most"].as_u64()).sum();
        assert_eq!(possible, 28, "{pools:?}");
        watch.silent_about(&twin[0][0])?;
        let told: Vec<_> = watch.webhook.attempts().into_iter().filter(|it| it.check() == CHECK).collect();
        assert_eq!(told.len(), 1, "one server, told once");
        Ok(())
    });
}
