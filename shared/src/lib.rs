//! What the agent and the collector must understand alike.
//!
//! A thing is admitted here through one of two doors:
//!
//! 1. *the two ends would misunderstand each other if it differed*: wire types, fingerprint, labels,
//!    protocol version, size limits, encoding;
//! 2. *it is pure, has two callers today and its name is in the glossary*: at present [`backoff`] and [`units`].
//!
//! It never holds I/O, a clock, a runtime, configuration, logging, TLS or storage. Agents are upgraded host by
//! host for months, so everything here is hard to change: deriving `Serialize` is a promise to a peer that we
//! do not control.

pub mod backoff;
pub mod batch;
pub mod enrolment;
pub mod finding;
pub mod fingerprint;
pub mod labels;
pub mod levels;
pub mod protocol;
pub mod start;
pub mod units;

pub use batch::{Acknowledgement, Batch, Epoch, Lane, Record};
pub use finding::{Change, Finding, Severity, Status};
pub use fingerprint::Fingerprint;
/// A point on the wall clock; RFC 3339 in UTC on the wire.
pub use jiff::Timestamp;
pub use labels::Labels;
pub use start::{Start, StartWord};
