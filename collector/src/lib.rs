//! The path of a finding, from a socket to a person.
//!
//! ```text
//! (TLS) agent ─▶ ingest ─▶ ledger ─▶ store ─▶ aggregate ─▶ alert ─▶ notify ─▶ receiver
//!                                      └────▶ api
//! ```
//!
//! [`store`] is the floor: rows, one transaction, nothing decided. [`ingest`] turns bytes into an accepted batch.
//! [`ledger`] is one thread that owns the state: it lets [`aggregate`] and [`alert`] decide, commits what they decided
//! together with what caused it, and only then answers. [`notify`] delivers, [`api`] shows. [`enrolment`] gives an agent
//! its identity, signed by the authority that [`certificates`] keeps with [`pki`]. [`collector`] wires them and is the only module that knows all of them.

pub mod certificates;
pub mod pki;
pub mod problem;
pub mod store;
pub mod token;

pub mod ingest;

pub mod aggregate;
pub mod alert;
pub mod notify;

pub mod ledger;

pub mod api;
pub mod backup;
pub mod enrolment;
pub mod listener;

pub mod cli;
pub mod collector;
pub mod config;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod status;

#[cfg(test)]
mod testbed;
