//! Who has rights in the shipped binaries: the reader of processes and files alone, and nobody who hears from a network.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::Value;
use tickbird_tests::agent::{User, app, postgres};
use tickbird_tests::certificate::Certificate;
use tickbird_tests::process::{Running, installed, output};
use tickbird_tests::truth::descriptors;
use tickbird_tests::watch::rows_of;
use tickbird_tests::{Agent, Application, Collector, Postgres, Seconds, StageError, Watch, alone, until};

const BOTH: u64 = 1 << 19 | 1 << 2; // CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH

/// What `/proc/<pid>/task/<tid>/status` says of a thread's rights.
#[derive(Debug, PartialEq, Eq)]
struct Rights {
    capabilities: [u64; 5],
    gains_nothing: bool,
    filters: bool,
}

/// Each thread by its name, with its rights.
fn rights(pid: u32) -> Result<Vec<(String, Rights)>, StageError> {
    let tasks = format!("/proc/{pid}/task");
    let mut all = Vec::new();
    for task in std::fs::read_dir(&tasks).map_err(StageError::system(format!("list {tasks}")))?.flatten() {
        // A thread may end meanwhile.
        let Ok(status) = std::fs::read_to_string(task.path().join("status")) else { continue };
        let fields: BTreeMap<&str, &str> =
            status.lines().filter_map(|it| it.split_once(':')).map(|(key, value)| (key, value.trim())).collect();
        let set = |key: &str| fields.get(key).and_then(|it| u64::from_str_radix(it, 16).ok()).unwrap_or(u64::MAX);
        let rights = Rights {
            capabilities: ["CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"].map(set),
            gains_nothing: fields.get("NoNewPrivs") == Some(&"1"),
            filters: fields.get("Seccomp") == Some(&"2"),
        };
        all.push((fields.get("Name").copied().unwrap_or_default().to_owned(), rights));
    }
    Ok(all)
}

/// Every thread but the reader's has no capability in any set, and none can gain one or leave its filter.
fn only_the_reader_has_any(pid: u32, kept: u64, bound: u64) -> Result<(), StageError> {
    let threads = rights(pid)?;
    let (readers, others): (Vec<_>, Vec<_>) = threads.iter().partition(|(name, _)| name.starts_with("reader"));
    assert!(!others.is_empty(), "{threads:?}");
    for (name, it) in &others {
        assert_eq!(it.capabilities[..4], [0; 4], "{name}: {it:?}");
    }
    for (name, it) in &readers {
        assert_eq!(it.capabilities, [kept, kept, 0, 0, bound], "{name}: {it:?}");
    }
    assert!(threads.iter().all(|(_, it)| it.gains_nothing && it.filters), "{threads:?}");
    assert_eq!(readers.is_empty(), kept == 0, "{threads:?}");
    Ok(())
}

/// As the shipped unit runs it: by a user with both capabilities, whose network threads have none and see all the same.
#[test]
fn the_reader_alone_keeps_capabilities_and_everything_is_seen_through_it() {
    alone(|stage| {
        let server = Postgres::start(stage, 50)?;
        let application = Application::pooled(stage, "grants-api", &server)?;
        let log = stage.room("log")?.join("app.log");
        std::fs::write(&log, "INFO started\n").map_err(StageError::system("write a log"))?;
        std::fs::set_permissions(&log, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .map_err(StageError::system("close the log"))?;
        let dsn = server.dsn_file("tickbird")?;
        let configuration = [
            postgres(&dsn),
            app("grants-api", &application.command()),
            format!("[[log]]\npath = \"{}\"\napp = \"grants-api\"\n", log.display()),
        ]
        .concat();
        let mut agent = Agent::prepare(stage, &configuration, User::Nobody(&["sys_ptrace", "dac_read_search"]))?;
        agent.run()?;
        let truth = descriptors(application.pid())?;
        until("every connection of root's process is seen with its descriptor", 20.s(), || {
            let status = agent.status().map_err(|error| error.to_string())?;
            let pools = status["pools"].as_array().cloned().unwrap_or_default();
            let of = pools.iter().filter(|it| it["pid"] == application.pid());
            let seen: usize = of
                .flat_map(|it| it["connections"].as_array().cloned().unwrap_or_default())
                .filter(|it| it["session"].is_u64() && it["fds"][0].is_u64())
                .count();
            let logs = rows_of(&status, "pool.timeout", "log:");
            let is_read = logs.iter().any(|it| it["looks_known"].as_u64() >= Some(1));
            if seen == truth.len() && is_read { Ok(()) } else { Err(format!("{seen} of {}, {logs:?}", truth.len())) }
        })?;
        let pid = agent.pid().expect("it runs");
        let bound = rights(1)?[0].1.capabilities[4];
        only_the_reader_has_any(pid, BOTH, bound)?;
        // A configuration that is read again is read by whoever read it the first time.
        std::fs::set_permissions(&dsn, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .map_err(StageError::system("close the DSN"))?;
        agent.reload()?;
        until("its log goes on being read", 20.s(), || {
            let status = agent.status().map_err(|error| error.to_string())?;
            let logs = rows_of(&status, "pool.timeout", "log:");
            let is_read = logs.iter().any(|it| it["state"] == "ok");
            if is_read { Ok(()) } else { Err(format!("{logs:?}")) }
        })?;
        only_the_reader_has_any(pid, BOTH, bound)?;
        assert!(
            agent.log().contains("rights are separated: the reader of processes and files: CAP_DAC_READ_SEARCH and")
        );
        // Whoever has the same user and no capability may not look into it, though its first thread has none either.
        let mut stranger = Command::new(installed("/usr/bin/setpriv", "util-linux")?);
        stranger.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--ambient-caps=-all"]);
        let looked = output(stranger.args(["/bin/cat", &format!("/proc/{pid}/environ")]))?;
        assert!(!looked.status.success(), "the agent's memory and environment are closed to its own user");
        Ok(())
    });
}

/// An agent and a collector that root started: all that root may is gone as well.
#[test]
fn what_root_started_keeps_nothing_that_root_may() {
    alone(|stage| {
        let mut watch = Watch::begin(stage, "")?;
        let (agent, collector) = (watch.agent.pid().expect("runs"), watch.collector.pid().expect("runs"));
        let reader: u64 = BOTH | 1 << 21 | 1 << 12; // CAP_SYS_ADMIN, CAP_NET_ADMIN
        watch.sees("agent.clock", "agent:self", "ok", 60.s())?;
        only_the_reader_has_any(agent, reader, reader)?;
        only_the_reader_has_any(collector, 0, 0)?;
        for (name, it) in rights(collector)? {
            assert_eq!(it.capabilities, [0; 5], "{name}");
        }
        assert!(watch.collector.log().contains("rights are given up: no capability"), "{}", watch.collector.log());
        let doctor = watch.agent.report("doctor", &[])?.to_string();
        let told =
            "whoever hears from a network: no capability, 60 system calls refused, all files but its own out of reach";
        assert!(doctor.contains(told), "{doctor}");
        // The collector goes on committing and the agent buffering within their own directories.
        watch.collector.stop()?;
        watch.collector.serve()?;
        watch.agent.stop()?;
        watch.agent.run()
    });
}

/// A file that is read again and again comes to lead elsewhere: what lies there stays out of reach, also for root.
#[test]
fn a_link_to_a_file_elsewhere_leads_nowhere_on_the_side_of_the_network() {
    alone(|stage| {
        let Certificate { chain, key } = Certificate::ending_in(stage, 90)?;
        let elsewhere = stage.room("elsewhere")?.join("secret.pem");
        let failed = || StageError::system("lay out the files");
        std::fs::write(&elsewhere, "nobody's business\n").map_err(failed())?;
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).map_err(failed())?;
        let files = format!(
            "certificate_file = \"{0}\"\nkey_file = \"{1}\"\nca_file = \"{0}\"\n",
            chain.display(),
            key.display()
        );
        let mut collector = Collector::init(stage)?;
        collector.rewrite("[people]\n", &format!("[people]\n{files}"))?;
        collector.trust(&chain);
        collector.serve()?;
        let brought = format!("[collector]\nurl = \"https://127.0.0.1:1\"\nagent = \"web-1\"\n{files}");
        let mut agent = Agent::prepare(stage, &brought, User::Same)?;
        agent.run()?;

        std::fs::remove_file(&chain).map_err(failed())?;
        std::os::unix::fs::symlink(&elsewhere, &chain).map_err(failed())?;
        let refused = |said: String| {
            assert!(!said.contains("holds no certificate"), "it was read: {said}");
            if said.contains("Permission denied") { Ok(()) } else { Err(said) }
        };
        until("the collector is refused the file", 30.s(), || refused(collector.log()))?;
        until("the agent is refused the file", 30.s(), || {
            refused(agent.log() + &agent.status().map_err(|error| error.to_string())?.to_string())
        })?;
        std::fs::remove_file(&chain).map_err(failed())?;
        std::fs::write(&chain, "here it may be read\n").map_err(failed())?;
        until("a file in the old place is read", 30.s(), || {
            let said = agent.status().map_err(|error| error.to_string())?.to_string();
            if said.contains("holds no certificate") { Ok(()) } else { Err(said) }
        })
    });
}

/// Opens files as `names` tell, each with one descriptor, and keeps them open; swaps the file behind one of them all the time.
const HOSTILE: &str = r#"
import os, sys, time
room = sys.argv[1]
path = lambda name: os.path.join(room, name)
kept = [os.open(path("pipe.db"), os.O_RDWR), os.open(path("device.db"), os.O_RDONLY), os.open(path("link.db"), os.O_RDONLY)]
kept += [os.open(path("huge.db"), os.O_RDWR), os.open(path("folder.db"), os.O_RDONLY)]
swapped = os.open(path("swapped.db"), os.O_RDWR)
sound = os.open(path("swapped.db"), os.O_RDWR)
print("ready", file=sys.stderr, flush=True)
while True:
    os.dup2(kept[0], swapped)
    os.dup2(kept[1], swapped)
    os.dup2(sound, swapped)
"#;

/// Pipes, devices, links, directories and huge files where a database or a log is looked for: none of them stops a look.
#[test]
fn a_hostile_application_stops_no_look_and_has_nothing_read_that_is_no_plain_file() {
    alone(|stage| {
        let room = stage.room("hostile")?;
        plant(&room)?;
        let script = room.join("hostile.py");
        std::fs::write(&script, HOSTILE).map_err(StageError::system("write a script"))?;
        let mut command = Command::new(installed("/usr/bin/python3", "python3")?);
        command.arg(&script).arg(&room).stdin(Stdio::null());
        let hostile = Running::start("hostile", &mut command, &room.join("output"))?;
        until("it has planted everything", 20.s(), || {
            let said = std::fs::read_to_string(room.join("output")).unwrap_or_default();
            if said.contains("ready") { Ok(()) } else { Err(said) }
        })?;
        let web = Application::web(stage, "shop", 0)?;
        let logs = ["pipe.db", "device.db", "link.db", "folder.db"]
            .map(|name| format!("[[log]]\npath = \"{}\"\napp = \"shop\"\n", room.join(name).display()));
        let configuration = app("shop", &web.command()) + "[sqlite]\ninterval = \"1s\"\n" + &logs.concat();
        let mut agent = Agent::prepare(stage, &configuration, User::Same)?;
        agent.run()?;
        let looks = |check: &str, part: &str| -> Result<u64, String> {
            let status = agent.status().map_err(|error| error.to_string())?;
            Ok(rows_of(&status, check, part).iter().filter_map(|it| it["looks_known"].as_u64()).max().unwrap_or(0))
        };
        let is_looked = |what: &str, check: &'static str, part: &'static str| {
            until(what, 60.s(), || match looks(check, part)? {
                5.. => Ok(()),
                few => Err(format!("{few} looks")),
            })
        };
        is_looked("processes go on being looked at", "fd.limit", "process:shop")?;
        let status = agent.status()?;
        let shown = serde_json::to_string(&status).unwrap_or_default();
        for it in ["pipe.db", "device.db", "link.db", "folder.db"] {
            assert!(shown.contains(&format!("/{it}: it is not a regular file")), "{it} is no log: {shown}");
        }
        let databases: Vec<&str> = status["targets"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|it| it["key"].as_str())
            .filter(|it| it.starts_with("sqlite:"))
            .collect();
        assert!(
            databases.iter().all(|it| ["huge.db", "secret.db", "swapped.db"].iter().any(|name| it.contains(name))),
            "{databases:?}"
        );
        assert!(!shown.contains("a line of the secret"), "nothing of what a link leads to is shown");
        drop(hostile);
        Ok(())
    });
}

fn plant(room: &Path) -> Result<(), StageError> {
    let failed = || StageError::system(format!("plant files in {}", room.display()));
    let made = |it: rustix::io::Result<()>| it.map_err(std::io::Error::from).map_err(failed());
    let mode = Mode::from_raw_mode(0o644);
    made(mknodat(CWD, room.join("pipe.db"), FileType::Fifo, mode, 0))?;
    // /dev/zero: it never ends.
    made(mknodat(CWD, room.join("device.db"), FileType::CharacterDevice, mode, makedev(1, 5)))?;
    std::fs::write(room.join("secret.db"), "a line of the secret\n".repeat(99)).map_err(failed())?;
    std::os::unix::fs::symlink(room.join("secret.db"), room.join("link.db")).map_err(failed())?;
    std::fs::create_dir(room.join("folder.db")).map_err(failed())?;
    let sound = Command::new(installed("/usr/bin/python3", "python3")?)
        .args(["-c", "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('CREATE TABLE it (x)')"])
        .arg(room.join("swapped.db"))
        .status()
        .map_err(failed())?;
    assert!(sound.success());
    let huge = std::fs::File::create(room.join("huge.db")).map_err(failed())?;
    huge.set_len(1 << 42).map_err(failed())
}

/// The local socket answers its own user, root and its group; whoever else gets as far as connecting is refused.
#[test]
fn a_stranger_at_the_local_socket_is_refused_by_who_he_is() {
    alone(|stage| {
        let mut agent = Agent::prepare(stage, "", User::Nobody(&[]))?;
        agent.run()?;
        let socket = agent.state_directory().join("agent.sock");
        // As an operator might by mistake: the mode keeps nobody out any more.
        let open = |path: &Path, mode: u32| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(path, mode).map_err(StageError::system("open the socket to all"))
        };
        open(&socket, 0o666)?;
        for path in socket.ancestors().skip(1).take_while(|it| *it != stage.directory()) {
            open(path, 0o755)?;
        }
        let asks = |user: u32, group: u32| -> Result<String, StageError> {
            let ask = "import http.client, socket, sys\n\
                       class Local(http.client.HTTPConnection):\n    def connect(self):\n        \
                       self.sock = socket.socket(socket.AF_UNIX); self.sock.connect(sys.argv[1])\n\
                       it = Local('agent'); it.request('GET', '/v1/status'); it = it.getresponse()\n\
                       print(it.status, len(it.read()))";
            let mut command = Command::new(installed("/usr/bin/setpriv", "util-linux")?);
            command.args([&format!("--reuid={user}"), &format!("--regid={group}"), "--clear-groups"]);
            let told = output(command.args(["/usr/bin/python3", "-c", ask]).arg(&socket))?;
            Ok(String::from_utf8_lossy(&told.stdout).into_owned())
        };
        for (user, group) in [(0, 0), (65534, 65534), (65534, 12345), (12345, 65534)] {
            let told = asks(user, group)?;
            assert!(told.starts_with("200 "), "user {user}, group {group}: {told}");
        }
        assert_eq!(asks(12345, 12345)?, "403 0\n", "a stranger");
        let status: Value = agent.status()?;
        assert_eq!(status["schema"], "tickbird.report/1");
        Ok(())
    });
}
