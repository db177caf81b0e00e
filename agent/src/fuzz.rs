//! The parsers of bytes that are not ours, each as one function of bytes.
//!
//! A target panics when what its parser promises does not hold. `cargo xtask fuzz` looks for such bytes, guided by
//! coverage; the test below replays those that are kept, in `tests/fuzz/corpus` and `tests/fuzz/found`.

use crate::{buffer, config, discover, inspect, kernel, scrub, ship, status};

/// A name, and what reads the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this crate.
pub const TARGETS: &[Target] = &[
    ("proc", kernel::fuzz::proc),
    ("sock_diag", kernel::fuzz::sock_diag),
    ("environment", discover::fuzz::environment),
    ("scrub_statements", scrub::fuzz::statements),
    ("scrub_texts", scrub::fuzz::texts),
    ("dsn", inspect::fuzz::dsn),
    ("heads", inspect::fuzz::files),
    #[cfg(feature = "redis")]
    ("redis", inspect::redis::fuzz::replies),
    ("server_rows", server_rows),
    ("pool_pages", inspect::pool_metrics::fuzz::pages),
    ("endpoint", inspect::http_endpoint::fuzz::endpoint),
    ("log_lines", inspect::log_tail::fuzz::lines),
    ("buffer_files", buffer::fuzz::files),
    ("answers", answers),
    ("agent_configuration", config::fuzz::configuration),
];

/// Rows of servers whose answers are text.
fn server_rows(data: &[u8]) {
    inspect::pgbouncer::fuzz::rows(data);
    #[cfg(feature = "mysql")]
    inspect::mysql::fuzz::rows(data);
    #[cfg(feature = "rabbitmq")]
    inspect::rabbitmq::fuzz::answers(data);
}

/// What the collector, and an agent over its socket, answer.
fn answers(data: &[u8]) {
    ship::fuzz::answers(data);
    status::fuzz::report(data);
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_kept_of_fuzzing_still_holds() {
        tickbird_tests::kept::replay(super::TARGETS);
    }
}
