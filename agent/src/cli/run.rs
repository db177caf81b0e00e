//! `tickbird-agent run`: the agent until a signal ends it.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::Failure;
use crate::agent::{self, Order};
use crate::config::{Config, Place};

pub(super) async fn run(place: &Place) -> Result<u8, Failure> {
    let config = Config::load(place)?;
    crate::agent::log_to_stderr();
    let (orders, received) = mpsc::channel(4);
    let cannot_listen = |error: std::io::Error| Failure(format!("cannot listen for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot_listen)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot_listen)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(cannot_listen)?;
    let place = place.clone();
    tokio::spawn(async move {
        loop {
            let order = tokio::select! {
                _ = terminate.recv() => Order::Stop,
                _ = interrupt.recv() => Order::Stop,
                _ = hangup.recv() => match Config::load(&place) {
                    Ok(config) => Order::Reload(Box::new(config)),
                    Err(mistakes) => {
                        tracing::error!(%mistakes, "configuration not reloaded, the last good one stays");
                        continue;
                    }
                },
            };
            if orders.send(order).await.is_err() {
                return;
            }
        }
    });
    agent::run(config, received).await.map_err(|error| Failure::of(&error, error.advice()))?;
    Ok(0)
}
