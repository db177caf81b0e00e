//! Other hosts: network namespaces behind a router of their own that can drop every packet without a word.
//!
//! Each far host is two namespaces, its router and itself. What the router drops vanishes in both directions, as behind a
//! firewall that forgot its connections: no reset, no "unreachable", and the cables stay up.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{Running, installed, run};
use crate::stage::{Stage, StageError};
use crate::wait::{Seconds, until};

/// Which packets a router loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Those of either side.
    BothWays,
    /// What the far host sends.
    FromIt,
    /// What is sent to the far host.
    ToIt,
}

/// A host that is reached through a router. Dropped, both end.
#[derive(Debug)]
pub struct Far {
    number: u8,
    router: Running,
    host: Running,
    /// First process of its own PID namespace, where it has one.
    first: Option<u32>,
}

impl Far {
    /// Puts up the host of this number, 1 to 254, and its router.
    pub fn begin(stage: &Stage, number: u8) -> Result<Self, StageError> {
        Self::of(stage, number, false)
    }

    /// The same with processes of its own: who runs there sees none of this side's.
    pub fn begin_apart(stage: &Stage, number: u8) -> Result<Self, StageError> {
        Self::of(stage, number, true)
    }

    fn of(stage: &Stage, number: u8, is_apart: bool) -> Result<Self, StageError> {
        let room = stage.room(&format!("far-{number}"))?;
        let namespace = |name: &str, own: &[&str]| -> Result<Running, StageError> {
            let mut command = Command::new(installed("/usr/bin/unshare", "util-linux")?);
            command.args(own).args(["--net", "/usr/bin/sleep", "infinity"]);
            command.stdin(Stdio::null()).stdout(Stdio::null());
            let mut it = Running::start(name, &mut command, &room.join("log"))?;
            let ours = network(std::process::id());
            until(format!("{name} has a network of its own"), 10.s(), || {
                it.alive()?;
                let found = network(it.pid());
                if found.is_some() && found != ours { Ok(()) } else { Err(format!("{found:?}")) }
            })?;
            Ok(it)
        };
        let processes = ["--pid", "--fork", "--kill-child", "--mount-proc"];
        let host = namespace("host", if is_apart { &processes } else { &[] })?;
        let first = if is_apart { Some(first_of(&host)?) } else { None };
        let it = Self { number, router: namespace("router", &[])?, host, first };
        let (router, host) = (it.router.pid(), it.host.pid());
        let link = |ends: String| ip(None, &format!("link add {ends}"));
        link(format!("near{number} type veth peer name near netns {router}"))?;
        ip(Some(router), &format!("link add far type veth peer name wire netns {host}"))?;
        let (near, far) = (format!("10.70.{number}"), format!("10.71.{number}"));
        for (place, device, address) in [
            (None, format!("near{number}"), format!("{near}.1")),
            (Some(router), "near".to_owned(), format!("{near}.2")),
            (Some(router), "far".to_owned(), format!("{far}.1")),
            (Some(host), "wire".to_owned(), format!("{far}.2")),
        ] {
            ip(place, &format!("address add {address}/30 dev {device}"))?;
            ip(place, &format!("link set {device} up"))?;
        }
        ip(Some(host), "link set lo up")?;
        ip(None, &format!("route add {far}.0/30 via {near}.2"))?;
        // To other far hosts, and to this side's addresses before those.
        ip(Some(router), &format!("route add default via {near}.1"))?;
        ip(Some(host), &format!("route add default via {far}.1"))?;
        let mut forward = within(router, &Command::new("/bin/sh"));
        run(forward.args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]))?;
        Ok(it)
    }

    /// Its address.
    pub fn address(&self) -> String {
        format!("10.71.{}.2", self.number)
    }

    /// The router's address on this side.
    pub fn router(&self) -> String {
        format!("10.70.{}.2", self.number)
    }

    /// This side's address, as it is reached from there.
    pub fn near(&self) -> String {
        format!("10.70.{}.1", self.number)
    }

    /// From now on every packet in either direction vanishes.
    pub fn vanishes(&self) -> Result<(), StageError> {
        self.loses(Lost::BothWays)
    }

    /// From now on these packets vanish.
    pub fn loses(&self, lost: Lost) -> Result<(), StageError> {
        let (from_it, to_it) = (self.near(), self.address());
        let ends = match lost {
            Lost::BothWays => vec![from_it, to_it],
            Lost::FromIt => vec![from_it],
            Lost::ToIt => vec![to_it],
        };
        ends.iter().try_for_each(|to| ip(Some(self.router.pid()), &format!("route add blackhole {to}")))
    }

    /// Packets arrive again.
    pub fn returns(&self) -> Result<(), StageError> {
        ip(Some(self.router.pid()), "route flush type blackhole")
    }

    /// Does something in its network, in a thread that ends with it: a socket that is made there stays there.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T, StageError> {
        let link = File::open(format!("/proc/{}/ns/net", self.host.pid()))
            .map_err(StageError::system("open a network namespace"))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(act())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .map_err(|error: rustix::io::Errno| StageError::system("enter a network namespace")(error.into()))
    }

    /// The words before a program that is to run there. Its process id stays that of the program, unless the host has
    /// processes of its own: then it is that of somebody who waits for it.
    pub(crate) fn enter(&self) -> Vec<String> {
        let (pid, kinds) = match self.first {
            Some(first) => (first, &["--net", "--pid", "--mount"][..]),
            None => (self.host.pid(), &["--net"][..]),
        };
        let pid = pid.to_string();
        let words = [&["/usr/bin/nsenter", "--target", &pid][..], kinds, &["--"]].concat();
        words.into_iter().map(str::to_owned).collect()
    }

    /// The same program on this host: its process id stays that of the program.
    pub fn command(&self, command: &Command) -> Command {
        within(self.host.pid(), command)
    }

    /// The same on the router.
    pub fn on_router(&self, command: &Command) -> Command {
        within(self.router.pid(), command)
    }
}

/// Changes what the kernel does with every connection of this scenario: `tcp_keepalive_time` and the like.
pub fn kernel(setting: &str, value: u32) -> Result<(), StageError> {
    let path = PathBuf::from("/proc/sys/net/ipv4").join(setting);
    std::fs::write(&path, value.to_string()).map_err(StageError::system(format!("write {}", path.display())))
}

fn network(pid: u32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

/// The first process of the PID namespace that this one made, once it has its own `/proc`.
fn first_of(host: &Running) -> Result<u32, StageError> {
    let children = format!("/proc/{0}/task/{0}/children", host.pid());
    until("a host has processes of its own", 10.s(), || {
        let found = std::fs::read_to_string(&children).map_err(|error| error.to_string())?;
        let first = found.split_whitespace().next().ok_or("none yet")?;
        let name = std::fs::read_to_string(format!("/proc/{first}/comm")).map_err(|error| error.to_string())?;
        if name.trim() == "sleep" { first.parse().map_err(|_| found.clone()) } else { Err(name) }
    })
}

fn ip(place: Option<u32>, arguments: &str) -> Result<(), StageError> {
    let mut command = Command::new(installed("/sbin/ip", "iproute2")?);
    command.args(arguments.split(' '));
    match place {
        Some(pid) => run(&mut within(pid, &command)),
        None => run(&mut command),
    }
    .map(drop)
}

/// nsenter replaces itself with the program.
fn within(pid: u32, command: &Command) -> Command {
    let mut inside = Command::new("/usr/bin/nsenter");
    inside.args(["--target", &pid.to_string(), "--net", "--"]).arg(command.get_program()).args(command.get_args());
    inside.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    if let Some(directory) = command.get_current_dir() {
        inside.current_dir(directory);
    }
    inside
}
