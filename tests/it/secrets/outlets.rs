//! Everything that comes out of an agent and a collector, to be searched.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tickbird_tests::canary::Search;
use tickbird_tests::process::{installed, run};
use tickbird_tests::requests::exchange;
use tickbird_tests::{Agent, Collector, StageError, Webhook};

/// Prints every value of every table, the bytes of blobs in hexadecimal.
const DUMP: &str = "
import json, sqlite3, sys
store = sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True)
shown = lambda it: {'blob': it.hex()} if isinstance(it, bytes) else it
for (table,) in store.execute(\"SELECT name FROM sqlite_master WHERE type = 'table'\").fetchall():
    for row in store.execute(f'SELECT * FROM \"{table}\"'):
        print(json.dumps([table, *map(shown, row)]))
";

/// One thing that came out.
struct Outlet {
    name: String,
    bytes: Vec<u8>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Outlets(Vec<Outlet>);

impl Outlets {
    pub(super) fn take(&mut self, name: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.0.push(Outlet { name: name.into(), bytes: bytes.into() });
    }

    /// What every command of the agent says, but those that need a collector, and what it has logged.
    pub(super) fn take_commands(&mut self, agent: &Agent, pid: u32) -> Result<(), StageError> {
        let pid = pid.to_string();
        for words in [
            "inspect --json --sessions --checks",
            "inspect --sessions --checks",
            "inspect --why",
            "status --json --sessions --checks",
            "status --sessions --checks",
            "status --why",
            "doctor",
            "doctor --json",
            "check-config",
            "defaults --json",
            "inspectors",
            "buffer stat",
            "buffer peek urgent --limit 1000",
            "buffer peek bulk --limit 1000",
            "buffer verify",
            "buffer export",
        ] {
            let mut all: Vec<&str> = words.split(' ').collect();
            if words.ends_with("--why") {
                all.push(&pid);
            }
            let output = agent.ask(all[0], &all[1..])?;
            self.take(words, [output.stdout, output.stderr].concat());
        }
        self.take("the agent's log", agent.log());
        Ok(())
    }

    /// What the collector's commands say of receivers, what they try, and why they were told.
    pub(super) fn take_receivers(&mut self, collector: &Collector, incident: &str) -> Result<(), StageError> {
        let explained = collector.command(&["explain", incident])?;
        assert!(explained.contains("vault") && explained.contains("desk"), "{explained}");
        self.take("explain", explained);
        for words in ["receiver list", "receiver list --json", "receiver dead", "route show", "check-config"] {
            self.take(words, collector.command(&words.split(' ').collect::<Vec<_>>())?);
        }
        self.take("explain --json", collector.command(&["explain", "--json", incident])?);
        for name in ["pager", "vault", "chat", "desk"] {
            self.take(format!("receiver test {name}"), collector.command(&["receiver", "test", name])?);
            let refused = collector.command(&["receiver", "test", name, "--send"]).expect_err("nobody is there");
            self.take(format!("receiver test {name} --send"), refused.to_string());
        }
        Ok(())
    }

    /// What the agent's page tells whoever asks on this host.
    pub(super) fn take_pages(&mut self, port: u16) -> Result<(), StageError> {
        for path in ["/healthz", "/metrics"] {
            let said = exchange(port, "GET", path)?;
            assert!(said.starts_with("HTTP/1.1 200 "), "{path} is told: {said}");
            self.take(path, said);
        }
        Ok(())
    }

    /// Every file below a directory, byte by byte, but those whose name says that they hold a secret by design.
    pub(super) fn take_files(&mut self, what: &str, directory: &Path, but: &[&str]) -> Result<(), StageError> {
        let failed = || StageError::system(format!("read {}", directory.display()));
        for entry in std::fs::read_dir(directory).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if but.contains(&&*name) {
                continue;
            }
            if path.is_dir() {
                self.take_files(&format!("{what}/{name}"), &path, but)?;
            } else if path.is_file() {
                // A generation may be drained meanwhile.
                self.take(format!("{what}/{name}"), std::fs::read(&path).unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Every row of a store; what is compressed in it as it was before.
    pub(super) fn take_store(&mut self, what: &str, file: &Path) -> Result<(), StageError> {
        let rows = run(Command::new(installed("/usr/bin/python3", "python3")?).args(["-c", DUMP]).arg(file))?;
        let mut opened = 0;
        for row in rows.lines() {
            let malformed = |_| StageError::Malformed { what: "a row of the store".into(), found: row.to_owned() };
            let row: Vec<Value> = serde_json::from_str(row).map_err(malformed)?;
            for blob in row.iter().filter_map(|it| it["blob"].as_str()) {
                let bytes: Vec<u8> = (0..blob.len() / 2)
                    .filter_map(|at| u8::from_str_radix(&blob[2 * at..2 * at + 2], 16).ok())
                    .collect();
                if let Ok(text) = zstd::decode_all(&bytes[..]) {
                    self.take(format!("{what}, a body of {}", row[0]), text);
                    opened += 1;
                }
                self.take(format!("{what}, bytes of {}", row[0]), bytes);
            }
        }
        assert!(opened > 0, "{what} holds bodies of agents");
        self.take(what, rows);
        Ok(())
    }

    /// What the collector answers to its administrator.
    pub(super) fn take_answers(&mut self, collector: &Collector) -> Result<(), StageError> {
        for collection in ["incidents", "findings", "agents"] {
            let items = collector.items(collection, "")?;
            self.take(format!("/v1/{collection}"), Value::from(items).to_string());
        }
        for path in ["/metrics", "/readyz", "/livez", "/v1/fleet/pools", "/v1/reports/pools"] {
            self.take(path, collector.get(path)?.body);
        }
        for words in [["agent", "list"], ["token", "list"]] {
            self.take(words.join(" "), collector.command(&words)?);
        }
        self.take("the collector's log", collector.log());
        Ok(())
    }

    /// What a receiver was sent, headers and all.
    pub(super) fn take_messages(&mut self, webhook: &Webhook) {
        let all: Vec<String> = webhook.attempts().iter().map(|it| format!("{:?}\n{}\n", it.head, it.body)).collect();
        self.take("webhooks", all.concat());
    }

    /// Whether an outlet whose name begins so says this.
    pub(super) fn say(&self, name: &str, marker: &str) -> bool {
        self.0.iter().any(|it| it.name.starts_with(name) && String::from_utf8_lossy(&it.bytes).contains(marker))
    }

    /// Every secret that came out, with where.
    pub(super) fn leaks(&self, search: &Search) -> Vec<String> {
        let of = |it: &Outlet| {
            search.found(&it.bytes).into_iter().map(|found| format!("{}: {found}", it.name)).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of).collect()
    }
}
