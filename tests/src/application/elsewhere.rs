//! Applications of another user, and in a network namespace of their own.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{Application, Kind, python};
use crate::postgres::Postgres;
use crate::process::{Running, installed, run};
use crate::stage::{Stage, StageError};
use crate::wait::{Seconds, until};

/// User and group of an application that is not root.
const NOBODY: u32 = 65534;

/// A network namespace with a wire to the stage's own, as a container engine makes it for a container.
#[derive(Debug)]
pub struct Network {
    /// It is in the namespace, and keeps it while nobody else is.
    keeper: Running,
}

impl Network {
    /// The stage's end of the wire.
    pub const NEAR: &str = "10.77.0.1";
    /// The other end.
    pub const FAR: &str = "10.77.0.2";

    /// Makes the namespace and the wire.
    pub fn wired(stage: &Stage) -> Result<Self, StageError> {
        let mut command = Command::new(installed("/usr/bin/unshare", "util-linux")?);
        command.args(["--net", "/bin/sleep", "3600"]).stdout(Stdio::null());
        let keeper = Running::start("network", &mut command, &stage.room("network")?.join("log"))?;
        let (own, other) = ("/proc/self/ns/net".to_owned(), format!("/proc/{}/ns/net", keeper.pid()));
        until("it has a network of its own", 10.s(), || {
            let link = |path: &str| std::fs::read_link(path).map_err(|error| error.to_string());
            if link(&own)? == link(&other)? { Err("it is in ours".to_owned()) } else { Ok(()) }
        })?;
        let it = Self { keeper };
        let pid = it.keeper.pid().to_string();
        let ip = |inside: bool, words: &str| {
            let mut command = Command::new(if inside { "/usr/bin/nsenter" } else { "/sbin/ip" });
            if inside {
                command.args(["--target", &pid, "--net", "/sbin/ip"]);
            }
            run(command.args(words.split(' '))).map(drop)
        };
        ip(false, &format!("link add near type veth peer name far netns {pid}"))?;
        ip(false, &format!("address add {}/30 dev near", Self::NEAR))?;
        ip(false, "link set near up")?;
        ip(true, &format!("address add {}/30 dev far", Self::FAR))?;
        ip(true, "link set far up")?;
        Ok(it)
    }
}

/// A cgroup of version 2, as a container engine makes one for each container. Its processes have to end before it is
/// dropped, so it is made before they are.
#[derive(Debug)]
pub struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    /// Makes one on the hierarchy, which is mounted where nobody else sees it.
    pub fn make(stage: &Stage, name: &str) -> Result<Self, StageError> {
        let mount = stage.room(&format!("cgroup-{name}"))?;
        run(Command::new(installed("/usr/bin/mount", "mount")?).args(["-t", "cgroup2", "none"]).arg(&mount))?;
        // The hierarchy is one for the whole machine: scenarios side by side need names of their own.
        let own = mount.to_string_lossy().replace('/', "-");
        let directory = mount.join(format!("tickbird{own}"));
        std::fs::create_dir(&directory).map_err(StageError::system("make a cgroup"))?;
        Ok(Self { directory })
    }

    /// Its id: the inode of its directory.
    pub fn id(&self) -> Result<u64, StageError> {
        let about = std::fs::metadata(&self.directory).map_err(StageError::system("look at a cgroup"))?;
        Ok(std::os::unix::fs::MetadataExt::ino(&about))
    }

    /// Takes in a process that runs; what it starts from now on is in it, too.
    pub fn take(&self, pid: u32) -> Result<(), StageError> {
        let file = self.directory.join("cgroup.procs");
        std::fs::write(file, pid.to_string()).map_err(StageError::system("move a process into a cgroup"))
    }

    /// The processes in it now.
    pub fn processes(&self) -> Result<Vec<u32>, StageError> {
        Ok(self.file("cgroup.procs")?.lines().filter_map(|it| it.parse().ok()).collect())
    }

    /// Seconds of CPU of all that were ever in it while they were: `usage_usec` of `cpu.stat`.
    pub fn cpu_seconds(&self) -> Result<f64, StageError> {
        let text = self.file("cpu.stat")?;
        let used = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse::<f64>().ok());
        used.map(|it| it / 1e6).ok_or(StageError::Malformed { what: "cpu.stat of a cgroup".into(), found: text })
    }

    fn file(&self, name: &str) -> Result<String, StageError> {
        std::fs::read_to_string(self.directory.join(name))
            .map_err(StageError::system(format!("read {name} of a cgroup")))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that has just ended may be in it for a moment still.
        let gone = until("the cgroup is empty", 5.s(), || {
            std::fs::remove_dir(&self.directory).map_err(|error| error.to_string())
        });
        if let Err(error) = gone {
            eprintln!("{}: {error}", self.directory.display());
        }
    }
}

impl Kind {
    /// The pool of [`Application::pooled`], by a program that runs it somewhere else.
    fn pooled(program: Vec<PathBuf>, name: &str, server: &Postgres, log: PathBuf) -> Self {
        let dsn = format!("{}?pool_size=20&max_overflow=10&application_name={name}", server.dsn("app"));
        let (arguments, environment) = (vec!["--name".into(), name.into()], vec![("DATABASE_URL", dsn)]);
        Self { program, arguments, environment, log }
    }
}

impl Application {
    /// [`Application::pooled`] in that network, from which `server` is reached.
    pub fn pooled_in(network: &Network, stage: &Stage, name: &str, server: &Postgres) -> Result<Self, StageError> {
        let mut program = vec![installed("/usr/bin/nsenter", "util-linux")?];
        program.extend([format!("--net=/proc/{}/ns/net", network.keeper.pid()).into(), PathBuf::from("--")]);
        program.extend(python("pooled.py")?);
        Self::start(name, Kind::pooled(program, name, server, stage.room(name)?.join("log")))
    }

    /// [`Application::pooled`] as user 65534, with none of root's rights.
    pub fn pooled_by_nobody(stage: &Stage, name: &str, server: &Postgres) -> Result<Self, StageError> {
        installed("/usr/lib/python3/dist-packages/sqlalchemy", "python3-sqlalchemy")?;
        installed("/usr/lib/python3/dist-packages/psycopg2", "python3-psycopg2")?;
        let room = stage.room(name)?;
        let mut program: Vec<PathBuf> = vec![installed("/usr/bin/setpriv", "util-linux")?];
        program.extend([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")].map(PathBuf::from));
        program.push("--clear-groups".into());
        program.extend(python("pooled.py")?);
        // The workspace may be in a home that others may not enter.
        if let Some(script) = program.last_mut() {
            let copy = room.join("pooled.py");
            std::fs::copy(&script, &copy).map_err(StageError::system("copy a script"))?;
            *script = copy;
        }
        Self::start(name, Kind::pooled(program, name, server, room.join("log")))
    }

    /// [`Application::pooled`] in this cgroup from its first moment on, as a container engine starts a container.
    pub fn pooled_in_cgroup(cgroup: &Cgroup, stage: &Stage, name: &str, server: &Postgres) -> Result<Self, StageError> {
        let enters = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", cgroup.directory.display());
        let mut program: Vec<PathBuf> = ["/bin/sh", "-c", &enters, "sh"].map(PathBuf::from).into();
        program.extend(python("pooled.py")?);
        Self::start(name, Kind::pooled(program, name, server, stage.room(name)?.join("log")))
    }

    /// [`Application::sockets`] in a network namespace of its own, where nobody else listens on that port.
    pub fn sockets_elsewhere(stage: &Stage, port: u16, connections: u32) -> Result<Self, StageError> {
        let mut program: Vec<PathBuf> = vec![installed("/usr/bin/unshare", "util-linux")?];
        installed("/sbin/ip", "iproute2")?;
        let words = ["--net", "/bin/sh", "-c", "/sbin/ip link set lo up && exec \"$@\"", "sh"];
        program.extend(words.map(PathBuf::from));
        program.extend(python("sockets.py")?);
        let arguments = vec![port.to_string(), connections.to_string()];
        let log = stage.room("sockets")?.join("log");
        Self::start("sockets", Kind { program, arguments, environment: Vec::new(), log })
    }
}
