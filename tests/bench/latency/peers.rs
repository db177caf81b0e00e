//! Who else watches the same world each second: monit, which runs a program, and Prometheus with three exporters and
//! Alertmanager. Each rings a bell when something is wrong, and when it is over.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use serde_json::Value;
use tickbird_tests::postgres::free_port;
use tickbird_tests::process::{Running, installed};
use tickbird_tests::{Seconds, Stage, StageError, until};

use super::{SLOTS, World};

pub(super) const OVER: &str = "over";
/// Bytes of a message of Alertmanager.
const LARGEST: usize = 1 << 20;

/// A peer that runs, and its bell.
pub(super) struct Peer {
    pub(super) name: &'static str,
    processes: Vec<Running>,
    bell: Receiver<(Instant, String)>,
}

impl Peer {
    /// Its processes; what they start ends with them.
    pub(super) fn pids(&self) -> impl Iterator<Item = u32> {
        self.processes.iter().map(Running::pid)
    }

    /// Waits until it tells of this.
    pub(super) fn tells(&self, what: &str) -> Result<Instant, StageError> {
        let end = Instant::now() + 60.s();
        while let Ok((at, word)) = self.bell.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if word == what {
                return Ok(at);
            }
        }
        let said = self.processes.iter().map(Running::last_words).collect::<Vec<_>>().join("\n");
        Err(StageError::Failed { what: format!("{} tells {what}", self.name), said })
    }

    pub(super) fn monit(stage: &Stage, world: &World) -> Result<Self, StageError> {
        let program = installed("/usr/bin/monit", "monit")?;
        let room = stage.room("monit")?;
        let (port, bell) = bell()?;
        let ring = room.join("ring");
        write(&ring, 0o700, &format!("#!/bin/bash\nexec 3<>/dev/tcp/127.0.0.1/{port}\necho \"$1\" >&3\n"))?;
        let count = room.join("count");
        let used = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
        let dsn = world.server.dsn("tickbird");
        let most = f64::from(SLOTS) * 0.8;
        write(
            &count,
            0o700,
            &format!("#!/bin/bash\nused=$(psql -qtAX -c \"{used}\" '{dsn}')\n[ \"$used\" -le {most:.0} ]\n"),
        )?;
        let (room_, ring, count) = (room.display(), ring.display(), count.display());
        let tells =
            |check: &str| format!("then exec \"{ring} {check}\" else if succeeded then exec \"{ring} {OVER}\"\n");
        let settings = format!(
            "set daemon 1\nset pidfile {room_}/pid\nset idfile {room_}/id\nset statefile {room_}/state\n\
             check program connections with path \"{count}\" timeout 5 seconds\nif status != 0 {}\
             check host page with address 127.0.0.1\nif failed port {} protocol http request \"/health\" {}\
             check process worker matching \"{}\"\nif not exist {}",
            tells("db.headroom"),
            world.page.port(),
            tells("http.status"),
            world.worker.command(),
            tells("proc.gone"),
        );
        let file = room.join("settings");
        write(&file, 0o600, &settings)?;
        let mut command = Command::new(program);
        command.args(["-I", "-c"]).arg(&file);
        Ok(Self { name: "monit", processes: vec![started("monit", &mut command, &room)?], bell })
    }

    /// Prometheus looks and judges each second, and tells Alertmanager, which holds nothing back.
    pub(super) fn prometheus(stage: &Stage, world: &World) -> Result<Self, StageError> {
        let room = stage.room("prometheus")?;
        let (port, bell) = bell()?;
        let mut it = Self { name: "Prometheus", processes: Vec::new(), bell };
        let file = |name: &str, text: &str| {
            let path = room.join(name);
            write(&path, 0o600, text).map(|()| path)
        };
        let listens = |port: u16| format!("--web.listen-address=127.0.0.1:{port}");
        let [of_postgres, of_pages, of_processes, alerts, own] =
            [free_port()?, free_port()?, free_port()?, free_port()?, free_port()?];

        let mut command =
            Command::new(installed("/usr/bin/prometheus-postgres-exporter", "prometheus-postgres-exporter")?);
        command
            .arg(listens(of_postgres))
            .env("DATA_SOURCE_NAME", format!("{}?sslmode=disable", world.server.dsn("tickbird")));
        it.processes.push(started("postgres-exporter", &mut command, &stage.room("postgres-exporter")?)?);

        let pages =
            "modules:\n  page:\n    prober: http\n    timeout: 5s\n    http:\n      preferred_ip_protocol: ip4\n";
        let mut command =
            Command::new(installed("/usr/bin/prometheus-blackbox-exporter", "prometheus-blackbox-exporter")?);
        command.arg(listens(of_pages)).arg(option("config.file", &file("pages.yml", pages)?));
        it.processes.push(started("blackbox-exporter", &mut command, &stage.room("blackbox-exporter")?)?);

        let names = format!("process_names:\n  - name: worker\n    cmdline: ['{}']\n", world.worker.command());
        let mut command =
            Command::new(installed("/usr/bin/prometheus-process-exporter", "prometheus-process-exporter")?);
        command.arg(listens(of_processes)).arg(option("config.path", &file("processes.yml", &names)?));
        it.processes.push(started("process-exporter", &mut command, &stage.room("process-exporter")?)?);

        let route = format!(
            "route:\n  receiver: bell\n  group_by: ['...']\n  group_wait: 0s\n  group_interval: 1s\n  repeat_interval: 1h\n\
             receivers:\n  - name: bell\n    webhook_configs:\n      - url: http://127.0.0.1:{port}/\n"
        );
        let mut command = Command::new(installed("/usr/bin/prometheus-alertmanager", "prometheus-alertmanager")?);
        command.arg(listens(alerts)).arg("--cluster.listen-address=").arg(option("storage.path", &room.join("alerts")));
        command.arg(option("config.file", &file("alertmanager.yml", &route)?));
        it.processes.push(started("alertmanager", &mut command, &stage.room("alertmanager")?)?);

        let most = f64::from(SLOTS) * 0.8;
        let rules = format!(
            "groups:\n  - name: faults\n    interval: 1s\n    rules:\n\
             \x20     - alert: db.headroom\n        expr: sum(pg_stat_database_numbackends) > {most}\n\
             \x20     - alert: http.status\n        expr: probe_success == 0\n\
             \x20     - alert: proc.gone\n        expr: namedprocess_namegroup_num_procs{{groupname=\"worker\"}} == 0\n"
        );
        let settings = format!(
            "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nrule_files: ['{rules}']\n\
             alerting:\n  alertmanagers:\n    - static_configs: [{{targets: ['127.0.0.1:{alerts}']}}]\n\
             scrape_configs:\n  - job_name: postgres\n    static_configs: [{{targets: ['127.0.0.1:{of_postgres}']}}]\n\
             \x20 - job_name: processes\n    static_configs: [{{targets: ['127.0.0.1:{of_processes}']}}]\n\
             \x20 - job_name: page\n    metrics_path: /probe\n    params: {{module: [page], target: ['{page}']}}\n\
             \x20   static_configs: [{{targets: ['127.0.0.1:{of_pages}']}}]\n",
            rules = file("rules.yml", &rules)?.display(),
            page = world.page.url(),
        );
        let mut command = Command::new(installed("/usr/bin/prometheus", "prometheus")?);
        command.arg(listens(own)).arg(option("storage.tsdb.path", &room.join("data")));
        command.arg(option("config.file", &file("prometheus.yml", &settings)?));
        it.processes.push(started("prometheus", &mut command, &room)?);
        it.sees_all(own)?;
        Ok(it)
    }

    /// Until every rule has something to judge.
    fn sees_all(&mut self, port: u16) -> Result<(), StageError> {
        for query in ["pg_stat_database_numbackends", "probe_success", "namedprocess_namegroup_num_procs"] {
            until(format!("Prometheus knows {query}"), 60.s(), || {
                self.processes.iter_mut().try_for_each(Running::alive)?;
                let path = format!("/api/v1/query?query={query}");
                let said = tickbird_tests::requests::exchange(port, "GET", &path).unwrap_or_default();
                if said.contains("\"value\":[") { Ok(()) } else { Err(said) }
            })?;
        }
        Ok(())
    }
}

pub(crate) fn option(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

pub(crate) fn started(name: &str, command: &mut Command, room: &Path) -> Result<Running, StageError> {
    Running::start(name, command.stdin(Stdio::null()).stdout(Stdio::null()), &room.join("log"))
}

/// A port, and what is said there: each line, or of a message of Alertmanager the name of each alert that fires, and [`OVER`] for
/// each that does not any more.
pub(crate) fn bell() -> Result<(u16, Receiver<(Instant, String)>), StageError> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(StageError::system("bind a free port"))?;
    let port = listener.local_addr().map_err(StageError::system("read the port"))?.port();
    let (sender, bell) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (at, sender) = (Instant::now(), sender.clone());
            std::thread::spawn(move || {
                // What is cut is nothing that anybody waits for, and who waits may be gone.
                let _ = hear(&stream, |words| words.into_iter().for_each(|word| drop(sender.send((at, word)))));
            });
        }
    });
    Ok((port, bell))
}

fn hear(stream: &TcpStream, mut says: impl FnMut(Vec<String>)) -> std::io::Result<()> {
    let (mut reader, mut first) = (BufReader::new(stream), String::new());
    reader.read_line(&mut first)?;
    if !first.starts_with("POST ") {
        says(vec![first.trim().to_owned()]);
        return Ok(());
    }
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim().to_ascii_lowercase().split_once(':') {
            Some(("content-length", value)) => length = value.trim().parse().unwrap_or(0),
            Some(_) => (),
            None => break,
        }
    }
    let mut body = vec![0; usize::min(length, LARGEST)];
    reader.read_exact(&mut body)?;
    let Ok(body) = serde_json::from_slice::<Value>(&body) else {
        says(vec!["something long".to_owned()]);
        return Ok(());
    };
    let word = |alert: &Value| match alert["status"].as_str() {
        Some("firing") => alert["labels"]["alertname"].as_str().unwrap_or_default().to_owned(),
        _ => OVER.to_owned(),
    };
    says(body["alerts"].as_array().into_iter().flatten().map(word).collect());
    let mut answer = stream;
    answer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

fn write(file: &Path, mode: u32, text: &str) -> Result<(), StageError> {
    let failed = || StageError::system(format!("write {}", file.display()));
    std::fs::write(file, text).map_err(failed())?;
    std::fs::set_permissions(file, PermissionsExt::from_mode(mode)).map_err(failed())
}
