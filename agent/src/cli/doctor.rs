//! `tickbird-agent doctor`: what each source needs, whether it has it, one run of each, and how to mend it.

use serde_json::json;

use super::{Failure, put, put_json};
use crate::agent::{Once, Separation, wall};
use crate::config::Config;
use crate::identity::{Identity, IdentityError};
#[cfg(feature = "mysql")]
use crate::inspect::mysql;
#[cfg(feature = "rabbitmq")]
use crate::inspect::rabbitmq;
#[cfg(feature = "redis")]
use crate::inspect::redis;
use crate::inspect::server::Obstacle;
use crate::inspect::{About, host, http_endpoint, log_tail, pgbouncer, postgres};
use crate::status::{Report, socket};

mod checks;
mod place;

/// One line of the doctor's.
struct Line {
    /// What was tried: `host`, `postgres 10.0.0.5:5432/app`, `identity`.
    what: String,
    /// `ok`, `note`, `blind`, `warning` or `critical`.
    state: &'static str,
    /// What was found.
    found: String,
    /// What it needs, for a source of facts.
    needs: Option<&'static str>,
    /// What to do.
    advice: Option<String>,
}

const IDENTITY: &str = "identity";
/// Neither well nor a fault.
const NOTE: &str = "note";

pub(super) async fn doctor(config: Config, as_json: bool) -> Result<u8, Failure> {
    let sections = checks::Sections::of(&config);
    let warnings = config.warnings.clone();
    let mut lines = vec![running(&config).await, enrolled(&config)];
    let servers: Vec<_> = config.postgres.iter().map(|it| it.inspector.clone()).collect();
    let poolers: Vec<_> = config.pgbouncer.iter().map(|it| it.inspector.clone()).collect();
    #[cfg(feature = "mysql")]
    let mysql: Vec<_> = config.mysql.iter().map(|it| it.inspector.clone()).collect();
    #[cfg(feature = "redis")]
    let redis: Vec<_> = config.redis.iter().map(|it| it.inspector.clone()).collect();
    #[cfg(feature = "rabbitmq")]
    let rabbitmq: Vec<_> = config.rabbitmq.iter().map(|it| it.inspector.clone()).collect();
    let who = place::Who::am_i(config.namespaces);
    let separation = super::separate(&config)?;
    lines.push(separated(&separation));
    let mut once = Once::new(config, &separation.reader);
    once.look().await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    once.look().await;
    let report = once.report();
    lines.push(source(&host::ABOUT, "host".to_owned(), &["process:", "pool:"], &report));
    lines.extend(once.surroundings().into_iter().flat_map(|it| place::lines(who, it)));
    for server in servers {
        lines.push(of_server(&server).await);
    }
    for pooler in poolers {
        let what = format!("pgbouncer {}", pooler.dsn);
        lines.push(checked(what, &pgbouncer::ABOUT, pgbouncer::check(&pooler).await));
    }
    #[cfg(feature = "mysql")]
    for server in mysql {
        let what = format!("mysql {}", server.dsn);
        lines.push(checked(what, &mysql::ABOUT, mysql::check(&server).await));
    }
    #[cfg(feature = "redis")]
    for server in redis {
        let what = format!("redis {}", server.dsn);
        lines.push(checked(what, &redis::ABOUT, redis::check(&server).await));
    }
    #[cfg(feature = "rabbitmq")]
    for server in rabbitmq {
        let what = format!("rabbitmq {}", server.url);
        lines.push(checked(what, &rabbitmq::ABOUT, rabbitmq::check(&server).await));
    }
    for target in report.targets.iter().filter(|it| it.kind == "endpoint") {
        lines.push(source(&http_endpoint::ABOUT, target.key.clone(), &[&target.key], &report));
    }
    for target in report.targets.iter().filter(|it| it.kind == "log") {
        lines.push(source(&log_tail::ABOUT, target.key.clone(), &[&target.key], &report));
    }
    lines.extend(report.blind.iter().map(|it| Line {
        what: it.checks.join(", "),
        state: "blind",
        found: it.reason.clone(),
        needs: None,
        advice: it.advice.clone(),
    }));
    lines.extend(sections.missing(&report));
    lines.extend(warnings.into_iter().map(|it| Line {
        what: "secrets".to_owned(),
        state: NOTE,
        found: it.what,
        needs: None,
        advice: Some(it.advice),
    }));
    show(exit_code(report.exit_code(), &lines), &lines, as_json)
}

/// The worst of what the report says, as `inspect` would, and of what was tried here.
fn exit_code(of_report: u8, lines: &[Line]) -> u8 {
    let is = |state: &str, code: u8| of_report == code || lines.iter().any(|it| it.state == state);
    match () {
        () if is("critical", 2) => 2,
        () if is("warning", 1) => 1,
        () if is("blind", 3) => 3,
        () => 0,
    }
}

/// A running agent of this version does the same.
fn separated(separation: &Separation) -> Line {
    let advice = "Landlock is in kernels from 5.13 on where `landlock` stands in /sys/kernel/security/lsm (lsm= on the \
                  kernel's command line), seccomp needs CONFIG_SECCOMP_FILTER; without them the capabilities are separated all \
                  the same";
    Line {
        what: "place: separation of rights".to_owned(),
        state: NOTE,
        found: separation.to_string(),
        needs: None,
        advice: (!separation.is_whole()).then(|| advice.to_owned()),
    }
}

async fn running(config: &Config) -> Line {
    let what = "running agent".to_owned();
    match socket::ask(&config.state_dir.join(socket::NAME)).await {
        Ok(report) => Line { what, state: "ok", found: format!("pid {}", report.agent.pid), needs: None, advice: None },
        // The doctor is also called before the first start: no agent is no fault of the checks.
        Err(error) => {
            Line { what, state: NOTE, found: error.to_string(), needs: None, advice: Some(error.advice().to_owned()) }
        }
    }
}

fn enrolled(config: &Config) -> Line {
    let what = IDENTITY.to_owned();
    let loaded = match &config.identity {
        Some(files) => std::sync::Arc::clone(files).load(wall()),
        None => Identity::load(&config.state_dir, wall()),
    };
    match loaded {
        Ok(it) => {
            let card = it.card();
            let url = config.collector.as_ref().map_or_else(|| card.url.clone(), ToString::to_string);
            let found = format!("{} at {url}, certificate until {}", card.agent, card.expires_at);
            if it.life().1 <= wall() {
                let advice = "it is renewed once the collector is reached, until 90 days after its end";
                return Line { what, state: "warning", found, needs: None, advice: Some(advice.to_owned()) };
            }
            Line { what, state: "ok", found, needs: None, advice: None }
        }
        Err(error @ IdentityError::NotEnrolled { .. }) => {
            let advice = error.advice().map(str::to_owned);
            Line { what, state: NOTE, found: "none: the agent watches alone".to_owned(), needs: None, advice }
        }
        Err(error) => {
            let advice = error.advice().map(str::to_owned);
            Line { what, state: "critical", found: error.to_string(), needs: None, advice }
        }
    }
}

/// What the report says of the targets whose keys begin so.
fn source(about: &'static About, what: String, keys: &[&str], report: &Report) -> Line {
    let is_ours = |key: &str| keys.iter().any(|start| key.starts_with(start));
    let targets = report.targets.iter().filter(|it| is_ours(&it.key)).count();
    let states: Vec<_> = report.checks.iter().filter(|it| is_ours(&it.target)).map(|it| it.state.as_str()).collect();
    let count = |state: &str| states.iter().filter(|it| **it == state).count();
    let found = format!(
        "{targets} targets, {} checks: {} ok, {} not yet known, {} blind, {} firing",
        states.len(),
        count("ok"),
        count("not yet"),
        count("blind"),
        count("info") + count("warning") + count("critical"),
    );
    let worst = ["critical", "warning", "blind"].into_iter().find(|it| count(it) > 0);
    let state = worst.unwrap_or("ok");
    Line { what, state, found, needs: Some(about.needs), advice: None }
}

async fn of_server(config: &postgres::Config) -> Line {
    let what = format!("postgres {}", config.dsn);
    let needs = Some(postgres::ABOUT.needs);
    match postgres::check(config).await {
        Ok(seen) => {
            let found = format!(
                "PostgreSQL {} as {}{}, ready in {:.0} ms; {} sessions seen, {} hidden; {} of {} slots used",
                seen.version,
                seen.role,
                if seen.is_encrypted { " over TLS" } else { "" },
                seen.connect_seconds * 1e3,
                seen.visible,
                seen.hidden,
                seen.used,
                seen.slots,
            );
            let state = if seen.sees_all { "ok" } else { "blind" };
            Line { what, state, found, needs, advice: seen.advice }
        }
        Err(error) => {
            let advice = error.advice().map(str::to_owned);
            let state = if error.is_blind() { "blind" } else { "critical" };
            Line { what, state, found: error.to_string(), needs, advice }
        }
    }
}

/// What one look at a server showed.
fn checked(what: String, about: &About, outcome: Result<String, Obstacle>) -> Line {
    let needs = Some(about.needs);
    match outcome {
        Ok(found) => Line { what, state: "ok", found, needs, advice: None },
        Err(Obstacle { found, advice, is_blind }) => {
            // A server that keeps the agent out is no fault of the server's; `inspect` says the same.
            let state = if is_blind { "blind" } else { "critical" };
            Line { what, state, found, needs, advice: advice.map(str::to_owned) }
        }
    }
}

fn show(code: u8, lines: &[Line], as_json: bool) -> Result<u8, Failure> {
    if as_json {
        let lines = lines.iter().map(|it| {
            json!({ "what": it.what, "state": it.state, "found": it.found, "needs": it.needs, "advice": it.advice })
        });
        return put_json(code, &json!({ "schema": "tickbird.doctor/1", "lines": lines.collect::<Vec<_>>() }));
    }
    let mut shown = String::new();
    for it in lines {
        // The agent's own id looks like a token, and is none.
        let found = if it.what == IDENTITY { it.found.clone() } else { crate::scrub::text(&it.found, 2000) };
        shown.push_str(&format!("{:8}  {}: {found}\n", it.state, it.what));
        shown.extend(it.needs.map(|needs| format!("          needs:  {needs}\n")));
        shown.extend(it.advice.as_ref().map(|advice| format!("          do:     {advice}\n")));
    }
    put(code, shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_the_worst_of_the_report_and_the_lines() {
        let line = |state| Line { what: String::new(), state, found: String::new(), needs: None, advice: None };
        assert_eq!(exit_code(0, &[line("ok"), line(NOTE)]), 0);
        assert_eq!(exit_code(0, &[line("blind"), line(NOTE)]), 3);
        assert_eq!(exit_code(1, &[line("blind")]), 1);
        assert_eq!(exit_code(3, &[line("critical")]), 2);
        assert_eq!(exit_code(2, &[line("ok")]), 2);
    }
}
