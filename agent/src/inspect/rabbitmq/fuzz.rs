//! The management API's answers under any bytes.

use super::answers::{Connections, MAX_CONNECTIONS, Overview, PAGE, is_monitor, room};

/// One body, as the answer to each question.
pub(crate) fn answers(data: &[u8]) {
    let _ = is_monitor(data);
    if let Ok(it) = Overview::read(data) {
        assert!(it.version.len() <= 20 && it.ports.len() <= 64);
    }
    if let Ok(Some((_, total))) = room(data) {
        assert!(total > 0, "a share of nothing");
    }
    let mut all = Connections::default();
    for _ in 0..2 {
        if let Ok(pages) = all.take(data) {
            assert!(pages <= MAX_CONNECTIONS.div_ceil(PAGE));
        }
    }
    assert!(all.sessions.len() <= PAGE as usize, "the same page again adds nothing");
    assert!(all.sessions.iter().all(|it| it.application_name.len() <= 63 && it.port.is_some()));
}
