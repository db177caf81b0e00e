//! What an application says of its own pools, under any bytes.

use super::{Format, MAX_NAME, MAX_POOLS, Pointer, Pointers};

const URL: &str = "http://127.0.0.1:8000/metrics";

/// One body, as metrics, as a health page with names that are known, and with pointers.
pub(crate) fn pages(data: &[u8]) {
    let at = |path: &str| Pointer::parse(path);
    let pointers = Pointers {
        limit: at("/pool/max"),
        in_use: at("/pool/used"),
        idle: at("/pool/idle"),
        status: at("/pool/status"),
        ..Pointers::default()
    };
    let summed = Pointers { size: at("/0"), overflow: at("/1"), waiting: at("/2"), ..Pointers::default() };
    let health = [Pointers::default(), pointers, summed].map(|it| Format::Health(Box::new(it)));
    for format in [Format::Metrics].into_iter().chain(health) {
        let Ok(pools) = format.read(data, URL) else { continue };
        assert!((1..=MAX_POOLS).contains(&pools.len()));
        for pool in pools {
            assert!(!pool.name.is_empty() && pool.name.len() <= MAX_NAME && pool.processes > 0);
            for value in [pool.limit, pool.in_use, pool.idle, pool.open, pool.waiting, pool.oldest_wait] {
                assert!(value.known().is_none_or(f64::is_finite), "{value:?} is known of {}", pool.source);
            }
        }
    }
    if let Ok(text) = std::str::from_utf8(data) {
        assert!(Pointer::parse(text).is_none_or(|_| text.starts_with('/')));
    }
}
