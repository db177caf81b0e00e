//! Other hosts: network namespaces behind a router of their own that can drop every packet without a word.
//!
//! Each far host is two namespaces, its router and itself. What the router drops vanishes in both directions, as behind a
//! firewall that forgot its connections: no reset, no "unreachable", and the cables stay up.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::process::{Running, installed, run};
use crate::stage::{Stage, StageError};
use crate::wait::{Seconds, until};

/// A host that is reached through a router. Dropped, both end.
#[derive(Debug)]
pub struct Far {
    number: u8,
    router: Running,
    host: Running,
}

impl Far {
    /// Puts up the host of this number, 1 to 254, and its router.
    pub fn begin(stage: &Stage, number: u8) -> Result<Self, StageError> {
        let room = stage.room(&format!("far-{number}"))?;
        let namespace = |name: &str| -> Result<Running, StageError> {
            let mut command = Command::new(installed("/usr/bin/unshare", "util-linux")?);
            command.args(["--net", "/usr/bin/sleep", "infinity"]).stdin(Stdio::null()).stdout(Stdio::null());
            let mut it = Running::start(name, &mut command, &room.join("log"))?;
            let ours = network(std::process::id());
            until(format!("{name} has a network of its own"), 10.s(), || {
                it.alive()?;
                let found = network(it.pid());
                if found.is_some() && found != ours { Ok(()) } else { Err(format!("{found:?}")) }
            })?;
            Ok(it)
        };
        let it = Self { number, router: namespace("router")?, host: namespace("host")? };
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

    /// From now on every packet in either direction vanishes.
    pub fn vanishes(&self) -> Result<(), StageError> {
        self.routes("add")
    }

    /// Packets arrive again.
    pub fn returns(&self) -> Result<(), StageError> {
        self.routes("del")
    }

    fn routes(&self, verb: &str) -> Result<(), StageError> {
        let near = format!("10.70.{}.1", self.number);
        [self.address(), near]
            .iter()
            .try_for_each(|to| ip(Some(self.router.pid()), &format!("route {verb} blackhole {to}")))
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
