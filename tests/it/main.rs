//! End to end: the shipped binaries over real TLS, against real servers and applications.
//!
//! Each test is a scenario, alone in namespaces of its own (see [`tickbird_tests::alone()`]).

mod api;
mod backup;
mod bad_input;
mod commands;
mod damage;
mod databases;
mod delivery;
mod endpoints;
mod error_paths;
mod exhaustion;
mod fleet;
mod forks;
mod full_disk;
mod ghosts;
mod headroom;
mod healthy;
mod identity;
mod kills;
mod leak;
mod limits;
mod logs;
mod names;
mod own;
mod packaging;
mod params;
mod places;
mod places_networks;
mod pools;
mod power_cut;
mod processes;
mod servers;
mod service;
mod sockets;
mod sqlite;
mod stage;
mod storms;
mod xray_blocked;
mod xray_churn;
mod xray_dead;
mod xray_decoys;
mod xray_growth;
mod xray_held;
mod xray_join;
mod xray_leak_rate;
