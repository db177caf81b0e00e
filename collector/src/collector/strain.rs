//! Looks each second at what the collector's own parts bear. A task beside the ledger: one that waits for its disk could not say so.

use std::path::PathBuf;
use std::time::Duration;

use tickbird_shared::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::aggregate::{Look, Reach, Strain, Strains};
use crate::ledger;
use crate::notify;
use crate::store::{Room, room};

const EVERY: Duration = Duration::from_secs(1);
/// A file system that is well answers at once; one that hangs must not keep the rest from being looked at.
const ROOM_WITHIN: Duration = Duration::from_millis(500);

/// What is looked at.
pub(super) struct Parts {
    /// Path of the store.
    pub(super) store: PathBuf,
    pub(super) ledger: ledger::Handle,
    pub(super) notify: notify::Status,
}

/// Looks until it is aborted.
pub(super) async fn watch(
    parts: Parts,
    mut strains: Strains,
    told: watch::Sender<Option<Strain>>,
    clock: fn() -> Timestamp,
) {
    let began = Instant::now();
    let mut looks = interval(EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked = None;
    loop {
        looks.tick().await;
        let room = ask(&mut asked, &parts.store).await;
        let receivers = parts.notify.receivers().into_iter();
        let reach = |it: notify::ReceiverStatus| Reach {
            name: it.name,
            is_away: it.is_away,
            failures: it.failures,
            last_error: it.last_error,
            left_out: it.left_out,
        };
        let look = Look { room, queue: parts.ledger.queue(), receivers: receivers.map(reach).collect() };
        told.send_replace(Some(strains.take(look, began.elapsed(), clock())));
    }
}

/// Asks for the room on the disk. One question at a time: each that hangs takes a thread.
async fn ask(asked: &mut Option<JoinHandle<Option<Room>>>, store: &std::path::Path) -> Option<Room> {
    let path = store.to_owned();
    let question = asked.get_or_insert_with(|| tokio::task::spawn_blocking(move || room(&path)));
    let answer = timeout(ROOM_WITHIN, question).await.ok()?;
    *asked = None;
    answer.ok().flatten()
}
