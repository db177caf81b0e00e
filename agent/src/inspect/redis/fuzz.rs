//! A Redis server's answers under any bytes.

use std::time::Duration;

use super::clients::{Clients, MAX_CLIENTS, Ourselves};
use super::info::{Info, Offsets};
use super::resp::{self, Reply};

/// One reply, and its text as `INFO` and as `CLIENT LIST`.
pub(crate) fn replies(data: &[u8]) {
    match resp::read(data) {
        Ok(Some((reply, taken))) => {
            assert!(taken <= data.len());
            assert_eq!(resp::read(&data[..taken]), Ok(Some((reply.clone(), taken))), "what follows changes nothing");
            assert!(!matches!(resp::read(&data[..taken - 1]), Ok(Some(_))), "a cut reply is not whole");
            // A byte that is no UTF-8 becomes three.
            let parts = if let Reply::Array(parts) = reply { parts } else { vec![reply] };
            assert!(parts.into_iter().filter_map(Reply::text).map(|it| it.len()).sum::<usize>() <= 3 * data.len() + 20);
        }
        Ok(None) => assert!(data.len() < resp::MAX_REPLY),
        Err(_) => (),
    }
    let text = String::from_utf8_lossy(data);
    let (info, mut offsets) = (Info::read(&text), Offsets::default());
    assert!(info.version.len() <= 20);
    let (second, third) = (Duration::from_secs(1), Duration::from_secs(2));
    let _ = (info.standing(&mut offsets, second), info.standing(&mut offsets, third));
    let ours = "127.0.0.1:40000".parse().expect("an address");
    for own in [Ourselves::Id(7), Ourselves::End(ours), Ourselves::Unix { user: "default" }] {
        if let Ok(all) = Clients::read(&text, own, true) {
            assert!(all.sessions.len() <= MAX_CLIENTS.min(text.lines().count()) && all.places.len() <= 16);
        }
    }
}
