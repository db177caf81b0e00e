//! Prometheus with its exporters, for the same work as the agent as it is shipped: sockets and the application each second, both servers
//! and the pages every ten.

use std::path::Path;
use std::process::Command;

use tickbird_tests::postgres::free_port;
use tickbird_tests::process::{Running, installed};
use tickbird_tests::requests::exchange;
use tickbird_tests::{Seconds, Stage, StageError, until};

use super::{NAME, World, write};
use crate::latency::peers::{option, started};

/// Starts all of them, and waits until each has told something.
pub(super) fn start(stage: &Stage, world: &World) -> Result<Vec<Running>, StageError> {
    let mut all = Vec::new();
    let mut exporter = |program: &'static str, arguments: &dyn Fn(&mut Command, &Path) -> Result<(), StageError>| {
        let (port, room) = (free_port()?, stage.room(program)?);
        let mut command = Command::new(installed(&format!("/usr/bin/{program}"), program)?);
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        arguments(&mut command, &room)?;
        all.push(started(program, &mut command, &room)?);
        Ok::<_, StageError>(port)
    };
    let of_postgres = exporter("prometheus-postgres-exporter", &|command, _| {
        command.env("DATA_SOURCE_NAME", format!("{}?sslmode=disable", world.postgres.dsn("tickbird")));
        Ok(())
    })?;
    let of_redis = exporter("prometheus-redis-exporter", &|command, _| {
        command.arg(format!("--redis.addr=redis://127.0.0.1:{}", world.redis.port()));
        Ok(())
    })?;
    let of_pages = exporter("prometheus-blackbox-exporter", &|command, room| {
        let pages =
            "modules:\n  page:\n    prober: http\n    timeout: 5s\n    http:\n      preferred_ip_protocol: ip4\n";
        let file = room.join("pages.yml");
        command.arg(option("config.file", &file));
        write(&file, pages)
    })?;
    let of_processes = exporter("prometheus-process-exporter", &|command, room| {
        let names = format!("process_names:\n  - name: {NAME}\n    cmdline: ['{}']\n", world.application.command());
        let file = room.join("processes.yml");
        command.arg(option("config.path", &file));
        write(&file, &names)
    })?;
    let of_sockets = exporter("prometheus-node-exporter", &|command, _| {
        command.args(["--collector.disable-defaults", "--collector.sockstat", "--collector.tcpstat"]);
        Ok(())
    })?;

    let room = stage.room("prometheus")?;
    let job = |name: &str, every: u64, port: u16| {
        format!(
            "  - job_name: {name}\n    scrape_interval: {every}s\n    static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n"
        )
    };
    let pages: Vec<String> = world.pages().map(|it| format!("'{it}'")).collect();
    let settings = format!(
        "scrape_configs:\n{}{}{}{}\
         \x20 - job_name: pages\n    scrape_interval: 10s\n    metrics_path: /probe\n    params: {{module: [page]}}\n\
         \x20   static_configs: [{{targets: [{}]}}]\n    relabel_configs:\n\
         \x20     - {{source_labels: [__address__], target_label: __param_target}}\n\
         \x20     - {{source_labels: [__param_target], target_label: instance}}\n\
         \x20     - {{target_label: __address__, replacement: '127.0.0.1:{of_pages}'}}\n",
        job("postgres", 10, of_postgres),
        job("redis", 10, of_redis),
        job("processes", 1, of_processes),
        job("sockets", 1, of_sockets),
        pages.join(", "),
    );
    let (file, own) = (room.join("prometheus.yml"), free_port()?);
    write(&file, &settings)?;
    let mut command = Command::new(installed("/usr/bin/prometheus", "prometheus")?);
    command.arg(format!("--web.listen-address=127.0.0.1:{own}")).arg(option("config.file", &file));
    command.arg(option("storage.tsdb.path", &room.join("data")));
    all.push(started("prometheus", &mut command, &room)?);
    for known in [
        "pg_stat_database_numbackends",
        "redis_up==1",
        "namedprocess_namegroup_num_procs",
        "node_tcp_connection_states",
        "probe_success==1",
    ] {
        until(format!("Prometheus knows {known}"), 60.s(), || {
            all.iter_mut().try_for_each(Running::alive)?;
            let said = exchange(own, "GET", &format!("/api/v1/query?query={}", known.replace("==", "%3D%3D")))
                .unwrap_or_default();
            if said.contains("\"value\":[") { Ok(()) } else { Err(said) }
        })?;
    }
    Ok(all)
}
