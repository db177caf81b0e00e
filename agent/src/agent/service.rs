//! What systemd hears of the agent (`sd_notify`): that it is ready, that its one task still turns, that it ends.

use std::time::Duration;

use sd_notify::NotifyState;

/// Signs of life from the task that takes every reading. Not from a timer of their own: that would outlive the task.
#[derive(Debug)]
pub(super) struct Watchdog {
    every: Option<Duration>,
    last: Duration,
}

impl Watchdog {
    /// Tells that the agent is ready, and begins. `now` is the agent's monotonic clock.
    pub(super) fn begin(now: Duration) -> Self {
        tell(&[NotifyState::Ready]);
        // A sign may come late by a turn; a stall of most of the time that systemd waits is still no end.
        Self { every: sd_notify::watchdog_enabled().map(|it| it / 4), last: now }
    }

    /// When the next sign is due; far away where nobody waits for one.
    pub(super) fn due_at(&self) -> Duration {
        self.every.map_or(Duration::MAX, |every| self.last + every)
    }

    /// The task turned once more.
    pub(super) fn turned(&mut self, now: Duration) {
        if self.every.is_some_and(|every| now.saturating_sub(self.last) >= every) {
            self.last = now;
            tell(&[NotifyState::Watchdog]);
        }
    }
}

/// Tells that the agent drains and ends.
pub(super) fn ends() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_of_life_is_due_where_systemd_waits_for_one_and_never_elsewhere() {
        let mut watchdog = Watchdog { every: Some(Duration::from_secs(5)), last: Duration::from_secs(2) };
        assert_eq!(watchdog.due_at(), Duration::from_secs(7));
        watchdog.turned(Duration::from_secs(6));
        assert_eq!(watchdog.due_at(), Duration::from_secs(7), "not yet");
        watchdog.turned(Duration::from_secs(8));
        assert_eq!(watchdog.due_at(), Duration::from_secs(13));
        assert_eq!(Watchdog { every: None, last: Duration::ZERO }.due_at(), Duration::MAX);
    }
}
