//! Accepts TLS connections, bounded in time and number, and drains them.
