//! The path of a finding, from a kernel table to the wire.
//!
//! ```text
//! kernel ─▶ discover ─▶ inspect ─▶ judge ─▶ buffer ─▶ ship ─▶ (TLS) collector
//! ```
//!
//! [`kernel`] is the floor: rows as the kernel gives them, no opinion. [`discover`] says what runs here, [`inspect`]
//! reads facts of it, [`judge`] calls them good or bad, [`buffer`] survives a crash, [`ship`] empties the buffer.
//! [`agent`] wires them and is the only module that knows all of them.

pub mod kernel;
pub mod scrub;

pub mod discover;
pub mod inspect;
pub mod judge;

pub mod buffer;
pub mod ship;

pub mod agent;
pub mod cli;
pub mod config;
pub mod durable_file;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod identity;
pub mod status;
