//! The stage set: real servers, applications, receivers and the shipped binaries, started by a scenario.
//!
//! It shares nothing with the agent's and the collector's code, so that what it says of a process, a session or a
//! signature is a second opinion. A scenario is a function that runs [`alone()`]: in network and process namespaces of
//! its own, where the agent sees the scenario and nothing else of this machine.
//!
//! Everything that is started here ends when it is dropped, by its own process id, and keeps its log in the
//! scenario's directory.

pub mod accounts;
pub mod agent;
pub mod alertmanager;
pub mod alone;
pub mod application;
pub mod canary;
pub mod canned;
pub mod certificate;
pub mod chance;
pub mod clock;
pub mod collector;
pub mod coverage;
pub mod disk;
pub mod figure;
pub mod https;
pub mod kept;
pub mod library;
pub mod mail;
pub mod mariadb;
pub mod moody;
pub mod network;
pub mod nginx;
pub mod pgbouncer;
pub mod postgres;
pub mod power_cut;
pub mod process;
pub mod rabbitmq;
pub mod redis;
pub mod relay;
pub mod replica;
pub mod report;
pub mod requests;
pub mod scene;
pub mod shop;
pub mod simulated;
pub mod stage;
pub mod standstill;
pub mod truth;
pub mod wait;
pub mod watch;
pub mod webhook;
pub mod xray;

pub use agent::Agent;
pub use alone::alone;
pub use application::{Application, Cgroup, Failing, Held, Network};
pub use clock::Clock;
pub use collector::Collector;
pub use disk::{Disk, Volume};
pub use library::{Library, Sizes};
pub use mail::{MailServer, Whim};
pub use mariadb::MariaDb;
pub use moody::Moody;
pub use network::{Far, Lost};
pub use pgbouncer::PgBouncer;
pub use postgres::Postgres;
pub use rabbitmq::RabbitMq;
pub use redis::Redis;
pub use relay::{Relay, Wire};
pub use requests::{Requests, Streams};
pub use scene::{Role, Scene};
pub use shop::shop;
pub use simulated::Simulated;
pub use stage::{Stage, StageError};
pub use wait::{Seconds, until};
pub use watch::Watch;
pub use webhook::Webhook;
