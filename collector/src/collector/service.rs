//! What systemd hears of the collector (`sd_notify`): that it is ready, that the ledger still answers, that it ends.

use sd_notify::NotifyState;

use crate::ledger::Handle;

/// Gives signs of life while the ledger answers, be it that the disk takes nothing: a new start would not mend that.
/// Not by a timer alone: that would outlive the ledger. Ends at once where nobody waits for signs.
pub(super) async fn watch(ledger: Handle) {
    let Some(within) = sd_notify::watchdog_enabled() else { return };
    // A stall of most of the time that systemd waits is still no end.
    let mut turns = tokio::time::interval(within / 4);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        let _ = ledger.presence(Vec::new()).await;
        tell(&[NotifyState::Watchdog]);
    }
}

/// Tells that the collector serves.
pub(super) fn is_ready() {
    tell(&[NotifyState::Ready]);
}

/// Tells that it drains and ends.
pub(super) fn ends() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd could not be told");
    }
}
