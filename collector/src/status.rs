//! The collector's own health: counters and readiness.
