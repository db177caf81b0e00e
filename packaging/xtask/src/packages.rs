//! Debian packages that the tests and `up --with-fault` stand on.

use std::path::Path;
use std::process::Command;

use tickbird_tests::StageError;

use crate::steps::TaskError;

/// A file that is there when the package is, and the package.
const NEEDED: [(&str, &str); 8] = [
    ("/usr/lib/postgresql/15/bin/postgres", "postgresql-15"),
    ("/usr/bin/psql", "postgresql-client-15"),
    ("/usr/bin/python3", "python3"),
    ("/usr/lib/python3/dist-packages/sqlalchemy", "python3-sqlalchemy"),
    ("/usr/lib/python3/dist-packages/psycopg2", "python3-psycopg2"),
    ("/usr/bin/openssl", "openssl"),
    ("/usr/bin/setpriv", "util-linux"),
    ("/sbin/ip", "iproute2"),
];

/// Installs what is missing when we are root and apt is here.
///
/// # Errors
/// With the exact packages when we may not, or when apt fails.
pub(crate) fn install_missing() -> Result<(), TaskError> {
    let missing = missing();
    if missing.is_empty() {
        println!("all {} packages are installed", NEEDED.len());
        return Ok(());
    }
    let is_root = std::os::unix::fs::MetadataExt::uid(
        &std::fs::metadata("/proc/self").map_err(StageError::system("read /proc/self"))?,
    ) == 0;
    if !is_root || !Path::new("/usr/bin/apt-get").exists() {
        return Err(TaskError::Packages(missing));
    }
    println!("installing {}", missing.join(" "));
    // A fresh image has no lists; an old one has stale ones. Without a network the lists may still be good.
    let _ = apt_get(&["update", "--quiet=2"]);
    let arguments = [&["install", "--yes", "--quiet=2", "--no-install-recommends"][..], &missing].concat();
    if apt_get(&arguments)? && self::missing().is_empty() { Ok(()) } else { Err(TaskError::Packages(self::missing())) }
}

fn missing() -> Vec<&'static str> {
    NEEDED.iter().filter(|(file, _)| !Path::new(file).exists()).map(|(_, package)| *package).collect()
}

fn apt_get(arguments: &[&str]) -> Result<bool, TaskError> {
    let mut command = Command::new("/usr/bin/apt-get");
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command.status().map_err(StageError::system("run apt-get"))?.success())
}
