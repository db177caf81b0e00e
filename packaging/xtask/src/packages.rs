//! Debian packages that the tests and `up --with-fault` stand on.

use std::path::Path;
use std::process::Command;

use tickbird_tests::StageError;
use tickbird_tests::library::{node_modules, python_modules};
use tickbird_tests::process::run;
use tickbird_tests::stage::workspace;

use crate::steps::TaskError;

/// A file that is there when the package is, and the package.
type Package = (&'static str, &'static str);

const NEEDED: [Package; 10] = [
    ("/usr/lib/postgresql/15/bin/postgres", "postgresql-15"),
    ("/usr/bin/psql", "postgresql-client-15"),
    ("/usr/bin/python3", "python3"),
    ("/usr/lib/python3/dist-packages/sqlalchemy", "python3-sqlalchemy"),
    ("/usr/lib/python3/dist-packages/psycopg2", "python3-psycopg2"),
    ("/usr/bin/openssl", "openssl"),
    ("/usr/share/zoneinfo/Europe/Berlin", "tzdata"),
    ("/usr/bin/setpriv", "util-linux"),
    ("/sbin/ip", "iproute2"),
    ("/usr/bin/strace", "strace"),
];

/// A pooler, other servers, and the libraries whose pools the tests look at. Java runs a file of source by itself.
const LIBRARIES: &[Package] = &[
    ("/usr/sbin/pgbouncer", "pgbouncer"),
    ("/usr/sbin/mariadbd", "mariadb-server"),
    ("/usr/bin/redis-server", "redis-server"),
    ("/usr/sbin/rabbitmq-server", "rabbitmq-server"),
    ("/usr/sbin/exim4", "exim4-daemon-light"),
    ("/usr/bin/prometheus-alertmanager", "prometheus-alertmanager"),
    ("/usr/lib/python3/dist-packages/pymysql", "python3-pymysql"),
    ("/usr/lib/python3/dist-packages/redis", "python3-redis"),
    ("/usr/lib/python3/dist-packages/pika", "python3-pika"),
    ("/usr/lib/python3/dist-packages/psycopg_pool", "python3-psycopg-pool"),
    ("/usr/lib/python3/dist-packages/psycopg", "python3-psycopg"),
    ("/usr/lib/python3/dist-packages/asyncpg", "python3-asyncpg"),
    ("/usr/lib/python3/dist-packages/greenlet", "python3-greenlet"),
    ("/usr/lib/python3/dist-packages/prometheus_client", "python3-prometheus-client"),
    ("/usr/lib/python3/dist-packages/pip", "python3-pip"),
    ("/usr/bin/go", "golang-go"),
    ("/usr/share/gocode/src/github.com/lib/pq", "golang-github-lib-pq-dev"),
    ("/usr/share/gocode/src/github.com/prometheus/client_golang", "golang-github-prometheus-client-golang-dev"),
    ("/usr/bin/java", "openjdk-17-jre-headless"),
    ("/usr/share/java/HikariCP.jar", "libhikaricp-java"),
    ("/usr/share/java/postgresql.jar", "libpostgresql-jdbc-java"),
    ("/usr/bin/node", "nodejs"),
    ("/usr/bin/ruby", "ruby"),
    ("/usr/share/doc/ruby-activerecord", "ruby-activerecord"),
    ("/usr/lib/ruby/vendor_ruby/pg", "ruby-pg"),
    ("/usr/share/doc/libfaketime", "libfaketime"),
    ("/usr/sbin/mkfs.ext4", "e2fsprogs"),
];
const DEBIANS_NODE_POSTGRES: Package = ("/usr/share/nodejs/pg", "node-pg");

/// What the figures stand on, and no test: a web server,
const FIGURES: [Package; 2] = [("/usr/sbin/nginx", "nginx-light"), ("/usr/bin/redis-server", "redis-server")];
/// and who is measured beside us, with the libraries of the plugins that do the same work.
const PEERS: [Package; 11] = [
    ("/usr/sbin/collectd", "collectd-core"),
    ("/usr/share/doc/libhiredis0.14", "libhiredis0.14"),
    ("/usr/share/doc/libcurl3-gnutls", "libcurl3-gnutls"),
    ("/usr/bin/monit", "monit"),
    ("/usr/bin/prometheus", "prometheus"),
    ("/usr/bin/prometheus-postgres-exporter", "prometheus-postgres-exporter"),
    ("/usr/bin/prometheus-blackbox-exporter", "prometheus-blackbox-exporter"),
    ("/usr/bin/prometheus-process-exporter", "prometheus-process-exporter"),
    ("/usr/bin/prometheus-node-exporter", "prometheus-node-exporter"),
    ("/usr/bin/prometheus-redis-exporter", "prometheus-redis-exporter"),
    ("/usr/bin/prometheus-alertmanager", "prometheus-alertmanager"),
];

/// Installs what `up --with-fault` and the figures need and is missing, when we are root and apt is here.
///
/// # Errors
/// With the exact packages when we may not, or when apt fails.
pub(crate) fn install_missing() -> Result<(), TaskError> {
    install(&NEEDED)
}

/// The same for what only the figures need.
pub(crate) fn install_for_figures(peers: bool) -> Result<(), TaskError> {
    install(&[&FIGURES[..], if peers { &PEERS } else { &[] }].concat())
}

/// The same for everything that the tests need.
pub(crate) fn install_all() -> Result<(), TaskError> {
    install(&[&NEEDED[..], LIBRARIES].concat())?;
    sqlalchemy_2()?;
    node_postgres()
}

/// Debian 12 has SQLAlchemy 1.4, which knows no psycopg 3. The wheels are of Python alone and their digests are kept.
fn sqlalchemy_2() -> Result<(), TaskError> {
    let (modules, wanted) = (python_modules(), workspace().join("tests/applications/python/requirements.txt"));
    let failed = |path: &Path| StageError::system(format!("prepare {}", path.display()));
    let text = std::fs::read_to_string(&wanted).map_err(failed(&wanted))?;
    let is_installed = modules.join("requirements.txt");
    if std::fs::read_to_string(&is_installed).is_ok_and(|it| it == text) {
        return Ok(());
    }
    println!("installing SQLAlchemy 2 with the digests of its requirements");
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore"]);
    command.args(["--no-deps", "--require-hashes", "--only-binary=:all:", "--upgrade"]);
    // Not the wheels of one machine, which would need a digest for each.
    command.args(["--platform", "any", "--implementation", "py", "--abi", "none", "--python-version", "3.11"]);
    run(command.arg("--target").arg(&modules).arg("--requirement").arg(&wanted))?;
    std::fs::write(&is_installed, text).map_err(failed(&is_installed))?;
    Ok(())
}

/// Debian's package where its own Node.js is installed; a Node.js from elsewhere brings npm and conflicts with it.
fn node_postgres() -> Result<(), TaskError> {
    if Path::new(DEBIANS_NODE_POSTGRES.0).exists() || node_modules().join("pg").exists() {
        return Ok(());
    }
    let Some(npm) = ["/usr/bin/npm", "/usr/local/bin/npm"].into_iter().find(|it| Path::new(it).exists()) else {
        return install(&[DEBIANS_NODE_POSTGRES]);
    };
    let modules = node_modules();
    let folder = modules.parent().expect("the modules are in a folder");
    let failed = || StageError::system(format!("prepare {}", folder.display()));
    std::fs::create_dir_all(folder).map_err(failed())?;
    for file in ["package.json", "package-lock.json"] {
        std::fs::copy(workspace().join("tests/applications/node").join(file), folder.join(file)).map_err(failed())?;
    }
    println!("installing node-postgres as its lock file says");
    run(Command::new(npm).args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(folder))?;
    Ok(())
}

fn install(packages: &[Package]) -> Result<(), TaskError> {
    let missing = missing(packages);
    if missing.is_empty() {
        println!("all {} packages are installed", packages.len());
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
    let still = if apt_get(&arguments)? { self::missing(packages) } else { missing };
    if still.is_empty() { Ok(()) } else { Err(TaskError::Packages(still)) }
}

fn missing(packages: &[Package]) -> Vec<&'static str> {
    packages.iter().filter(|(file, _)| !Path::new(file).exists()).map(|(_, package)| *package).collect()
}

fn apt_get(arguments: &[&str]) -> Result<bool, TaskError> {
    let mut command = Command::new("/usr/bin/apt-get");
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command.status().map_err(StageError::system("run apt-get"))?.success())
}
