//! On what a figure was taken: without it, it says nothing.

use std::path::Path;
use std::process::Command;

use crate::stage::workspace;

/// Words that stay the same as long as figures may be compared.
pub fn kind() -> String {
    let processors = read("/proc/cpuinfo");
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|it| it.1);
    let count = std::thread::available_parallelism().map_or(0, std::num::NonZeroUsize::get);
    let memory = read("/proc/meminfo");
    let memory =
        memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    let memory: u64 = memory.unwrap_or_default();
    format!("{count} × {}, {} GiB", model.unwrap_or("an unknown processor"), (memory + (1 << 19)) >> 20)
}

/// What else a reader may want to know: kernel, system, load.
pub fn about() -> Vec<String> {
    let system = read("/etc/os-release");
    let system = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("an unknown system");
    let load = read("/proc/loadavg");
    let load = load.split(' ').take(3).collect::<Vec<_>>().join(", ");
    vec![
        format!("Linux {}, {}", read("/proc/sys/kernel/osrelease").trim(), system.trim_matches('"')),
        format!("load {load}"),
    ]
}

/// The commit of the sources, with a mark when they were changed since.
pub fn commit() -> String {
    let git = |arguments: &[&str]| first_line(Command::new("git").arg("-C").arg(workspace()).args(arguments));
    match (git(&["rev-parse", "--short", "HEAD"]), git(&["status", "--porcelain", "--untracked-files=no"])) {
        (Some(commit), None) => commit,
        (Some(commit), Some(_)) => format!("{commit}, with changes"),
        (None, _) => "unknown".into(),
    }
}

/// What a program says of its version.
pub fn version(program: &Path, argument: &str) -> String {
    first_line(Command::new(program).arg(argument)).unwrap_or_else(|| "unknown".into())
}

/// Programs that figures stand on or beside, with the versions that are installed, as Debian counts them.
pub fn versions() -> Vec<String> {
    const PACKAGES: [&str; 14] = [
        "postgresql-15",
        "redis-server",
        "nginx-light",
        "iproute2",
        "collectd-core",
        "monit",
        "prometheus",
        "prometheus-alertmanager",
        "prometheus-blackbox-exporter",
        "prometheus-node-exporter",
        "prometheus-postgres-exporter",
        "prometheus-process-exporter",
        "prometheus-redis-exporter",
        "python3",
    ];
    let mut ask = Command::new("dpkg-query");
    // One that is not installed is told of, and makes the exit code an error.
    let said = ask.args(["-W", "-f", "${db:Status-Status} ${Package} ${Version}\n"]).args(PACKAGES).output();
    let said = said.map(|it| String::from_utf8_lossy(&it.stdout).into_owned()).unwrap_or_default();
    said.lines().filter_map(|it| it.strip_prefix("installed ")).map(str::to_owned).collect()
}

fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
